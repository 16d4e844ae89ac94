"""Build the directories that containers get, in a mount name space of its own, and check them.

Run by test_trust_layouts.py as `unshare --mount python -m tests.config.layouts`. It prints, for each
layout, what a strict registry says of it before and after each thing that can be done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pgmonkey import Registry
from pgmonkey.errors import RegistryConfigError

#: Where the containers' root file system is built, and the volumes as their writers see them.
ROOT = Path("/mnt/root")
VOLUMES = Path("/mnt/volumes")

CONFIG = "connection_settings: {host: db, dbname: orders, user: app, password: {from_file: %s}}\n"


class Layout(NamedTuple):
    """Where a secret is, whose it is, and who reads it.

    Args:
        directory: Its directory in the container.
        mode: The mode of that.
        owner: Its user and group.
        secret: User and group of the file, and its mode.
        reader: User and group of the process.
        volume: Whether the directory is a volume; else it is part of the image.
    """

    directory: str
    mode: int
    owner: tuple[int, int]
    secret: tuple[int, int, int]
    reader: tuple[int, int] = (10001, 10001)
    volume: bool = True


OPENSHIFT = (1000680000, 0)

LAYOUTS = {
    # An emptyDir in memory; the agent is the user 100 of its image.
    "vault": Layout("vault/secrets", 0o1777, (0, 0), (100, 1000, 0o644)),
    # An init container of the same user has written the file.
    "emptydir": Layout("work", 0o777, (0, 0), (10001, 10001, 0o644)),
    "emptydir with fsGroup": Layout("work", 0o2777, (0, 10001), (10001, 10001, 0o644)),
    "emptydir and root": Layout("work", 0o777, (0, 0), (0, 0, 0o644), (0, 0)),
    # OpenShift: any user, group 0, and the supplementary group of the project for volumes.
    "openshift": Layout(
        "work", 0o2777, (0, OPENSHIFT[0]), (OPENSHIFT[0], OPENSHIFT[0], 0o644), OPENSHIFT
    ),
    "openshift image": Layout("opt/app", 0o775, (0, 0), (0, 0, 0o664), OPENSHIFT, volume=False),
    "openshift image of a user": Layout(
        "opt/app", 0o775, (1001, 0), (1001, 0, 0o664), OPENSHIFT, volume=False
    ),
    # docker run --volume ./secrets:/run/secrets
    "bind mount": Layout("run/secrets", 0o755, (1000, 1000), (1000, 1000, 0o644)),
}


def main() -> None:
    """Print what is seen, as JSON."""
    said = {}
    for name, layout in LAYOUTS.items():
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/mnt")
        ROOT.mkdir()
        VOLUMES.mkdir()
        said[name] = _seen(layout)
        subprocess.run(["umount", "--recursive", "/mnt"], check=True)
    json.dump(said, sys.stdout)


def _seen(layout: Layout) -> dict[str, Any]:
    registry = ROOT / "etc" / "registry.d"
    registry.mkdir(parents=True)
    directory = ROOT / layout.directory
    directory.mkdir(parents=True)
    written = directory
    if layout.volume:
        written = VOLUMES / "volume"
        written.mkdir()
        _mount("-t", "tmpfs", "tmpfs", written)
        _mount("--bind", written, directory)
    secret = written / "password"
    _write(secret, "tea", layout)
    written.chmod(layout.mode)
    os.chown(written, *layout.owner)
    written.chmod(layout.mode)  # a change of the owner takes the bits of set-gid
    (registry / "orders.yaml").write_text(CONFIG % (directory / "password"))

    def check(**trust: Any) -> list[tuple[str | None, ...]]:
        with _as(*layout.reader):
            try:
                with Registry(registry, watch=False, metrics=None, **trust) as opened:
                    return [(one.path, one.message, one.hint) for one in opened.status().warnings]
            except RegistryConfigError as error:
                return [(one.message, one.hint) for one in error.problems]

    seen: dict[str, Any] = {
        "strict": check(trust="strict"),
        "warn": check(trust="warn"),
        "trusted uid": check(trust="strict", trust_uids=(layout.secret[0],)),
    }
    _write(secret, "tea", layout._replace(secret=(*layout.reader, 0o644)))
    seen["same user"] = check(trust="strict")
    _write(secret, "tea", layout)
    _mount(
        "-o",
        "remount,ro" + (",bind" if layout.volume else ""),
        directory if layout.volume else "/mnt",
    )
    seen["read-only"] = check(trust="strict")
    if layout.volume:  # whoever writes it goes on
        _write(secret, "coffee", layout)
        seen["rotated"] = check(trust="strict")
    return seen


def _write(path: Path, text: str, layout: Layout) -> None:
    user, group, mode = layout.secret
    path.unlink(missing_ok=True)
    path.write_text(text)
    os.chown(path, user, group)
    path.chmod(mode)


def _mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


@contextmanager
def _as(user: int, group: int) -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


if __name__ == "__main__":
    main()
