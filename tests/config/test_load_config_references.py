"""References and secrets, through the API of 4.0."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgmonkey import EnvInterpolationError, PGConnectionManager, load_config, redact_config
from tests.kit import Canary, TemporaryDatabase
from tests.kit.manager import declare

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Resolve one value of `connection_settings.application_name`, or of another place."""
    monkeypatch.setenv("A", "aval")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)

    def load(value: Any, key: str = "application_name", **options: Any) -> Any:
        path = tmp_path / "config.yaml"
        content = {"connection_settings": {key: value}}
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return load_config(path, resolve_env=True, **options)["connection_settings"][key]

    return load


@pytest.mark.parametrize(
    "text, expected",
    [
        ("${A:-d}", "aval"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${UNSET:-d}", "d"),
        ("${UNSET-d}", "d"),
        ("${A:?m}", "aval"),
        ("${UNSET:-${A}}", "aval"),
        ("${A:-${UNSET}}", "aval"),
        ("${UNSET:-${UNSET:-x}}", "x"),
        ("pa$${A}ss", "pa${A}ss"),
        ("${A}-${A}", "aval-aval"),
        ("$A", "$A"),
    ],
)
def test_references_do_what_a_shell_user_expects(load: Load, text: str, expected: str) -> None:
    """Empty takes the default, defaults nest, `$${` is a literal `${`."""
    assert load(text) == expected


@pytest.mark.parametrize(
    "text", ["${UNSET:?m}", "${ A }", "${A", "${A:+x}", "${A:=x}", "${1A}", "${}", "${A $A"]
)
def test_a_malformed_reference_is_never_sent_to_a_server(load: Load, text: str) -> None:
    """It raises an EnvInterpolationError that names the key."""
    with pytest.raises(EnvInterpolationError, match="connection_settings.password"):
        load(text, "password")


def test_references_are_resolved_wherever_they_stand(load: Load, tmp_path: Path) -> None:
    """References in lists, and inside `from_file` and `from_env`, are resolved."""
    os.environ["NAME_OF"] = "A"
    (tmp_path / "secret").write_text("from-file\n", encoding="utf-8")
    try:
        assert load(["${A}", {"from_env": "A"}], "host") in (["aval", "aval"], "aval,aval")
        assert load({"from_env": "${NAME_OF}"}) == "aval"
        assert load({"from_file": "${UNSET:-" + str(tmp_path) + "}/secret"}) == "from-file"
    finally:
        del os.environ["NAME_OF"]


@pytest.mark.parametrize(
    "key, value",
    [
        ("password", "${UNSET:-x}"),
        ("sslpassword", "${UNSET:-x}"),
        ("password", ["${UNSET:-x}"]),
        ("scram_client_key", "${UNSET:-x}"),
        ("db_passwd", "${UNSET:-x}"),
        ("api_token", "${UNSET:-x}"),
    ],
)
def test_a_default_is_refused_on_everything_that_is_secret(
    load: Load, key: str, value: Any
) -> None:
    """Under any name and in any shape; `allow_sensitive_defaults` allows it."""
    with pytest.raises(EnvInterpolationError, match="default"):
        load(value, key)
    assert load(value, key, allow_sensitive_defaults=True) in ("x", ["x"])


@pytest.mark.parametrize(
    "config",
    [
        {"sslpassword": "SECRET"},
        {"db_password": "SECRET"},
        {"passwd": "SECRET"},
        {"api_key": "SECRET"},
        {"scram_client_key": "SECRET"},
        {"url": "postgresql://app:SECRET@db/orders"},
        {"conninfo": "host=db password=SECRET dbname=x"},
        {"replicas": [{"password": "SECRET"}]},
        {"secrets": {"one": "SECRET"}},
        {"password": {"nested": "SECRET"}},
        {"deep": [[{"a": [{"token": "SECRET"}]}]]},
        {3: {"password": "SECRET"}},
    ],
)
def test_redaction_masks_secrets_in_every_shape(config: Any) -> None:
    """Secrets are masked when nested, in lists, inside of URLs and connection strings, beside keys that are no text."""
    assert "SECRET" not in repr(redact_config(config))


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"pass\n", "pass"),
        (b"pass\r\n", "pass"),
        (b"pass\n\n", "pass\n"),
        (b"pa\rss\n", "pa\rss"),
        (b" pass ", " pass "),
    ],
)
def test_a_secret_file_loses_one_newline_and_nothing_else(
    load: Load, tmp_path: Path, content: bytes, expected: str
) -> None:
    """Everything else in the file is the password, white space included."""
    (tmp_path / "secret").write_bytes(content)
    assert load({"from_file": "secret"}, "password") == expected


