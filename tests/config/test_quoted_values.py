"""What a problem quotes of a file: a word or a number, and never what may be a secret."""

from __future__ import annotations

import string

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pgmonkey import EnvInterpolationError, load_config
from pgmonkey.config.loader import load_file
from pgmonkey.config.models import SECTIONS, hints_of
from pgmonkey.config.redaction import may_be_secret
from pgmonkey.errors import ConfigError

BASE = {"host": "db", "dbname": "orders", "user": "app"}
#: Where a secret ends up when a line slipped, and what else the file has there.
SLIPPED = {
    "value of port": {"connection_settings": BASE | {"port": "SECRET"}},
    "value of sslmode": {"connection_settings": BASE | {"sslmode": "SECRET"}},
    "value of a timeout": {"connection_settings": BASE, "timeout": "SECRET"},
    "value of connection_type": {"connection_settings": BASE, "connection_type": "SECRET"},
    "value of a pool": {"connection_settings": BASE, "pool_settings": {"max_size": "SECRET"}},
    "part of a value": {"connection_settings": BASE | {"sslmode": "require SECRET"}},
    "default": {"connection_settings": BASE | {"port": "${NOT_SET_HERE:-SECRET}"}},
    "section": {"connection_settings": BASE, "sync_settings": "SECRET"},
    "key": {"connection_settings": BASE | {"SECRET": "password"}},
    "key at the top": {"connection_settings": BASE, "SECRET": "x"},
    "session setting": {"connection_settings": BASE, "sync_settings": {"SECRET 1": "x"}},
    "variable": {"connection_settings": BASE | {"password": "${SECRET}"}},
    "message": {"connection_settings": BASE | {"password": "${NOT_SET_HERE:?SECRET}"}},
    "from_env": {"connection_settings": BASE | {"password": {"from_env": "SECRET"}}},
    "from_file": {"connection_settings": BASE | {"password": {"from_file": "SECRET"}}},
}


def message_of(tmp_path, document, secret, load=load_file):
    """Return the error of a file in which the secret is in the wrong place."""
    path = tmp_path / "orders.yaml"
    path.write_text(yaml.safe_dump(document).replace("SECRET", secret))
    with pytest.raises((ConfigError, EnvInterpolationError)) as caught:
        load(path)
    return str(caught.value)


@pytest.mark.parametrize("place", SLIPPED)
@pytest.mark.parametrize("secret", ["hunter2", "Tr0ub4dor3", "xKdJwQpLmZvT"])
def test_what_looks_like_a_secret_is_not_quoted(tmp_path, place, secret):
    """Letters with digits, or with capitals between them, in the place of a word or a number."""
    assert secret not in message_of(tmp_path, SLIPPED[place], secret)


@pytest.mark.parametrize("place", SLIPPED)
@pytest.mark.parametrize("key", ["password", "sslpassword", "pasword"])
def test_a_known_secret_is_not_quoted_whatever_it_looks_like(tmp_path, place, key):
    """Also if it is a short word: what equals a value of a sensitive key is not shown."""
    for secret in ("swordfish", "tea"):
        document = {**SLIPPED[place]}
        document["connection_settings"] = {"password": secret} | document["connection_settings"]
        document["connection_settings"] |= {key: secret} if key != "password" else {}
        if "SECRET" in str(document["connection_settings"].get("password")):
            document["connection_settings"]["sslpassword"] = secret
        assert secret not in message_of(tmp_path, document, secret).replace(str(tmp_path), "")


@pytest.mark.parametrize("place", ["value of port", "key", "variable", "from_env"])
def test_a_secret_from_elsewhere_is_known(tmp_path, monkeypatch, place):
    """The password that a variable or a file holds is not quoted from another key."""
    monkeypatch.setenv("ORDERS_PASSWORD", "swordfish")
    (tmp_path / "password").write_text("swordfish\n")
    for reference in ("${ORDERS_PASSWORD}", {"from_file": "password"}):
        document = {**SLIPPED[place]}
        document["connection_settings"] = document["connection_settings"] | {"passfile": None}
        document["connection_settings"]["sslpassword"] = reference
        assert "swordfish" not in message_of(tmp_path, document, "swordfish")


@pytest.mark.parametrize("place", ["variable", "from_env", "from_file", "value of port"])
def test_the_older_api_quotes_no_secret_either(tmp_path, place):
    """`load_config` reports a wrong reference or value without the secret in it."""
    load = lambda path: load_config(path, resolve_env=True)  # noqa: E731 - an argument, not a function
    assert "hunter2" not in message_of(tmp_path, SLIPPED[place], "hunter2", load)


@pytest.mark.parametrize(
    "place, text, said",
    [
        ("value of port", "http", 'got "http"'),
        ("value of sslmode", "verify_full", 'got "verify_full"'),
        ("value of a timeout", "5 weeks", 'got "5 weeks"'),
        ("value of a pool", "5_000", 'got "5_000"'),
        ("key", "pasword", 'connection_settings.pasword: unknown key "pasword"'),
        ("key", "poolMaxSize", 'unknown key "poolMaxSize"'),
        ("variable", "DB1_HOST", "environment variable DB1_HOST is not set"),
        ("from_env", "APP_USER", "environment variable APP_USER is not set"),
        ("from_file", "/run/secrets/db-7f9c8d6b5/password", "file /run/secrets/db-7f9c8d6b5/"),
        ("from_file", "secrets/password", "secret file secrets/password: does not exist"),
    ],
)
def test_words_numbers_and_paths_are_quoted(tmp_path, place, text, said):
    """Who wrote a wrong word sees which one."""
    assert said in message_of(tmp_path, SLIPPED[place], text)


def test_the_place_of_a_key_that_is_not_quoted_is_known(tmp_path):
    """Line and column remain, and the key is masked in the path of keys."""
    text = message_of(tmp_path, SLIPPED["key"], "hunter2")
    assert "orders.yaml:2:3: connection_settings.***REDACTED***: unknown key (not shown" in text


def test_no_declared_key_looks_like_a_secret():
    """Problems of declared keys always name them."""
    sections = ((), *((section,) for section in SECTIONS))
    assert not [key for section in sections for key in hints_of(section) if may_be_secret(key)]


LETTERS = st.text(string.ascii_lowercase, min_size=1, max_size=10)


@given(words=st.lists(LETTERS, min_size=1, max_size=4), between=st.sampled_from("_-. "))
def test_words_do_not_look_like_a_secret(words, between):
    """Names of keys and choices are made of words."""
    assert not may_be_secret(between.join(words))


@given(
    before=LETTERS, digits=st.text(string.digits, min_size=1), after=LETTERS.filter(lambda x: x[3:])
)
def test_digits_inside_of_a_word_look_like_a_secret(before, digits, after):
    """Whatever is around it."""
    word = f"{before}{digits}{after}x"
    assert may_be_secret(word)
    assert may_be_secret(f"require {word}")
    assert may_be_secret(word.upper())


@given(text=st.text(min_size=64, max_size=80))
def test_long_text_looks_like_a_secret(text):
    """A passphrase, a token, a key: no name and no number is as long."""
    assert may_be_secret(text)
