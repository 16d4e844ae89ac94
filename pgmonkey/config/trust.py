"""Trust in files: other accounts that could change a file could redirect credentials."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from pgmonkey.errors import Problem

Trust = Literal["off", "warn", "strict"]

_MOST_LINKS: Final = 40  # as the system has it


class Distrust(NamedTuple):
    """Say why a file is not trusted."""

    path: str  # the file, link or directory that others can change
    reason: str
    remedies: tuple[str, ...]

    @property
    def hint(self) -> str:
        """What can be done, in words."""
        return any_of(self.remedies)

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


class TrustChecker:
    """Check a file and everything that leads to it: directories, links, the file itself.

    Each must belong to root, to the account of this process, or to one of `uids`, and no other
    account may write to it. A sticky directory protects the files of others in it, and a group
    without other members passes. What is mounted read-only passes whatever its owner and mode
    are, as secrets of Kubernetes do: no process can change it through that mount, and root, who
    made it, has decided who can change it elsewhere.

    It remembers what it found about a directory: make a new one for each look at the files.
    """

    def __init__(self, uids: Collection[int] = ()) -> None:
        self._uid = os.geteuid()
        self._owners = frozenset((0, self._uid, *uids))
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
        if (reason := self._reason(status)) is None:
            return None
        # A link is on the file system of its directory, whatever it leads to.
        place = os.path.dirname(path) if stat.S_ISLNK(status.st_mode) else path
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            return None
        ways = remedies(
            path,
            status,
            uid=self._uid,
            foreign=status.st_uid not in self._owners,
            volume=self._volume(place),
            image=self._uid != 0 and status.st_gid == os.getegid() == 0,
        )
        return Distrust(path, reason, ways)

    def _reason(self, status: os.stat_result) -> str | None:
        """Return why owner and mode are not trusted, if so."""
        if status.st_uid not in self._owners:
            return f"belongs to another account (uid {status.st_uid})"
        mode = status.st_mode
        if stat.S_ISLNK(mode) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
            return None
        if mode & stat.S_IWOTH:
            who = "everybody"
        elif mode & stat.S_IWGRP and not _is_private(status.st_gid, self._uid):
            who = "its group"
        else:
            return None
        return f"can be changed by {who} (mode {stat.S_IMODE(mode):04o})"

    def _volume(self, path: str) -> str | None:
        """Return the mount that a file is on if others can write to that: a volume of a container."""
        while not os.path.ismount(path):
            path = os.path.dirname(path)
        status = os.lstat(path)
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or status.st_uid not in self._owners
        return path if path != "/" and shared else None


def remedies(
    path: str,
    status: os.stat_result,
    *,
    uid: int,
    foreign: bool,
    volume: str | None,
    image: bool,
) -> tuple[str, ...]:
    """Return what can be done about a file that is not trusted.

    Args:
        path: The file, link or directory.
        status: Its owner and mode.
        uid: The account of the process.
        foreign: Whether it belongs to an account that is not trusted.
        volume: The mount that it is on, if others can write to that.
        image: Whether it and the process are of the group 0, and the process is not root: so are
            images made that run under any user, as OpenShift wants it.
    """
    own = uid in (0, status.st_uid)
    ways = []
    if volume is not None and (foreign or not own or path == volume):
        ways.append(f"mount {volume} read-only (Kubernetes: readOnly: true on the volumeMount)")
    elif image and status.st_mode & stat.S_IWGRP:
        ways.append("make the root file system read-only (readOnlyRootFilesystem: true)")
    if foreign:
        if volume is not None:
            ways.append(f"run what writes it as uid {uid}")
        else:
            ways.append(f"make root or uid {uid} its owner")
        ways.append(f"trust that account with --trust-uid {status.st_uid}")
    elif own or volume is None:
        ways.append(f"chmod go-w {path}")
    return tuple(ways)


def any_of(ways: Sequence[str]) -> str:
    """Return alternatives as a part of a sentence."""
    *first, last = ways
    return f"{', '.join(first)}, or {last}" if first else last


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
    """Check the files of one registry, and report or refuse those that others can change.

    Args:
        trust: What to do: `strict` refuses, `warn` reports, `off` does not look.
        uids: Further accounts that may own files.
        on_untrusted: Called with each reason once, until that is mended.
    """

    def __init__(
        self,
        trust: Trust,
        uids: Collection[int] = (),
        on_untrusted: Callable[[Distrust], object] | None = None,
    ) -> None:
        self._trust: Trust = trust
        self._uids = frozenset(uids)
        self._on_untrusted = on_untrusted
        #: The files that are not trusted, by the file that names them.
        self._found: dict[str, dict[str, Distrust]] = {}
        self._reported: set[Distrust] = set()
        self.look_again()

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Return what is reported and not refused: one for each file or directory to mend."""
        if self._trust != "warn":
            return ()
        found = {
            one
            for declared_by, files in list(self._found.items())
            if os.path.lexists(declared_by)
            for one in files.values()
        }
        return tuple(
            Problem(one.path, "file.untrusted", one.reason, hint=one.hint) for one in sorted(found)
        )

    def look_again(self) -> None:
        """Check what was not trusted again: a new scan begins."""
        self._checker = TrustChecker(self._uids)
        for declared_by, files in list(self._found.items()):
            if os.path.lexists(declared_by):  # else it may come back
                self._note(declared_by, self._check(files))
        self._reported &= {one for files in self._found.values() for one in files.values()}

    def problems(
        self, paths: Iterable[str], declared_by: str, name: str | None
    ) -> tuple[Problem, ...]:
        """Return why the files of a database (or of the defaults: no name) may not be used."""
        if self._trust == "off":
            return ()
        paths = tuple(paths)
        found = self._check(paths)
        # Without the file itself, only what its last good text names is checked again.
        known = {} if declared_by in paths else self._found.get(declared_by, {})
        self._note(declared_by, known | found)
        if self._trust != "strict":
            return ()
        problems = (
            Problem(
                declared_by,
                "file.untrusted",
                f"the file is not trusted: {one}",
                hint=any_of((*one.remedies, "use --trust warn")),
                database=name,
            )
            for one in found.values()
        )
        return tuple(dict.fromkeys(problems))

    def _check(self, paths: Iterable[str]) -> dict[str, Distrust]:
        """Return the files that are not trusted, with the reasons."""
        return {path: one for path in paths if (one := self._checker.distrust(path)) is not None}

    def _note(self, declared_by: str, found: dict[str, Distrust]) -> None:
        """Remember which files are not trusted, and report what is new."""
        if found:
            self._found[declared_by] = found
        else:
            self._found.pop(declared_by, None)
        for one in found.values():
            if self._on_untrusted is not None and one not in self._reported:
                self._reported.add(one)
                self._on_untrusted(one)
