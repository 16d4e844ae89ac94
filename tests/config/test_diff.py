"""What a reload would change is decided from two configurations, or from values that are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgmonkey.config.diff import between_configs, between_values, of_registry
from pgmonkey.config.explain import explain
from pgmonkey.config.loader import load_file
from pgmonkey.config.settings import DatabaseConfig
from tests.kit import Canary

BASE = "connection_type: pool\nconnection_settings: {host: db-1, dbname: orders, user: app%s}\n"


@pytest.fixture
def config(tmp_path: Path):
    """Return the configuration of a text."""

    def load(text: str) -> DatabaseConfig:
        path = tmp_path / "orders.yaml"
        path.write_text(text)
        return load_file(path)

    return load


@pytest.mark.parametrize(
    "before, after, outcome",
    [
        (BASE % "", BASE % "", "nothing"),
        (BASE % "", BASE % "" + "description: tea\n", "nothing"),
        (BASE % "", BASE % "" + "pool_settings: {max_size: 20}\n", "resize"),
        (BASE % "", BASE % "" + "pool_settings: {max_size: 5}\n", "new_pool"),
        (BASE % "", BASE % "" + "pool_settings: {max_size: 20, max_idle: 5min}\n", "new_pool"),
        (BASE % "", BASE % ", sslmode: require", "rotate"),
        (BASE % "", BASE % "" + "sync_settings: {jit: off}\n", "rotate"),
        (BASE % "", BASE % "" + "pool_settings: {max_size: 20}\npooler: pgbouncer\n", "rotate"),
        (BASE % "", BASE % ", port: 5433", "cutover"),
        (BASE % "", BASE % ", target_session_attrs: read-write", "cutover"),
        (BASE % "", (BASE % ", sslmode: require").replace("db-1", "db-2"), "cutover"),
    ],
)
def test_the_outcome_is_the_most_that_a_key_does(before, after, outcome, config):
    """It touches nothing, resizes, makes another pool, rotates, or cuts over to another place."""
    old, new = config(before), config(after)
    assert between_configs(old, new).outcome == outcome
    shown = [{one.key: one.value for one in explain(each, sources=False)} for each in (old, new)]
    assert between_values("orders", *shown).outcome == outcome
    assert (outcome == "cutover") == (old.place != new.place)
    assert (outcome in ("rotate", "cutover")) == (old.connect_digest != new.connect_digest)


def test_each_key_has_its_values(config):
    """Every key that differs, with the effective value before and after it."""
    change = between_configs(
        config(BASE % ", connect_timeout: 5"),
        config((BASE % "").replace("db-1", "db-2") + "pool_settings: {max_size: 4}\n"),
    )
    assert [tuple(one) for one in change.keys] == [
        ("connection_settings.connect_timeout", "5", "10", "rotate"),
        ("connection_settings.host", "db-1", "db-2", "cutover"),
        ("pool_settings.max_size", 10, 4, "new_pool"),
    ]


def test_a_secret_is_compared_and_never_shown(config, canary: Canary):
    """Another password is a rotation; a secret of one side is masked where the other shows it."""
    old, new = canary.secret(), canary.secret()
    before = config(BASE % f", password: {old}" + f"description: {new}\n")
    after = config(BASE % f", password: {new}" + f"description: not {old}\n")
    change = between_configs(before, after)
    assert [(one.key, one.consequence) for one in change.keys] == [
        ("connection_settings.password", "rotate"),
        ("description", "nothing"),
    ]
    canary.check(repr(change), "the change")


def test_values_that_a_service_masks_are_named(config, canary: Canary):
    """They cannot be compared, so nothing is claimed of them."""
    shown = {
        one.key: one.value
        for one in explain(config(BASE % f", password: {canary.secret()}"), sources=False)
    }
    change = between_values("orders", shown, dict(shown))
    assert not change.differs
    assert change.masked == ("connection_settings.password",)


def test_a_key_of_another_version_changes_nothing(config):
    """A service may be newer or older than the command."""
    shown = {one.key: one.value for one in explain(config(BASE % ""), sources=False)}
    change = between_values("orders", {**shown, "pool_settings.colour": 3, "tea": True}, shown)
    assert change.outcome == "nothing"
    assert len(change.keys) == 2


def test_databases_come_go_and_are_rejected(config):
    """A file with problems is rejected; one that had problems before cannot be compared."""
    one = config(BASE % "")
    found = of_registry(
        {"orders": one, "b": one, "c": one, "d": None},
        {"orders": one, "b": None, "d": one, "e": one},
    )
    assert [(change.name, change.outcome) for change in found] == [
        ("b", "reject"),
        ("c", "remove"),
        ("d", "unknown"),
        ("e", "add"),
        ("orders", "nothing"),
    ]
