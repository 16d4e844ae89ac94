"""Decide when a look at files is believed: absence slowly, and half of a file not at all."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final, NamedTuple

from pgmonkey.config.sources import SourceFile

#: Seconds after which a second look must find the same in a file that was rewritten in place.
SETTLE: Final = 0.1


class Look(NamedTuple):
    """Say when and why the files are looked at."""

    now: float  # in seconds, on any monotonic clock
    removal_delay: float  # seconds for which a file must be missing until it counts as removed
    asked: bool  # a person or a program asked for it, after the files were written
    moved: frozenset[str] = frozenset()  # paths that were renamed into place, as events say


class Doubt(NamedTuple):
    """Remember what looks saw, and did not believe yet."""

    seen: Hashable
    since: float
    due: float  # when a look that sees the same believes it


def doubt(known: Doubt | None, seen: Hashable, delay: float, now: float) -> Doubt | None:
    """Return the doubt that is left after a look; `None` if what it saw is believed.

    It is believed when every look for `delay` seconds has seen the same.
    """
    since = known.since if known is not None and known.seen == seen else now
    due = since + delay
    return None if now >= due else Doubt(seen, since, due)


class Doubts:
    """Collect what one look does not believe, given what the look before did not.

    Without a look everything is believed at once.
    """

    def __init__(self, look: Look | None, before: Mapping[str, Doubt]) -> None:
        self.look = look
        self._before = before
        #: What is not believed yet, by a key that the caller chooses.
        self.left: dict[str, Doubt] = {}

    def remain(self, key: str, seen: Hashable, delay: float) -> bool:
        """Tell whether what was seen is not believed yet: not for `delay` seconds."""
        if self.look is None:
            return False
        left = doubt(self._before.get(key), seen, delay, self.look.now)
        if left is not None:
            self.left[key] = left
        return left is not None

    @property
    def asked(self) -> bool:
        """Whether somebody asked for the look."""
        return self.look is None or self.look.asked

    @property
    def due(self) -> float | None:
        """When the next look may believe what this one does not."""
        return min((one.due for one in self.left.values()), default=None)


def settling_time(
    before: Mapping[str, SourceFile | None],
    after: Mapping[str, SourceFile | None],
    look: Look | None,
) -> float:
    """Return for how many seconds looks must agree on files before they are believed.

    Both map the paths of the files to what was read; `None` is a file that cannot be used.
    """
    if look is None:
        return 0.0
    return max(
        (_settling_time(before.get(path), file, look) for path, file in after.items()), default=0.0
    )


def _settling_time(before: SourceFile | None, after: SourceFile | None, look: Look) -> float:
    if after is None:  # perhaps away for a moment, or empty
        return SETTLE if before is None or look.asked else max(look.removal_delay, SETTLE)
    if before is not None and after.has_content_of(before):
        return 0.0
    if before is not None and after.is_file_of(before):
        return SETTLE
    # Another file: complete if it was written under another name. It may also have been made
    # under this one; events, or the time of its last change, tell the difference.
    return 0.0 if look.asked or after.path in look.moved or after.is_whole() else SETTLE


def removal_time(look: Look | None) -> float:
    """Return for how many seconds a file must be missing until it counts as removed."""
    return 0.0 if look is None or look.asked else look.removal_delay


class Place(NamedTuple):
    """Describe a directory: device and inode, the databases that its files declare, the defaults."""

    identity: tuple[int, int]
    names: frozenset[str]
    has_defaults: bool = False


def untrusted_absence(believed: Place, seen: Place, look: Look | None) -> str | None:
    """Return the code of the problem if a directory does not tell that files were removed.

    A volume that was unmounted leaves an empty directory, or the one under it.
    """
    complete = believed.names <= seen.names and believed.has_defaults <= seen.has_defaults
    if look is None or complete:
        return None
    if believed.names and not seen.names:
        return None if look.asked and seen.identity == believed.identity else "registry.empty"
    another_device = seen.identity[0] != believed.identity[0]
    return "registry.replaced" if another_device and not look.asked else None
