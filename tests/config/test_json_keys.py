"""`json_key`: one member of a JSON document, as secret stores of clouds write them."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmonkey import load_config
from pgmonkey.config.explain import explain
from pgmonkey.config.loader import load_file
from pgmonkey.config.redaction import redact_config
from pgmonkey.config.secret_files import SecretFileError, json_member
from pgmonkey.errors import ConfigError, EnvInterpolationError
from tests.kit.pairs import assert_pairs

#: What the rotation of RDS writes into its secret.
RDS = {
    "engine": "postgres", "host": "db.example", "username": "app", "password": "tea",
    "dbname": "orders", "port": 5433,
}  # fmt: skip


def reference(path, key):
    """Return the reference to a member."""
    return {"from_file": str(path), "json_key": key}


@pytest.fixture
def load(tmp_path):
    """Load a database whose settings are the members of one document."""

    def load(path, *, api=load_file, **more):
        keys = {"host": "host", "dbname": "dbname", "user": "username", "password": "password"}
        connection = {key: reference(path, member) for key, member in keys.items()} | more
        file = tmp_path / "orders.yaml"
        file.write_text(yaml.safe_dump({"connection_settings": connection}))
        return api(file)

    return load


def test_members_are_values(load, tmp_path):
    """Text and numbers, as they are written; `show` says which file they come from."""
    path = tmp_path / "secret.json"
    path.write_text(json.dumps(RDS) + "\n")
    config = load(path, port=reference(path, "port"))
    kwargs = config.connect_kwargs("pool")
    assert (kwargs["host"], kwargs["port"], kwargs["dbname"]) == ("db.example", "5433", "orders")
    assert (kwargs["user"], kwargs["password"]) == ("app", "tea")
    assert config.watched_directories == {str(tmp_path)}
    assert config.secret_modified == path.stat().st_mtime
    sources = {value.key: str(value.source) for value in explain(config)}
    assert sources["connection_settings.user"].endswith(f", secret file {path}")


def test_the_name_of_a_member_may_have_references(load, tmp_path, monkeypatch):
    """As the path may, so that one file declares a database of each stage."""
    path = tmp_path / "secret.json"
    path.write_text(json.dumps(RDS | {"production": {"password": "mate"}}))
    monkeypatch.setenv("STAGE", "production")
    config = load(path, password=reference(path, "${STAGE}.password"))
    assert config.connect_kwargs("pool")["password"] == "mate"
    monkeypatch.delenv("STAGE")
    with pytest.raises(ConfigError) as caught:
        load(path, password=reference(path, "${STAGE}.password"))
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == (
        "reference.unset",
        "connection_settings.password.json_key",
    )


def test_a_url_may_be_a_member(load, tmp_path):
    """Some stores write the whole URI beside its parts."""
    path = tmp_path / "secret.json"
    path.write_text(json.dumps(RDS | {"uri": "postgresql://other:mate@db/orders?sslmode=disable"}))
    config = load(path, url=reference(path, "uri"))
    assert config.connect_kwargs("pool")["sslmode"] == "disable"
    assert config.connect_kwargs("pool")["user"] == "app"


@pytest.mark.parametrize(
    "document, key, value",
    [
        ('{"a": "x"}', "a", "x"),
        ('{"a": {"b": {"c": "x"}}}', "a.b.c", "x"),
        ('{"a": {"b": "x"}, "a.b": "y"}', "a.b", "y"),
        ('{"a": 5432}', "a", "5432"),
        ('{"a": 1e400}', "a", "1e400"),
        ('{"a": -0.10}', "a", "-0.10"),
        (f'{{"a": 1{"0" * 10_000}}}', "a", f"1{'0' * 10_000}"),
        ('{"a": " x\\n"}', "a", " x\n"),
        ('{"a": "${HOME}"}', "a", "${HOME}"),
        ('\n{"a":\r\n"x"}\n\n', "a", "x"),
    ],
)
def test_a_member_is_its_text(document, key, value):
    """Nothing is rounded, trimmed or interpolated; dots lead into members of members."""
    assert json_member(document.encode(), key) == value


@pytest.mark.parametrize(
    "document, code",
    [
        ("", "secret.empty"),
        ("tea", "secret.json"),
        ('{"a": "tea"', "secret.json"),
        ('{"a": "tea"} x', "secret.json"),
        ('"tea"', "secret.json"),
        ('["tea"]', "secret.json"),
        ("[" * 100_000, "secret.json"),
        ('{"b": "tea"}', "secret.json_key"),
        ('{"a": null}', "secret.json_key"),
        ('{"a": true}', "secret.json_key"),
        ('{"a": NaN}', "secret.json_key"),
        ('{"a": -Infinity}', "secret.json_key"),
        ('{"a": ["tea"]}', "secret.json_key"),
        ('{"a": {"b": "tea"}}', "secret.json_key"),
        ('{"a": ""}', "secret.json_key"),
    ],
)
def test_other_documents_are_problems(document, code):
    """No JSON, no such member, neither text nor number: a code, and no value."""
    with pytest.raises(SecretFileError) as caught:
        json_member(document.encode(), "a")
    assert caught.value.code == code
    assert "tea" not in f"{caught.value} {caught.value.hint}"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "key, near", [("login.pasword", "password"), ("logn.password", "login"), ("an.nme", "an.name")]
)
def test_the_hint_names_a_member_of_the_same_level(key, near):
    """Also inside of a member, and one whose name has a dot."""
    with pytest.raises(SecretFileError) as caught:
        json_member(b'{"login": {"password": "tea"}, "an.name": "mate"}', key)
    assert caught.value.hint == f'did you mean "{near}"?'


def test_the_hint_names_nothing_inside_of_a_text():
    """A text has no members, and its characters may be a secret."""
    with pytest.raises(SecretFileError) as caught:
        json_member(b'{"password": "tea"}', "password.t")
    assert caught.value.hint is None


@settings(deadline=None, max_examples=50)
@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=9,
    ),
    key=st.text(min_size=1),
)
def test_any_document_gives_a_text_or_an_error(document, key):
    """Whatever is in it, nothing else comes out."""
    if isinstance(document, dict) and document:
        key = next(iter(document))
    try:
        value = json_member(json.dumps(document).encode(), key)
    except SecretFileError:
        value = None
    if value is not None:
        assert value in (document[key], json.dumps(document[key]))


def test_what_cannot_be_sent_is_a_problem(load, tmp_path):
    """A NUL, and half of a surrogate pair, which JSON can write."""
    path = tmp_path / "secret.json"
    for text, code in (("\0", "config.nul"), ("\ud800", "reference.encoding")):
        path.write_text(json.dumps(RDS | {"password": f"te{text}a"}))
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert [problem.code for problem in caught.value.problems] == [code]


def test_no_value_of_a_document_is_shown(load, tmp_path, canary):
    """In a problem of another member, in a config, in the older API."""
    path = tmp_path / "secret.json"
    path.write_text(json.dumps(RDS | {"password": canary.secret(), "port": canary.secret()}))
    config = load(path)
    canary.check(f"{config} {config.redacted()} {explain(config)}")
    with pytest.raises(ConfigError) as caught:
        load(path, port=reference(path, "port"))
    (problem,) = caught.value.problems
    assert problem.message.endswith(f"; the value comes from the file {path}")
    canary.check(str(caught.value))
    written = {"password": reference(path, "password")}
    assert redact_config(written) == written
    assert load(path, api=load_config)["connection_settings"]["password"] == written["password"]
    with pytest.raises(EnvInterpolationError, match="references are not resolved here"):
        load(path, api=lambda file: load_file(file, resolve=False, isolate=False))


@pytest.mark.parametrize("beside", ["from_env", "other", "json_keys"])
def test_nothing_else_stands_beside_it(load, tmp_path, beside):
    """The hint shows the form."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "x", password={**reference("x", "password"), beside: "x"})
    problems = [one for one in caught.value.problems if one.code == "reference.malformed"]
    assert problems[0].hint == "a member of a JSON document is {from_file: PATH, json_key: NAME}"


@pytest.mark.parametrize("replace", ["renamed", "volume"])
def test_user_and_password_of_a_document_are_a_pair(load, tmp_path, volume, replace):
    """Also where a plain file is replaced, and no directory: the document is read once."""
    path = volume.path("secret.json") if replace == "volume" else tmp_path / "secret.json"

    def write(number):
        text = json.dumps(RDS | {"username": f"u{number}", "password": f"p{number}"})
        if replace == "volume":
            volume.write({"secret.json": text})
        else:
            (tmp_path / "new").write_text(text)
            (tmp_path / "new").replace(path)

    assert_pairs(write, lambda: load(path), states=15)
