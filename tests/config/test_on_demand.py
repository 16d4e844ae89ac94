"""Credentials made on demand, in files: who may declare them, what is shown, and what calls nothing."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pgmonkey import (
    ConfigError,
    Credentials,
    EnvInterpolationError,
    PGConnectionManager,
    Registry,
    RegistryConfigError,
    load_config,
)
from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.config.explain import explain
from pgmonkey.config.json_schema import schema
from pgmonkey.config.loader import load_file
from tests.kit import Canary, RegistryDirectory
from tests.kit.command import invoke
from tests.kit.database import TemporaryDatabase
from tests.kit.manager import declare

FROM_VAULT = {"from_resolver": "vault", "key": "db/orders"}


@pytest.fixture
def write(registry_dir: RegistryDirectory) -> Callable[..., Path]:
    """Write a file whose password is made on demand."""

    def write(password: Any, *, user: Any = "app", **sections: Any) -> Path:
        settings = {"host": "db", "dbname": "orders", "user": user, "password": password}
        return registry_dir.write("orders", {"connection_settings": settings, **sections})

    return write


def touching(directory: Path) -> tuple[dict[str, Any], Path]:
    """Return a command that leaves a trace, and the trace."""
    return {"from_command": ["touch", str(directory / "called")]}, directory / "called"


def test_no_other_account_may_write_a_file_with_a_command(
    write: Callable[..., Path], registry_dir: RegistryDirectory, tmp_path: Path
) -> None:
    """Whatever `trust` says; once the mode is right, the next look accepts the file."""
    command, _ = touching(tmp_path)
    write(command).chmod(0o666)
    loader = DirectoryLoader(registry_dir, trust="off")
    (problem,) = loader.scan().all_problems()
    assert (problem.code, problem.key) == (
        "file.untrusted",
        "connection_settings.password.from_command",
    )
    assert "can be changed by everybody (mode 0666)" in problem.message
    registry_dir.file("orders").chmod(0o644)
    assert loader.scan().all_problems() == ()


def test_the_defaults_count_if_the_command_is_there(registry_dir: RegistryDirectory) -> None:
    """The file that must be trusted is the one that has the command."""
    password = {"from_command": ["true"]}
    registry_dir.write("_defaults", {"connection_settings": {"password": password}}).chmod(0o666)
    registry_dir.write("orders", "connection_settings: {host: db, dbname: orders, user: app}\n")
    (problem,) = DirectoryLoader(registry_dir).scan().all_problems()
    assert (problem.code, Path(problem.path).name) == ("file.untrusted", "_defaults.yaml")


def test_a_resolver_may_be_declared_in_a_file_that_others_can_write(
    write: Callable[..., Path],
) -> None:
    """It runs no program of theirs; `trust` says what is checked."""
    write(FROM_VAULT).chmod(0o666)
    assert load_file(write(FROM_VAULT)).on_demand is not None


def test_a_check_without_a_server_calls_nothing(
    write: Callable[..., Path], registry_dir: RegistryDirectory, tmp_path: Path, canary: Canary
) -> None:
    """`check`, `list` and `show` run no command; a registry runs it at the first connect."""
    command, called = touching(tmp_path)
    write(command)
    for words in (["check"], ["list"], ["show", "orders", "--source"]):
        done = invoke(*words, "--dir", registry_dir, canary=canary)
        assert (done.code, done.err) == (0, "")
    Registry(registry_dir, metrics=None, watch=False).close()
    assert not called.exists()


def test_what_is_made_on_demand_is_shown_as_that(
    write: Callable[..., Path], canary: Canary
) -> None:
    """Where people look for it, with its place and where it comes from; the password as a mask."""
    config = load_file(write(FROM_VAULT, user=FROM_VAULT))
    found = {one.key: (one.value, str(one.source)) for one in explain(config)}
    value, source = found["connection_settings.user"]
    assert (value, source.endswith(", resolver vault")) == ("made on demand", True)
    value, source = found["connection_settings.password"]
    assert (value, source.endswith(", resolver vault")) == ("***REDACTED***", True)
    shown = [key for key in found if key.startswith("connection_settings.")]
    names = ["host", "dbname", "user", "password"]
    assert shown[: len(names)] == [f"connection_settings.{name}" for name in names]
    assert "db/orders" not in repr(config.on_demand)


def test_credentials_show_nothing(canary: Canary) -> None:
    """However they are printed."""
    made = Credentials(canary.secret(), user="app-7", expires_at=1.0)
    assert [repr(made), str(made), f"{made}"] == ["Credentials(***REDACTED***)"] * 3


def test_a_change_of_the_source_is_a_change_of_the_password(write: Callable[..., Path]) -> None:
    """Equal sources are one, so a file that is written again the same changes nothing."""
    first = load_file(write(FROM_VAULT))
    second = load_file(write(FROM_VAULT, description="orders"))
    third = load_file(write({**FROM_VAULT, "refresh": "1min"}))
    assert first.connect_digest == second.connect_digest
    assert list(first.changed_keys(third)) == ["connection_settings.password"]
    assert first.connect_digest != third.connect_digest
    assert first.public_hash == third.public_hash


def test_a_source_that_no_file_has_any_more_is_forgotten(write: Callable[..., Path]) -> None:
    """With what it gave last."""
    path = write(FROM_VAULT)
    assert load_file(path).on_demand is not None
    config = load_file(path)
    assert config.on_demand is not None
    gone = weakref.ref(config.on_demand.source)
    del config
    gc.collect()
    assert gone() is None


def test_a_resolver_that_nobody_gave_is_a_problem(
    write: Callable[..., Path], registry_dir: RegistryDirectory
) -> None:
    """With what was probably meant, or what to do."""
    write(FROM_VAULT)
    with pytest.raises(RegistryConfigError) as caught:
        Registry(registry_dir, metrics=None, resolvers={"valut": str})
    assert [one.code for one in caught.value.problems] == ["reference.no_resolver"]
    assert caught.value.problems[0].hint == 'did you mean "valut"?'
    with pytest.raises(RegistryConfigError, match="group pgmonkey.resolvers"):
        Registry(registry_dir, metrics=None)


def test_packages_declare_resolvers(
    write: Callable[..., Path],
    registry_dir: RegistryDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As entry points: imported when they are called, not when the file is loaded."""
    package = tmp_path / "packages"
    information = package / "shop-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[pgmonkey.resolvers]\nvault = shop_keys:make\n")
    (package / "shop_keys.py").write_text("def make(key):\n    raise LookupError(f'no {key}')\n")
    monkeypatch.syspath_prepend(package)
    write(FROM_VAULT)
    with Registry(registry_dir, metrics=None, watch=False) as registry:
        status = registry.probe("orders")
    assert status.last_error_reason == "credentials"
    assert str(status.last_error).endswith("the resolver vault failed: LookupError: no db/orders")