@pytest.mark.parametrize(
    "content", [b"", b"\xef\xbb\xbfpass", b"\xff\xfe\x00", b"a\0b", b"x" * 70_000]
)
def test_a_secret_file_that_cannot_be_a_secret_is_refused(
    load: Load, tmp_path: Path, content: bytes
) -> None:
    """An empty, binary or huge file, or one with a byte order mark, raises; its bytes are not shown."""
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(EnvInterpolationError) as caught:
        load({"from_file": "secret"}, "password")
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value.__context__, UnicodeDecodeError)


@pytest.mark.parametrize("target", [None, ["a"], 3, "missing", ".", "fifo"])
def test_a_reference_to_what_is_no_file_is_refused_at_once(
    load: Load, tmp_path: Path, target: Any
) -> None:
    """So is null, a list, a number (a file descriptor!), a directory, and a pipe without a writer."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(EnvInterpolationError, match="connection_settings.password"):
        load({"from_file": target}, "password")


def test_no_object_that_a_program_holds_shows_the_password(
    tmp_path: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """Neither the handle nor what hangs on it has the password in plain sight."""
    config = declare(tmp_path, database)
    with PGConnectionManager() as manager:
        handle = manager.get_database_connection(config, "pool")
        with handle as connection:
            connection.execute("SELECT 1")
        seen: set[int] = set()
        todo: list[Any] = [manager, handle]
        while todo:
            one = todo.pop()
            if id(one) in seen or not type(one).__module__.startswith(("pgmonkey", "psycopg_pool")):
                continue
            seen.add(id(one))
            fields = list(getattr(one, "__dict__", {}).values())
            for slots in (getattr(kind, "__slots__", ()) for kind in type(one).__mro__):
                names = (slots,) if isinstance(slots, str) else slots
                fields += [getattr(one, name, None) for name in names]
            canary.check(repr(one), type(one).__name__)
            for value in fields:
                canary.check(repr(value), f"a field of {type(one).__name__}")
            todo += fields
            todo += [item for value in fields if isinstance(value, dict) for item in value.values()]
        assert len(seen) > 10
    gc.collect()


def test_all_missing_variables_are_named_at_once(load: Load, tmp_path: Path) -> None:
    """One error names every variable that is not set."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "connection_settings: {host: '${UNSET_1}', user: '${UNSET_2}', dbname: {from_env: UNSET_3}}\n",
        encoding="utf-8",
    )
    with pytest.raises(EnvInterpolationError) as caught:
        load_config(path, resolve_env=True)

    for name in ("UNSET_1", "UNSET_2", "UNSET_3"):
        assert name in str(caught.value)


def test_the_type_may_come_from_a_reference(
    tmp_path: Path, database: TemporaryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`connection_type: '${CT:-pool}'` is resolved first."""
    monkeypatch.delenv("CT", raising=False)
    config = declare(tmp_path, database, connection_type="${CT:-pool}")
    with PGConnectionManager() as manager:
        handle = manager.get_database_connection(config, resolve_env=True)
        assert handle.connection_type == "pool"
        monkeypatch.setenv("CT", "normal")
        handle = manager.get_database_connection(config, resolve_env=True)
        assert handle.connection_type == "normal"
