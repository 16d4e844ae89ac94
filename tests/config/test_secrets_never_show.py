"""Redaction: what is masked, and where a secret could slip out."""

from __future__ import annotations

import copy
import json
import pickle
import pprint
import time
import traceback
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from pgmonkey import ConfigError, load_config
from pgmonkey.config.loader import load_file
from pgmonkey.config.models import SECTIONS, hints_of
from pgmonkey.config.redaction import MASK, RedactedDict, Secret, is_sensitive, redact_config, scrub

# Texts that cannot be part of a mask, of a key, or of anything else around them.
SECRETS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).map(
    lambda text: f"Q7{text}7Q"
)


@given(value=SECRETS)
def test_a_secret_shows_nowhere(value):
    """However a secret is printed, copied or dumped, its text stays inside."""
    secret = Secret(value)
    shown = [repr(secret), str(secret), f"{secret:>40}", f"{secret!r}", "%s" % secret]  # noqa: UP031 - this is what is tested
    shown.append(json.dumps([secret], default=str))
    shown.append(pprint.pformat({"a": [secret]}))
    shown.append(repr([copy.copy(secret), copy.deepcopy({"x": secret})]))
    shown.append(secret.__structlog__())
    assert value not in " ".join(shown)
    assert secret.reveal() == value


def test_a_secret_refuses_what_would_carry_it_away():
    """No hash, no length, no iteration, no pickle, no attributes."""
    secret = Secret("tea")
    for attempt in (hash, len, iter, list, vars, pickle.dumps):
        with pytest.raises(TypeError):
            attempt(secret)
    with pytest.raises(AttributeError):
        secret.value = "x"


@given(one=SECRETS, other=SECRETS)
def test_secrets_compare_by_their_text(one, other):
    """Two secrets are equal if their texts are; a secret never equals a text."""
    assert (Secret(one) == Secret(other)) is (one == other)
    assert Secret(one) != one


@pytest.mark.parametrize(
    "key",
    [
        "password", "PASSWORD", "url", "sslkey", "sslcert", "sslrootcert", "sslpassword",
        "scram_client_key", "scram_server_key", "oauth_client_secret", "db_password", "PGPASSWORD",
        "api_key", "api-key", "AUTH_TOKEN", "credentials", "passwd", "private_key",
        "pasword", "Passwort", "passwrd", "passowrd", "p\u0430ssword", "pass-word", "password2",
        "passphrase", "key_passphrase", "passcode", "pass", "DB_PASS", "dbPass", "pgpass", "db.pass",
        "pw", "pwd", "userpwd", "psw", "pword", "password_old", "passwordHash", "sslpasword",
    ],
)  # fmt: skip
def test_sensitive_keys_are_known(key):
    """The keys of the contract are sensitive, in any case."""
    assert is_sensitive(key)


@pytest.mark.parametrize(
    "key",
    [
        "host", "user", "sslmode", "passfile", "PASSFILE", "password_encryption", "port", "power",
        "callback_url", "bypass", "compass", "passive", "keyword", "word", "ps_limit", "pool_settings", "past",
    ],
)  # fmt: skip
def test_other_keys_are_not(key):
    """What is no secret stays readable: passfile is the path of libpq's password file."""
    assert not is_sensitive(key)


def test_of_the_declared_keys_only_secrets_and_tls_files_are_sensitive():
    """No name of a key of ours or of libpq is mistaken for a misspelt password."""
    declared = {key for section in ((), *((one,) for one in SECTIONS)) for key in hints_of(section)}
    sensitive = {"password", "sslpassword", "sslkey", "sslcert", "sslrootcert", "url"}
    newer = {"scram_client_key", "scram_server_key", "oauth_client_secret"}  # libpq 18
    assert {key for key in declared if is_sensitive(key)} - newer == sensitive


@pytest.mark.parametrize("key", ["pasword", "passphrase", "pass", "pw"])
def test_a_password_under_a_misspelt_key_is_not_printed(tmp_path, canary, key):
    """`load_config` and `redact_config` mask it, and it is masked where it is repeated."""
    secret = canary.secret()
    path = tmp_path / "orders.yaml"
    path.write_text(f"connection_settings: {{host: db, {key}: {secret}}}\n")
    config = load_config(path)
    assert config["connection_settings"][key] == secret
    canary.check(f"{config} {redact_config(dict(config))}")
    path.write_text(f"connection_settings: {{host: db, {key}: {secret}, port: '{secret}'}}\n")
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    canary.check(str(caught.value))


def test_redaction_works_at_any_depth():
    """Lists, nested mappings and mappings below a sensitive key are masked; nothing is changed."""
    config = {
        "connection_settings": {"host": "db", "password": "tea", "port": 5432},
        "replicas": [{"password": "tea"}, {"sslpassword": ""}],
        "secrets": {"a": {"b": ["tea", None]}},
        "api_tokens": ["tea"],
        "empty": {"password": None, "token": ""},
        "reference": {"password": {"from_file": "/run/secrets/password"}},
        7: {"password": "tea"},
    }
    before = copy.deepcopy(config)
    assert redact_config(config) == {
        "connection_settings": {"host": "db", "password": MASK, "port": 5432},
        "replicas": [{"password": MASK}, {"sslpassword": ""}],
        "secrets": {"a": {"b": MASK}},
        "api_tokens": MASK,
        "empty": {"password": None, "token": ""},
        "reference": {"password": {"from_file": "/run/secrets/password"}},
        7: {"password": MASK},
    }
    assert config == before


