"""A finding: a problem before its place in a file is known."""

from __future__ import annotations

from typing import NamedTuple

from pgmonkey.config.layout import KeyPath


class Finding(NamedTuple):
    """Describe what is wrong with one part of a configuration.

    Args:
        path: Keys and indexes from the top of the document.
        code: The stable code of the problem.
        message: What is wrong; without values.
        hint: What to do about it.
        at_key: Whether the key is wrong, not its value.
        show: Whether the value may be shown, if it is neither sensitive nor from outside.
        beside: Another part that it does not agree with; the message says where that is.
    """

    path: KeyPath
    code: str
    message: str
    hint: str | None = None
    at_key: bool = False
    show: bool = False
    beside: KeyPath = ()
