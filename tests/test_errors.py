"""Errors carry their fields, wherever they travel."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

import pgmonkey
from pgmonkey import (
    CheckoutTimeout,
    ConfigError,
    ConnectError,
    PgmonkeyError,
    Problem,
    RegistryConfigError,
    ReloadRejectedError,
)

FIELDS = {"text": "FATAL:  too many", "database": "orders", "reason": "auth", "hint": "look here"}
PROBLEM = Problem("registry.d/orders.yaml", "config.type", "expected an integer", line=7)
ERRORS: list[PgmonkeyError] = [
    ConnectError(**FIELDS),
    ReloadRejectedError(**FIELDS),
    CheckoutTimeout("no connection within 2.00 s", **FIELDS),
    CheckoutTimeout("no connection within 2.00 s", database="orders", hint="raise max_size"),
    ConfigError([PROBLEM]),
    RegistryConfigError([PROBLEM]),
    *(
        getattr(pgmonkey, name)("orders: what happened")
        for name in (
            "DatabaseRemovedError",
            "EnvInterpolationError",
            "HandleClosedError",
            "LeftOpenError",
            "NestedCheckoutError",
            "TooManyWaiting",
            "UnknownDatabaseError",
            "WrongSideError",
        )
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "travel",
    [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_an_error_keeps_its_fields_through_pickle_and_copy(
    error: PgmonkeyError, travel: Callable[[PgmonkeyError], PgmonkeyError]
) -> None:
    """`multiprocessing` and Celery send errors to another process; nothing of them is lost."""
    arrived = travel(error)

    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    for field in ("text", "database", "reason", "hint", "problems"):
        assert getattr(arrived, field, None) == getattr(error, field, None)


@pytest.mark.parametrize(
    "error, shown",
    [
        (
            ConnectError(**FIELDS),
            "orders: cannot connect: FATAL:  too many [auth]\n  hint: look here",
        ),
        (ConnectError("Connection refused"), "cannot connect: Connection refused [other]"),
        (
            CheckoutTimeout("no connection within 2.00 s (open 0)", **FIELDS),
            (
                "orders: no connection within 2.00 s (open 0)"
                "\n  the last connect failed: FATAL:  too many [auth]"
                "\n  hint: look here"
            ),
        ),
        (
            CheckoutTimeout("no connection within 2.00 s", database="orders", hint="raise it"),
            "orders: no connection within 2.00 s\n  hint: raise it",
        ),
    ],
)
def test_the_text_of_an_error_is_composed_from_its_fields(error: PgmonkeyError, shown: str) -> None:
    """A person reads database, what happened, reason and hint; a program reads the fields."""
    assert str(error) == shown
