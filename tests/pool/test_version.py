"""Versions: what tells old connections from new ones, and where they lead."""

from __future__ import annotations

from typing import Any

import pytest

from pgmonkey.pool.version import Version
from tests.kit.dictionaries import config_from_dict

CONNECTION = {"host": "db", "port": "5432", "dbname": "orders", "user": "app", "password": "tea"}


def config(connection: dict[str, str] | None = None, **more: Any) -> Any:
    return config_from_dict({"connection_settings": {**CONNECTION, **(connection or {})}, **more})


FIRST = Version(config())


@pytest.mark.parametrize(
    "change",
    [
        {"description": "of tea"},
        {"pool_settings": {"max_size": 3}},
        {"pool_settings": {"max_lifetime": "1min"}},
        {"timeout": "1s"},
        {"max_connections": 3},
        {"revision": "2"},
    ],
    ids=str,
)
def test_what_touches_no_connection_makes_a_version_whose_connections_stay(
    change: dict[str, Any],
) -> None:
    """Its number is new, but connections of the version before are as good as its own."""
    following = FIRST.next(config(**change))
    assert (following.number, following.since) == (2, 1)
    assert not FIRST.leads_elsewhere(following)


@pytest.mark.parametrize(
    "change",
    [
        {"connection": {"password": "mate"}},
        {"connection": {"user": "other"}},
        {"connection": {"application_name": "shop"}},
        {"sync_settings": {"statement_timeout": "1s"}},
        {"pooler": "pgbouncer"},
    ],
    ids=str,
)
def test_another_login_makes_other_connections_to_the_same_place(change: dict[str, Any]) -> None:
    """Connections are replaced one for one: until the last one is, both kinds are good."""
    following = FIRST.next(config(**change))
    assert (following.number, following.since) == (2, 2)
    assert not FIRST.leads_elsewhere(following)


@pytest.mark.parametrize(
    "change",
    [
        {"host": "other"},
        {"hostaddr": "10.0.0.1"},
        {"port": "5433"},
        {"dbname": "audit"},
        {"service": "orders"},
        {"target_session_attrs": "primary"},
    ],
    ids=str,
)
def test_another_place_is_told_from_another_login(change: dict[str, str]) -> None:
    """No client may get a connection to the old place once the new one works."""
    following = FIRST.next(config(change))
    assert (following.number, following.since) == (2, 2)
    assert FIRST.leads_elsewhere(following)
    assert following.leads_elsewhere(FIRST)


def test_a_forced_reload_replaces_connections_although_nothing_changed() -> None:
    """The same configuration, a new number, and new connections to the same place."""
    forced = FIRST.forced(FIRST.config)
    assert (forced.number, forced.since) == (2, 2)
    assert not FIRST.leads_elsewhere(forced)


def test_a_version_remembers_when_its_connections_changed_last() -> None:
    """A description after a password: connections of the second version still do for the third."""
    second = FIRST.next(config({"password": "mate"}))
    third = second.next(config({"password": "mate"}, description="of mate"))
    back = third.next(config(description="of tea"))
    assert (third.number, third.since) == (3, 2)
    assert (back.number, back.since) == (4, 4), "the first password again is another login"
