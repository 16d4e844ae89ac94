"""A key is declared once: everything else that knows the keys follows from the declaration."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

import pgmonkey
from pgmonkey import Registry
from pgmonkey.config.json_schema import libpq, schema
from pgmonkey.config.loader import load_file
from pgmonkey.config.models import PSYCOPG_KEYS, effect_of, hints_of
from pgmonkey.errors import ConfigError
from tests.docs.snippets import ROOT

BASE = {"connection_settings": {"host": "db", "dbname": "orders", "user": "app"}}


def declared_keys() -> dict[str, dict]:
    """Return every key of the schema by its dotted name; a setting stands for those of a server."""
    keys = {}
    for key, found in schema()["properties"].items():
        if "properties" in found:
            keys |= {f"{key}.{name}": one for name, one in found["properties"].items()}
        elif "propertyNames" in found:
            keys[f"{key}.jit"] = {}
        else:
            keys[key] = found
    return keys


KEYS = declared_keys()
# These stand for other keys: see test_url.py and test_older_api.py.
for one in ("connection_settings.url", "pool_settings.kwargs", "async_pool_settings.kwargs"):
    del KEYS[one]


def with_key(key: str, value: str) -> dict:
    """Return the smallest file with one key more, or with another value of it."""
    section, _, name = key.partition(".")
    return BASE | {section: {**BASE.get(section, {}), name: value} if name else value}


@pytest.fixture
def changed(tmp_path):
    """Return the text of a good file in which one key has another value than in BASE."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    certificate.chmod(0o600)

    def changed(key):
        found = KEYS[key]
        flag = "false" if found.get("default") is True else "true"
        choices = found["anyOf"][0].get("enum", ()) if found else ()
        for value in ("7", flag, *choices, str(certificate)):
            text = yaml.safe_dump(with_key(key, value))
            path = tmp_path / "candidate.yaml"
            path.write_text(text)
            try:
                load_file(path)
            except ConfigError:
                continue
            if value != found.get("default"):
                return text
        raise AssertionError(f"no value of {key} was found that differs from the default")

    return changed


@pytest.mark.parametrize("key", KEYS)
def test_a_change_of_any_key_is_seen(tmp_path, changed, key):
    """The digest differs, and the key is among those that changed, with what the change does."""
    path = tmp_path / "orders.yaml"
    path.write_text(yaml.safe_dump(BASE))
    before = load_file(path)
    path.write_text(changed(key))
    after = load_file(path)
    assert before.digest != after.digest
    assert after.changed_keys(before)[key] == effect_of(key)
    reconnects = before.connect_digest != after.connect_digest
    assert reconnects == (effect_of(key) == "reconnect")


def test_a_reload_applies_a_change_of_any_key(tmp_path, changed):
    """One database for each key: all of them have the new version, and name the key."""
    directory = tmp_path / "registry.d"
    directory.mkdir()
    names = {f"db{number}": key for number, key in enumerate(KEYS)}
    for name in names:
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(BASE))
    with Registry(directory, watch=False) as registry:
        for name, key in names.items():
            (directory / f"{name}.yaml").write_text(changed(key))
        report = registry.reload()
        databases = {one.name: one for one in registry.status().databases}
    assert set(report.applied) == set(names), report
    for name, key in names.items():
        assert databases[name].version == 2
        assert key in databases[name].history[-1].details


@pytest.mark.parametrize("key", KEYS)
def test_a_key_shows_in_the_redacted_configuration(tmp_path, changed, key):
    """Pages, events and `pgmonkey show` have every key that a file sets; secrets are masked."""
    path = tmp_path / "orders.yaml"
    path.write_text(changed(key))
    section, _, name = key.partition(".")
    shown = load_file(path).redacted()
    assert name in shown[section] if name else section in shown


def test_every_key_is_explained_in_the_documentation():
    """docs/configuration.md has every key that a file may have."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    ours = {*hints_of(()), *hints_of(("pool_settings",)), *PSYCOPG_KEYS, "url"}
    same_libpq = libpq() in reference
    keys = {key.rpartition(".")[2] for key in KEYS if not key.endswith(".jit")} | {"url"}
    missing = {key for key in keys if f"`{key}`" not in page and (same_libpq or key in ours)}
    assert missing == set()


def test_every_key_is_read_somewhere():
    """A key that no code reads would do nothing. What a connection gets, it gets as a whole."""
    package = Path(pgmonkey.__file__).parent
    read = {
        node.attr
        for path in package.rglob("*.py")
        if path != package / "config" / "models.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    # Only the hash of everything that is public reads the revision: that is its use. The other one
    # is of pgmonkey 4.0, and its description says that it has no effect.
    unread = {*hints_of(()), *hints_of(("pool_settings",))} - read
    assert unread == {"revision", "reconnect_timeout"}


def test_the_revision_is_read_by_the_public_hash(tmp_path):
    """Two pods whose secrets have other versions have other hashes."""
    path = tmp_path / "orders.yaml"
    hashes = set()
    for revision in ("1", "2"):
        path.write_text(yaml.safe_dump(with_key("revision", revision)))
        hashes.add(load_file(path).public_hash)
    assert len(hashes) == 2


def test_keys_that_begin_with_x_are_the_users_own(tmp_path, canary):
    """They may hold what other places refer to; nothing in them is read, checked, or a change."""
    path = tmp_path / "orders.yaml"
    text = """
x-server: &server
  host: {host}
  dbname: orders
x-secret: &secret {{from_file: password}}
x-owner: ${{NOT_SET}}
x-missing: {{from_file: missing}}
connection_settings:
  <<: *server
  user: app
  password: *secret
"""
    (tmp_path / "password").write_text(canary.secret(), encoding="utf-8")
    path.write_text(text.format(host="db"), encoding="utf-8")
    config = load_file(path)
    shown = config.redacted()
    assert shown["connection_settings"]["host"] == "db"
    assert not [key for key in shown if key.startswith("x-")]
    path.write_text(text.format(host="db") + "x-note: new\n", encoding="utf-8")
    assert load_file(path).digest == config.digest
    path.write_text(text.format(host="db-2"), encoding="utf-8")
    assert load_file(path).digest != config.digest


def test_defaults_may_have_keys_of_their_own(tmp_path):
    """In a section, such a key is unknown as any other."""
    (tmp_path / "_defaults.yaml").write_text("x-team: shop\n", encoding="utf-8")
    (tmp_path / "orders.yaml").write_text(yaml.safe_dump(BASE), encoding="utf-8")
    with Registry(tmp_path, watch=False, metrics=None) as registry:
        assert list(registry) == ["orders"]
    broken = {**BASE, "pool_settings": {"x-max": 3}}
    (tmp_path / "orders.yaml").write_text(yaml.safe_dump(broken), encoding="utf-8")
    with pytest.raises(ConfigError, match='unknown key "x-max"'):
        load_file(tmp_path / "orders.yaml")
