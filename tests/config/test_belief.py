"""When a look at files is believed, decided without files."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pgmonkey.config.belief import (
    SETTLE,
    Doubt,
    Doubts,
    Look,
    Place,
    doubt,
    settling_time,
    untrusted_absence,
)
from pgmonkey.config.sources import SourceFile

PATH = "/etc/registry.d/orders.yaml"
EVENTS = Look(now=100.0, removal_delay=5.0, asked=False)
RELOAD = EVENTS._replace(asked=True)


def file(content: str = "one", *, inode: int = 1, moved: bool = False) -> SourceFile:
    """Return what a look saw: a file that was changed after its last write if it was moved."""
    times = {"st_mtime_ns": 50, "st_ctime_ns": 60 if moved else 50}
    status: Any = os.stat_result([0o100644, inode, 1, 1, 0, 0, len(content), 0, 0, 0], times)
    return SourceFile(PATH, content.encode(), status, 70, 1000)


def test_what_was_seen_is_believed_when_looks_agree_for_long_enough() -> None:
    """A look that sees something else, or the old state, begins again."""
    first = doubt(None, "half", 0.1, now=10.0)
    assert first == Doubt("half", 10.0, 10.1)
    assert doubt(first, "half", 0.1, now=10.05) == first
    assert doubt(first, "half", 0.1, now=10.1) is None, "believed"
    assert doubt(first, "whole", 0.1, now=10.1) == Doubt("whole", 10.1, 10.1 + 0.1)
    assert doubt(None, "anything", 0.0, now=10.0) is None, "at once"


def test_a_look_that_sees_nothing_new_forgets_the_doubts() -> None:
    """A file that came back in time was never away, and nothing is due any more."""
    away = Doubts(EVENTS, {})
    assert away.remain("orders", "absent", 5.0)
    assert away.due == 105.0
    back = Doubts(EVENTS._replace(now=104.0), away.left)
    assert back.due is None
    away = Doubts(EVENTS._replace(now=106.0), back.left)
    assert away.remain("orders", "absent", 5.0), "the time begins again"


def test_the_first_scan_believes_everything() -> None:
    """There is nothing to keep: a problem is reported at once."""
    assert not Doubts(None, {}).remain("orders", "half", 5.0)
    assert settling_time({}, {PATH: None}, None) == 0.0


@pytest.mark.parametrize("look", [EVENTS, RELOAD], ids=["events", "reload"])
def test_a_file_that_was_rewritten_in_place_is_believed_at_the_second_look(look: Look) -> None:
    """The same inode with another content may be half written, also for an explicit reload."""
    assert SETTLE >= 0.1
    assert settling_time({PATH: file()}, {PATH: file("half")}, look) == SETTLE
    assert settling_time({PATH: file()}, {PATH: file("half", moved=True)}, look) == SETTLE
    assert settling_time({PATH: file()}, {PATH: file("one")}, look) == 0.0, "the same content"


def test_a_file_that_was_renamed_into_place_is_believed_at_once() -> None:
    """Events, the time of its last change, or an explicit reload say that it is complete."""
    before, after = {PATH: file()}, {PATH: file("two", inode=2)}
    assert settling_time(before, {PATH: file("two", inode=2, moved=True)}, EVENTS) == 0.0
    assert settling_time(before, after, EVENTS._replace(moved=frozenset({PATH}))) == 0.0
    assert settling_time(before, after, RELOAD) == 0.0


def test_a_file_that_was_made_under_its_own_name_may_be_half_written() -> None:
    """Unlinked and made again, or new: a second look must agree."""
    after = {PATH: file("two", inode=2)}
    assert settling_time({PATH: file()}, after, EVENTS) == SETTLE
    assert settling_time({}, after, EVENTS) == SETTLE
    assert settling_time({}, after, RELOAD) == 0.0


def test_a_secret_file_that_is_away_is_missed_after_the_removal_delay() -> None:
    """One that never was there is a mistake in the text, and reported soon."""
    assert settling_time({PATH: file()}, {PATH: None}, EVENTS) == 5.0
    assert settling_time({PATH: file()}, {PATH: None}, RELOAD) == SETTLE
    assert settling_time({}, {PATH: None}, EVENTS) == SETTLE
    assert settling_time({PATH: file()}, {PATH: file(), "/x": None}, EVENTS) == SETTLE


OURS = Place((1, 10), frozenset({"orders", "events"}), has_defaults=True)


@pytest.mark.parametrize(
    "seen, code, after_reload",
    [
        (OURS, None, None),
        (Place((1, 10), frozenset({"orders"})), None, None),
        (Place((1, 99), frozenset({"orders"})), None, None),
        (Place((1, 10), frozenset()), "registry.empty", None),
        (Place((1, 99), frozenset()), "registry.empty", "registry.empty"),
        (Place((2, 10), frozenset()), "registry.empty", "registry.empty"),
        (Place((2, 10), frozenset({"orders"})), "registry.replaced", None),
        (Place((2, 10), frozenset({"orders", "events", "new"})), "registry.replaced", None),
        (Place((2, 10), frozenset({"orders", "events", "new"}), True), None, None),
        (Place((1, 10), frozenset({"orders", "events"})), None, None),
        (Place((1, 10), frozenset(), True), "registry.empty", None),
    ],
    ids=[
        "the same",
        "one file less",
        "another directory with one file less",
        "emptied",
        "another directory that is empty",
        "another device that is empty",
        "another device with one file less",
        "another device without the defaults",
        "another device with all files",
        "without the defaults",
        "only the defaults are left",
    ],
)
def test_what_a_directory_says_about_files_that_are_not_there(
    seen: Place, code: str | None, after_reload: str | None
) -> None:
    """An empty one, or one of another device, removes nothing unless somebody asks for it."""
    assert untrusted_absence(OURS, seen, EVENTS) == code
    assert untrusted_absence(OURS, seen, RELOAD) == after_reload
    assert untrusted_absence(OURS, seen, None) is None
