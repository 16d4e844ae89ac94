from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmonkey.config.durations import DurationError, format_duration, parse_duration


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("30", 30),
        ("1.5", 1.5),
        (".5s", 0.5),
        ("5 min", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("0", 0),
        (" 7s ", 7),
    ],
)
def test_durations_are_read_with_their_unit(text, seconds):
    """A number and a unit; a bare number is seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "-1",
        "+1",
        "1e3",
        "nan",
        "inf",
        ".nan",
        "1 2",
        "5sec",
        "5S",
        "1h30min",
        "1,5",
        "٣s",
        "5w",
        ".",
    ],
)
def test_anything_else_is_refused_without_being_quoted(text):
    """What is no duration is refused, and the error does not repeat it."""
    with pytest.raises(DurationError) as caught:
        parse_duration(text)
    assert str(caught.value).startswith("expected a duration")


def test_m_is_refused_as_ambiguous():
    """`5m` may be minutes or milliseconds: the hint says how to write either."""
    with pytest.raises(DurationError, match="ambiguous") as caught:
        parse_duration("5m")
    assert "min" in caught.value.hint


def test_an_absurd_duration_is_refused():
    """More than ten years is a mistake in the unit."""
    with pytest.raises(DurationError, match="ten years"):
        parse_duration("9" * 400)


@given(
    number=st.floats(0, 3000, allow_nan=False).map(lambda n: round(n, 3)),
    unit=st.sampled_from(
        [("ms", 0.001), ("s", 1), ("", 1), ("min", 60), ("h", 3600), ("d", 86400)]
    ),
)
def test_every_number_and_unit_give_their_product(number, unit):
    """The value is the number times the unit, always finite."""
    name, factor = unit
    seconds = parse_duration(f"{number:.3f}{name}")
    assert math.isfinite(seconds)
    assert seconds == pytest.approx(number * factor)


@given(text=st.text(max_size=12))
def test_any_text_is_a_duration_or_an_error(text):
    """Nothing else comes out, whatever goes in."""
    with contextlib.suppress(DurationError):
        assert parse_duration(text) >= 0


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 ms"),
        (1e-6, "under 0.01 ms"),
        (0.00035, "0.35 ms"),
        (0.12, "120 ms"),
        (4, "4 s"),
        (70, "70 s"),
        (300, "5 min"),
        (7200, "2 h"),
        (200_000, "2 d"),
    ],
)
def test_a_duration_for_people(seconds, text):
    """It is written in its largest unit, and as 0 only if it is 0."""
    assert format_duration(seconds) == text
