"""Relative paths: they are looked up once, whatever the program does to its working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgmonkey import PGConnectionManager, Registry
from pgmonkey.config.loader import load_file
from tests.kit.eventually import eventually
from tests.kit.registry_dir import RegistryDirectory

ORDERS = """
connection_type: pool
connection_settings:
  host: 127.0.0.1
  dbname: orders
  user: app
  password: {from_file: ../secrets/password}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program starts: a `registry.d`, and the secrets beside it."""
    home = tmp_path / "home"
    RegistryDirectory(home / "registry.d").write("orders", ORDERS)
    (home / "secrets").mkdir()
    (home / "secrets" / "password").write_text("first")
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Where the program goes: there are other files of the same names."""
    elsewhere = tmp_path / "elsewhere"
    RegistryDirectory(elsewhere / "registry.d").write("intruder", ORDERS)
    (elsewhere / "secrets").mkdir()
    (elsewhere / "secrets" / "password").write_text("intruder")
    return elsewhere


def password(registry: Registry) -> object:
    config = registry.config("orders")
    assert config is not None
    return config.connect_kwargs("pool")["password"]


@pytest.mark.parametrize("watch", [True, False])
def test_a_registry_keeps_its_directory_when_the_program_changes_its_own(
    home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, watch: bool
) -> None:
    """Rotations and new files arrive; a directory of the same name does not take over."""
    with Registry("registry.d", metrics=None, watch=watch) as registry:
        monkeypatch.chdir(elsewhere)
        (home / "secrets" / "password").write_text("second")
        RegistryDirectory(home / "registry.d").write("events", ORDERS)
        if not watch:
            registry.reload()
        eventually(lambda: password(registry) == "second", 10, "the rotation arrives")
        eventually(lambda: "events" in registry, 10, "the new file arrives")

        assert registry.names == ("events", "orders")
        config = registry.config("orders")
        assert config is not None
        assert config.watched_directories == {str(home / "secrets")}
        assert registry.path == home / "registry.d"
        assert registry.status().problems == ()
        assert {one.state for one in registry.status().databases} == {"idle"}


def test_a_link_to_a_registry_stays_a_link(
    home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that moves the link is taken, and `..` starts at the directory behind the link."""
    (home / "current").symlink_to("registry.d")
    with Registry("current", metrics=None, watch=False) as registry:
        monkeypatch.chdir(elsewhere)
        assert registry.path == home / "current"
        next_one = home / "releases" / "2" / "registry.d"
        RegistryDirectory(next_one).write("orders", ORDERS)
        (next_one.parent / "secrets").mkdir()
        (next_one.parent / "secrets" / "password").write_text("second")
        (home / "new").symlink_to(next_one)
        (home / "new").rename(home / "current")

        assert registry.reload().applied == ("orders",)
        assert password(registry) == "second"
        (next_one.parent / "secrets" / "password").write_text("third")
        config = registry.config("orders")
        assert config is not None
        (watched,) = config.watched_directories
        assert Path(watched).samefile(next_one.parent / "secrets")


def test_a_configuration_of_a_relative_file_keeps_its_files(
    home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secret starts at the file, TLS files at the working directory, as in 4.0: both of now."""
    text = ORDERS.replace("../secrets", "secrets") + "  sslrootcert: ca.crt\n"
    (home / "config.yaml").write_text(text)
    (home / "ca.crt").write_text("-----BEGIN CERTIFICATE-----")
    config = load_file("config.yaml", isolate=False)
    kwargs = config.connect_kwargs("normal")
    monkeypatch.chdir(elsewhere)

    assert (kwargs["password"], kwargs["sslrootcert"]) == ("first", str(home / "ca.crt"))
    assert config.watched_directories == {str(home / "secrets"), str(home)}
    assert config.is_current()
    for changed in (home / "secrets" / "password", home / "ca.crt"):
        before = changed.read_text()
        changed.write_text(f"{before}# changed")
        assert not config.is_current(), changed
        changed.write_text(before)
        assert config.is_current()


def test_a_relative_path_names_a_file_of_the_directory_of_each_call(
    home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same relative path in another working directory is another file, or none."""
    for directory, name in ((home, "ours"), (elsewhere, "theirs")):
        text = ORDERS.replace("dbname: orders", f"dbname: {name}").replace("127.0.0.1", "/nowhere")
        text = text.replace("../secrets", "secrets")
        (directory / "config.yaml").write_text(text)
    (elsewhere / "empty").mkdir()

    with PGConnectionManager() as manager:

        def ask_for(path: str) -> object:
            return manager.get_database_connection(path, "pool", resolve_env=True)

        ours = ask_for("config.yaml")
        monkeypatch.chdir(elsewhere)
        assert ask_for("config.yaml") is not ours
        assert ask_for("../home/config.yaml") is ours
        assert ask_for(str(home / "config.yaml")) is ours
        monkeypatch.chdir(elsewhere / "empty")
        with pytest.raises(FileNotFoundError):
            ask_for("config.yaml")
        assert manager.cache_info["size"] == 2
