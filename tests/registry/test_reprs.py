"""What objects of ours print: no environment, and no secret."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from pgmonkey import PgmonkeyError, Registry, load_config
from pgmonkey.config.redaction import Secret
from tests.kit import Canary

#: Not entered: what belongs to the whole process, and the one place that holds a secret.
_ENDS = (ModuleType, type, FrameType, Secret)


def is_ours(value: object) -> bool:
    """Tell whether the class of an object is of the package."""
    return type(value).__module__.split(".")[0] == "pgmonkey"


def reached(root: object) -> Iterator[object]:
    """Yield every object that can be reached from one, except through the environment itself."""
    outside = {id(os.environ), id(os.environ.__dict__), id(globals())}
    seen, waiting = set(outside), [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, _ENDS):
            continue
        seen.add(id(one))
        yield one
        found = gc.get_referents(one)
        # A function leads to its closure and its defaults; its globals are those of a module.
        waiting += [value for value in found if value is not getattr(one, "__globals__", None)]


@pytest.fixture
def directory(tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Declare databases with secrets from variables and files: good ones, dead ones, bad ones."""
    monkeypatch.setenv("UNRELATED", canary.secret())
    monkeypatch.setenv("ORDERS_PASSWORD", canary.secret())
    (tmp_path / "password").write_text(canary.secret())
    (tmp_path / "client.key").write_text(canary.secret())
    (tmp_path / "client.key").chmod(0o600)
    directory = tmp_path / "registry.d"
    directory.mkdir()
    base = "connection_settings: {host: 127.0.0.1, port: 1, dbname: orders, user: app, "
    (directory / "_defaults.yaml").write_text("timeout: 1s\n")
    (directory / "orders.yaml").write_text(f"{base}password: '${{ORDERS_PASSWORD}}'}}\n")
    (directory / "events.yaml").write_text(
        f"connection_type: pool\n{base}password: {{from_file: ../password}}, sslkey: ../client.key}}\n"
    )
    (directory / "later.yaml").write_text(f"connection_type: async_pool\n{base}}}\n")
    (directory / "bad.yaml").write_text(
        f"{base}password: '${{ORDERS_PASSWORD}}', sslmode: '${{ORDERS_PASSWORD}}'}}\n"
    )
    return directory


def test_nothing_that_a_registry_reaches_prints_the_environment(
    directory: Path, canary: Canary
) -> None:
    """The registry, its loader, its databases, their configs, records and errors."""
    with Registry(directory, strict=False) as registry:
        errors = []
        for name in ("orders", "events", "bad", "nowhere"):
            with pytest.raises(PgmonkeyError) as caught, registry.get(name):
                pass
            errors.append(caught.value)
        registry.reload()
        kinds = set()
        for one in reached([registry, registry.status(), *errors]):
            if is_ours(one) or isinstance(one, BaseException):
                kinds.add(type(one).__name__)
                canary.check(f"{one!r} {one!s}", f"the repr of a {type(one).__name__}")
        assert {
            "DirectoryLoader", "LoadOptions", "DatabaseConfig", "Sources", "SourceFile",
            "Record", "ConnectError", "ConfigError", "UnknownDatabaseError",
        } <= kinds  # fmt: skip


def test_nothing_that_loading_makes_prints_the_environment(directory: Path, canary: Canary) -> None:
    """A traceback that shows local variables has no secret from an object of ours."""
    kinds = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "return" or not frame.f_globals.get("__name__", "").startswith("pgmonkey."):
            return
        sys.setprofile(None)
        for value in frame.f_locals.values():
            if is_ours(value):
                kinds.add(type(value).__name__)
                canary.check(f"{value!r} {value!s}", f"the repr of a {type(value).__name__}")
        sys.setprofile(look)

    sys.setprofile(look)
    try:
        with Registry(directory, strict=False, watch=False):
            pass
        load_config(directory / "orders.yaml", resolve_env=True)
    finally:
        sys.setprofile(None)
    assert {"Resolution", "NamedFiles", "Snapshot", "KeyProblem", "YamlDocument"} <= kinds