def test_a_program_without_the_resolver_says_so(
    write: Callable[..., Path], registry_dir: RegistryDirectory, canary: Canary
) -> None:
    """A check accepts the file: the function is that of another program. Online it cannot connect."""
    write(FROM_VAULT)
    done = invoke("check", registry_dir, "--online", canary=canary)
    assert done.code == 1
    assert "there is no resolver vault in this program" in done.out
    assert "[probe.credentials]" in done.out


def test_the_api_of_4_connects_with_a_command(database: TemporaryDatabase, tmp_path: Path) -> None:
    """`load_config` cannot give the value, and says so; without `resolve_env` it is a reference."""
    path = declare(tmp_path, database, connection={"password": {"from_command": ["./token"]}})
    program = tmp_path / "token"
    program.write_text(f"#!/bin/sh\necho {database.password}\n")
    program.chmod(0o755)
    with PGConnectionManager() as manager:
        handle = manager.get_database_connection(path, "normal", resolve_env=True)
        with handle as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(EnvInterpolationError, match=r"reference\.on_demand"):
        load_config(path, resolve_env=True)
    assert load_config(path)["connection_settings"]["password"].keys() == {"from_command"}
    with pytest.raises((ConfigError, EnvInterpolationError), match=r"reference\.unresolved"):
        PGConnectionManager().get_database_connection(path, "normal")


@pytest.mark.parametrize(
    "password, good",
    [
        ({"from_command": ["aws", "rds"], "refresh": "10min", "timeout": 5}, True),
        (FROM_VAULT, True),
        ({"from_resolver": "vault"}, True),
        ({"from_command": "aws rds"}, False),
        ({"from_command": ["aws"], "refesh": "10min"}, False),
        ({"from_command": ["aws"], "from_env": "TOKEN"}, False),
        ({"key": "db/orders"}, False),
    ],
)
def test_editors_know_the_references(password: Any, good: bool) -> None:
    """The schema agrees with the loader; only a user may come from a resolver as well."""
    judge = jsonschema.Draft7Validator(json.loads(json.dumps(schema())))
    settings = {"host": "db", "dbname": "orders", "user": "app"}
    assert judge.is_valid({"connection_settings": {**settings, "password": password}}) == good
    assert not judge.is_valid(
        {"connection_settings": {**settings, "host": {"from_command": ["a"]}}}
    )
