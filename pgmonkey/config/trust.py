"""Trust in files: other accounts that could change a file could redirect credentials."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from pgmonkey.errors import Problem

Trust = Literal["off", "warn", "strict"]

_MOST_LINKS: Final = 40  # as the system has it


class Distrust(NamedTuple):
    """Say why a file is not trusted."""

    path: str  # the file, link or directory that others can change
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


class TrustChecker:
    """Check a file and everything that leads to it: directories, links, the file itself.

    Each must belong to root or to the account of this process, and no other account may write to
    it. Mounted Kubernetes secrets, whose directories are writable for all, pass for two reasons: a
    sticky directory protects the files of others in it, and a file system that is mounted
    read-only cannot be changed here. A group without other members passes as well.

    It remembers what it found about a directory: make a new one for each look at the files.
    """

    def __init__(self) -> None:
        self._uid = os.geteuid()
        self._known: dict[str, Distrust | None] = {}
        self._trusted: set[str] = set()

    def distrust(self, path: str) -> Distrust | None:
        """Return the first reason not to trust a file, or `None`.

        A file that cannot be looked at passes: reading it reports what is wrong.
        """
        parent = os.path.dirname(path)
        try:
            if parent in self._trusted:  # most files are in a few directories
                status = os.lstat(path)
                if not stat.S_ISLNK(status.st_mode):
                    return self._check(path, status)
            for step, status in _steps(os.path.abspath(path)):
                if step not in self._known:
                    self._known[step] = self._check(step, status)
                if self._known[step] is not None:
                    return self._known[step]
        except OSError:
            return None
        self._trusted.add(parent)
        return None

    def _check(self, path: str, status: os.stat_result) -> Distrust | None:
        if status.st_uid not in (0, self._uid):
            return Distrust(
                path,
                f"belongs to another account (uid {status.st_uid})",
                "make root, or the account of the process, its owner",
            )
        mode = status.st_mode
        if stat.S_ISLNK(mode) or not mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        if stat.S_ISDIR(mode) and mode & stat.S_ISVTX:
            return None
        everybody = bool(mode & stat.S_IWOTH)
        if not everybody and _is_private(status.st_gid, self._uid):
            return None
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return None
        who = "everybody" if everybody else "its group"
        return Distrust(
            path, f"can be changed by {who} (mode {stat.S_IMODE(mode):04o})", f"chmod go-w {path}"
        )


def _steps(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield everything on the way to a file, the links that are followed included."""
    pending = path.split("/")[::-1]
    here = "/"
    links = 0
    yield here, os.lstat(here)
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            here = os.path.dirname(here)
            continue
        step = os.path.join(here, name)
        status = os.lstat(step)
        yield step, status
        if not stat.S_ISLNK(status.st_mode):
            here = step
            continue
        links += 1
        if links > _MOST_LINKS:
            return
        target = os.readlink(step)
        if target.startswith("/"):
            here = "/"
        pending += target.split("/")[::-1]


@lru_cache(maxsize=64)
def _is_private(gid: int, uid: int) -> bool:
    """Tell whether an account has a group of its own, as desktops with umask 002 give it."""
    try:
        account = pwd.getpwuid(uid)
        group = grp.getgrgid(gid)
    except KeyError:
        return False
    return account.pw_gid == gid and group.gr_name == account.pw_name and not group.gr_mem


class TrustPolicy:
    """Check the files of one registry, and report or refuse those that others can change."""

    def __init__(self, trust: Trust, on_untrusted: Callable[[str, str], None] | None) -> None:
        self._trust: Trust = trust
        self._on_untrusted = on_untrusted
        self._reported: set[str] = set()
        self._checker = TrustChecker()

    def look_again(self) -> None:
        """Forget the files and directories that were checked: a new scan begins."""
        self._checker = TrustChecker()

    def problems(
        self, paths: Iterable[str], declared_by: str, name: str | None
    ) -> tuple[Problem, ...]:
        """Return why the files of a database (or of the defaults: no name) may not be used."""
        if self._trust == "off":
            return ()
        problems: list[Problem] = []
        for path in paths:
            distrust = self._checker.distrust(path)
            if distrust is None:
                continue
            if self._on_untrusted is not None and path not in self._reported:
                self._reported.add(path)
                self._on_untrusted(path, str(distrust))
            if self._trust == "strict":
                message, hint = f"the file is not trusted: {distrust}", distrust.hint
                problems.append(
                    Problem(declared_by, "file.untrusted", message, hint=hint, database=name)
                )
        return tuple(dict.fromkeys(problems))
