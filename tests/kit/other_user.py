"""An interpreter and packages that every user can read, to run a process as another user."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

_ROOT = Path(__file__).parents[2]
#: What no program of ours needs, and what is large.
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "site-packages", "test", "config-*", "*.a")


class OpenPython:
    """This interpreter with its packages, where every user can reach them.

    A version manager installs below the home of its user, which others may not enter. What they
    cannot reach is linked, or copied, into a directory that is open.

    Args:
        directory: Where to; others may look into it.
    """

    def __init__(self, directory: Path) -> None:
        self.executable = Path(sys.executable).resolve()
        base = Path(sys.base_prefix).resolve()
        self._libraries: list[Path] = []
        if not _is_open(self.executable):
            copy = directory / "python"
            library = Path(sysconfig.get_path("stdlib")).resolve().relative_to(base)
            shutil.copytree(base / library, copy / library, copy_function=_link, ignore=_LEFT_OUT)
            for file in (self.executable, *(base / "lib").glob("libpython*.so*")):
                _link(file, _made(copy / file.relative_to(base)))
            self.executable = copy / self.executable.relative_to(base)
            self._libraries = [copy / "lib"]
        self._packages = [
            where
            if _is_open(where)
            else Path(shutil.copytree(where, _made(directory / name), copy_function=_link))
            for name, where in {
                "source/pgmonkey": _ROOT / "pgmonkey",
                "packages": Path(sysconfig.get_path("purelib")),
            }.items()
        ]

    def command(self, *arguments: object) -> list[str]:
        """Return the argument list of a `pgmonkey` command; warnings of ours are errors in it."""
        return [str(self.executable), "-W", "error", "-m", "pgmonkey", *map(str, arguments)]

    def variables(self) -> dict[str, str]:
        """Return the environment variables by which it finds its parts."""
        package, packages = self._packages
        found = {"PYTHONPATH": os.pathsep.join([str(package.parent), str(packages)])}
        if self._libraries:
            found["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, self._libraries))
        return found


def _is_open(path: Path) -> bool:
    """Tell whether everybody may read a file, or enter a directory, with all that lead to it."""
    return all(one.stat().st_mode & 0o005 == 0o005 for one in (path, *path.parents))


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _link(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Link a file, which costs nothing; on another file system, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
