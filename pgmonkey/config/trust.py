"""Trust in files: who else could change them, and with them where credentials are sent."""

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


class Doubt(NamedTuple):
    """Say why a file is not trusted.

    Args:
        place: The file, link or directory that others can change.
        reason: Why they can.
        hint: What to do about it.
    """

    place: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.place} {self.reason}"


class Judge:
    """Judge files by everything on the way to them: directories, links, the file itself.

    Each must belong to root or to this process's account, and nobody else may write to it. Two
    things let mounted Kubernetes secrets pass, whose directories everybody may write to: a sticky
    directory protects what others own in it, and a file system that is mounted read-only is
    changed by nobody here. So does a group that nobody else is a member of.

    What was found about a directory is remembered: make a new judge for each look at the files.

    Args:
        read_only: Tells whether the file system of a path is mounted read-only.
        uid: The account; by default that of the process.
    """

    def __init__(
        self, *, read_only: Callable[[str], bool] | None = None, uid: int | None = None
    ) -> None:
        self._read_only = read_only or _read_only
        self._uid = os.geteuid() if uid is None else uid
        self._known: dict[str, Doubt | None] = {}
        self._trusted: set[str] = set()

    def doubt(self, path: str) -> Doubt | None:
        """Return the first reason not to trust a file, or `None`.

        A file that cannot be looked at is not doubted: reading it says what is wrong.

        Args:
            path: The file.
        """
        parent = os.path.dirname(path)
        try:
            if parent in self._trusted:  # most files lie in a few directories
                status = os.lstat(path)
                if not stat.S_ISLNK(status.st_mode):
                    return self._judge(path, status)
            for step, status in _steps(os.path.abspath(path)):
                doubt = self._look(step, status)
                if doubt is not None:
                    return doubt
        except OSError:
            return None
        self._trusted.add(parent)
        return None

    def _look(self, path: str, status: os.stat_result) -> Doubt | None:
        if path not in self._known:
            self._known[path] = self._judge(path, status)
        return self._known[path]

    def _judge(self, path: str, status: os.stat_result) -> Doubt | None:
        if status.st_uid not in (0, self._uid):
            return Doubt(
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
        if self._read_only(path):
            return None
        who = "everybody" if everybody else "its group"
        return Doubt(
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


def _read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


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
    """Judge the files of one registry, say what is doubtful once, and refuse it if that is wanted.

    Args:
        trust: `strict` makes a doubt a problem, `warn` says it once, `off` does not look.
        on_untrusted: Called with a doubtful file and the reason, once for each file.
    """

    def __init__(self, trust: Trust, on_untrusted: Callable[[str, str], None] | None) -> None:
        self._trust: Trust = trust
        self._on_untrusted = on_untrusted
        self._told: set[str] = set()
        self._judge = Judge()

    def look_again(self) -> None:
        """Forget what was found about files and directories: a new look at them begins."""
        self._judge = Judge()

    def problems(
        self, paths: Iterable[str], declared_by: str, name: str | None
    ) -> tuple[Problem, ...]:
        """Return what keeps a database, or the defaults, from being used; mostly nothing.

        Args:
            paths: The files that it is made from.
            declared_by: The config file, which the problems are said to be in.
            name: The database; `None` for the defaults.
        """
        if self._trust == "off":
            return ()
        problems: list[Problem] = []
        for path in paths:
            doubt = self._judge.doubt(path)
            if doubt is None:
                continue
            if self._on_untrusted is not None and path not in self._told:
                self._told.add(path)
                self._on_untrusted(path, str(doubt))
            if self._trust == "strict":
                message = f"the file is not to be trusted: {doubt}"
                problems.append(
                    Problem(declared_by, "file.untrusted", message, hint=doubt.hint, database=name)
                )
        return tuple(dict.fromkeys(problems))