@pytest.mark.parametrize(
    "text, expected",
    [
        ("postgresql://app:tea@db/orders", f"postgresql://app:{MASK}@db/orders"),
        ("postgresql://app:t@e:a@db/orders", f"postgresql://app:{MASK}@db/orders"),
        ("postgresql://app:te/a@db", f"postgresql://app:{MASK}@db"),
        ("postgresql://app:t?e#a@db", f"postgresql://app:{MASK}@db"),
        (
            "postgresql://db/x?user=a&password=tea&x=1",
            f"postgresql://db/x?user=a&password={MASK}&x=1",
        ),
        ("host=db password=tea user=a", f"host=db password={MASK} user=a"),
        ("host=db password='t e\\'a' user=a", f"host=db password={MASK} user=a"),
        ("host=db db_password = tea user=a", f"host=db db_password = {MASK} user=a"),
        ("https://db/x?api_token=tea&x=1", f"https://db/x?api_token={MASK}&x=1"),
        ("-c app.jwt_secret=t\\ ea -c geqo=off", f"-c app.jwt_secret={MASK} -c geqo=off"),
        ("--app.token=tea --geqo=off", f"--app.token={MASK} --geqo=off"),
        ("vault is sealed, token=tea", f"vault is sealed, token={MASK}"),
        ("http://db:5432/x", "http://db:5432/x"),
        ("plain text", "plain text"),
    ],
)
def test_secrets_inside_urls_connection_strings_and_options_are_masked(text, expected):
    """In any value, under any key."""
    assert redact_config({"description": text, "list": [text]}) == {
        "description": expected,
        "list": [expected],
    }


@pytest.mark.parametrize("piece", ["a", "a=", "a='", "password='", "a=\\", " ", "a = "])
def test_masking_takes_no_longer_than_reading(piece):
    """The time grows with the length of a text, whatever is in it: ten times more is not a hundred."""

    def took(number):
        text = piece * number + "="
        began = time.process_time()
        redact_config([text] * 20)
        return time.process_time() - began

    took(100)
    assert took(20_000) < 40 * max(took(2_000), 0.001)


def test_a_cycle_ends():
    """A mapping that contains itself is masked where it does."""
    config = {"a": 1}
    config["self"] = config
    assert redact_config(config) == {"a": 1, "self": MASK}


def test_what_is_no_mapping_is_returned():
    """A scalar is returned as it is."""
    assert redact_config(5) == 5
    assert redact_config(None) is None


@given(value=SECRETS, before=st.text(max_size=9), after=st.text(max_size=9))
@example(value="Q7 ' \\ \" 7Q", before="", after="")
def test_known_secrets_are_scrubbed_from_foreign_text(value, before, after):
    """As they are, quoted by Python, JSON, URLs and connection strings."""
    for form in (
        value, repr(value), json.dumps(value), quote(value), value.replace("\\", "\\\\").replace("'", "\\'"),
    ):  # fmt: skip
        scrubbed = scrub(f"{before} {form} {after}", [Secret(value)])
        assert form not in scrubbed
        assert value not in scrubbed


def test_short_secrets_are_masked_as_words_only():
    """Masking every letter of a one-letter password would tell what it is."""
    assert scrub('password "a" of a cat', [Secret("a")]) == f'password "{MASK}" of {MASK} cat'
    assert scrub("nothing", [Secret("")]) == "nothing"


def test_foreign_text_becomes_one_harmless_line():
    """Line breaks, escapes and direction marks cannot forge a line of a log."""
    assert scrub("a\nb\x1b[31m\x07\u202e\u2028c", []) == "a b [31m   c"
    assert scrub("Refused\n\tIs it up?\nDETAIL: Of it", []) == "Refused. Is it up? DETAIL: Of it"


def test_a_redacted_dict_prints_without_secrets_and_works_as_a_dict(canary):
    """print, pprint, rich, format and structlog show masks; the values are plain."""
    secret = canary.secret()
    config = RedactedDict(connection_settings=RedactedDict(host="db", password=secret))
    console = Console(file=None, record=True, quiet=False, width=200)
    with console.capture() as capture:
        console.print(config)
    shown = [str(config), repr(config), f"{config}", pprint.pformat(config), capture.get()]
    shown += [repr(config.copy()), repr(config | {"x": 1}), repr(copy.deepcopy(config))]
    shown += [repr(config["connection_settings"]), repr(config.__structlog__())]
    for text in shown:
        canary.check(text)
        assert MASK in text
    assert config["connection_settings"]["password"] == secret
    assert dict(**config["connection_settings"]) == {"host": "db", "password": secret}
    assert isinstance(config, dict)


def test_a_traceback_with_locals_shows_no_secret(canary):
    """A `Secret` in the frames of an exception stays masked."""
    secret = Secret(canary.secret())

    def fail(local):
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom") as caught:
        fail(secret)
    detailed = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    canary.check("".join(detailed.format()))
