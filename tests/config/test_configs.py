from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from pgmonkey.config.loader import load_file

BASE = {
    "connection_settings": {"host": "db", "dbname": "d", "user": "u", "password": "tea"},
    "pool_settings": {"max_size": "5"},
}


@pytest.fixture
def load(tmp_path):
    """Load BASE with changes; a None removes a key."""

    def load(name="orders", **changes):
        lines = []
        for section in ("connection_settings", "pool_settings", "sync_settings"):
            lines.append(f"{section}:")
            values = BASE.get(section, {}) | changes.pop(section, {})
            lines += [f"  {key}: '{value}'" for key, value in values.items()]
        lines += [f"{key}: '{value}'" for key, value in changes.items()]
        path = tmp_path / f"{name}.yaml"
        path.write_text("\n".join(lines))
        return load_file(path)

    return load


CONNECTION_CHANGES = [
    {"connection_settings": {"host": "other"}},
    {"connection_settings": {"password": "mate"}},
    {"connection_settings": {"autocommit": "true"}},
    {"connection_settings": {"prepare_threshold": "0"}},
    {"sync_settings": {"jit": "off"}},
    {"pooler": "pgbouncer"},
]
OTHER_CHANGES = [
    {"pool_settings": {"max_size": "6"}},
    {"pool_settings": {"max_lifetime": "2h"}},
    {"timeout": "5"},
    {"description": "x"},
    {"required": "false"},
    {"leak_detection": "5s"},
    {"leak_stack": "true"},
    {"drain_timeout": "5s"},
    {"revision": "2"},
]


@pytest.mark.parametrize("change", CONNECTION_CHANGES, ids=str)
def test_what_a_connection_depends_on_changes_both_digests(load, change):
    """Its connections are replaced."""
    one, other = load(), load(**change)
    assert one.digest != other.digest
    assert one.connect_digest != other.connect_digest


@pytest.mark.parametrize("change", OTHER_CHANGES, ids=str)
def test_what_touches_no_connection_changes_one_digest(load, change):
    """It takes effect without a swap."""
    one, other = load(), load(**change)
    assert one.digest != other.digest
    assert one.connect_digest == other.connect_digest


@pytest.mark.parametrize("change", [*CONNECTION_CHANGES, *OTHER_CHANGES], ids=str)
def test_changed_keys_name_what_changed_without_values(load, change):
    """Dotted paths, in both directions."""
    one, other = load(), load(**change)
    ((section, value),) = change.items()
    key = f"{section}.{next(iter(value))}" if isinstance(value, dict) else section
    assert key in one.changed_keys(other)
    assert one.changed_keys(other) == other.changed_keys(one)
    assert one.changed_keys(load()) == {}


def test_equal_settings_in_other_words_are_equal(load):
    """`timeout: 1min` is `timeout: 60`; a default written out is the default."""
    assert load(timeout="1min").digest == load(timeout="60").digest
    assert load(timeout="30s", required="yes").digest == load().digest


def test_names_and_files_are_not_part_of_a_digest(load):
    """Two files that say the same are the same."""
    assert load("one").digest == load("two").digest


def test_digests_say_nothing_outside_of_the_process(load):
    """They are keyed: another process has others for the same password."""
    config = load()
    code = "import sys; from pgmonkey.config.loader import load_file; print(load_file(sys.argv[1]).digest.hex())"
    other = subprocess.run(
        [sys.executable, "-c", code, config.path], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert len(bytes.fromhex(other)) == len(config.digest)
    assert other != config.digest.hex()


def test_the_public_hash_is_the_same_in_every_process_and_holds_no_secret(load):
    """48 bits of what is not secret, the revision included."""
    config = load()
    code = "import sys; from pgmonkey.config.loader import load_file; print(load_file(sys.argv[1]).public_hash)"
    other = subprocess.run(
        [sys.executable, "-c", code, config.path], capture_output=True, text=True, check=True
    ).stdout
    assert int(other) == config.public_hash < 2**48
    assert load(connection_settings={"password": "mate"}).public_hash == config.public_hash
    assert load(revision="2").public_hash != config.public_hash
    assert load(pool_settings={"max_size": "9"}).public_hash != config.public_hash


def test_a_config_is_immutable_and_cannot_be_pickled(load, canary):
    """Nothing is assigned, nothing is carried away."""
    secret = canary.secret()
    config = load(connection_settings={"password": secret})
    with pytest.raises(AttributeError):
        config.name = "x"
    with pytest.raises(AttributeError):
        del config.name
    with pytest.raises(TypeError):
        pickle.dumps(config)
    canary.check(repr([getattr(config, name) for name in type(config).__slots__]))


def test_a_password_in_another_value_is_masked_there_too(load, canary):
    """In a description, a revision and a setting of another name, wherever it can be recognised."""
    secret = canary.secret()
    url = f"postgresql://app:{secret}@db/orders"
    config = load(
        connection_settings={"password": secret, "application_name": f"app-{secret}"},
        sync_settings={"app.url": url, "app.word": secret},
        description=url,
        revision=f"password={secret}",
    )
    canary.check(repr(config.redacted()))
    canary.check(config.description + config.revision)
    assert config.description == "postgresql://app:***REDACTED***@db/orders"
    other = canary.secret()
    changed = load(connection_settings={"password": other, "application_name": f"app-{other}"})
    same = load(connection_settings={"password": secret, "application_name": f"app-{secret}"})
    assert changed.public_hash == same.public_hash
    assert changed.digest != same.digest


def test_redacted_is_the_effective_configuration(load, canary):
    """With the defaults filled in, typed, and secrets masked."""
    shown = load(connection_settings={"password": canary.secret()}).redacted()
    assert shown["connection_settings"]["password"] == "***REDACTED***"
    assert shown["connection_settings"]["connect_timeout"] == "10"
    assert shown["pool_settings"]["max_size"] == 5
    assert shown["timeout"] == 30
    canary.check(repr(shown))
