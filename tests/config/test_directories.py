from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgmonkey import Registry
from pgmonkey.config import loader
from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.errors import RegistryConfigError

GOOD = "connection_settings: {host: db.example, dbname: orders, user: app, password: tea}\n"


@pytest.fixture
def directory(tmp_path):
    """A registry directory with two good databases, written long ago."""
    path = tmp_path / "registry.d"
    path.mkdir()
    for name in ("orders", "events"):
        put(path / f"{name}.yaml", GOOD)
    return path


@pytest.fixture
def made(monkeypatch):
    """The names of the databases that were made, in order: what a scan really did."""
    names = []
    real = loader.build_config

    def build_config(tree, positions, **kwargs):
        names.append(positions.name)
        return real(tree, positions, **kwargs)

    monkeypatch.setattr(loader, "build_config", build_config)
    return names


def put(path, text, *, age=60):
    """Write a file as if it had been written some seconds ago."""
    path.write_text(text)
    then = path.stat().st_mtime_ns - age * 1_000_000_000 - 1
    os.utime(path, ns=(then, then))


def codes(scan):
    """Return file name and code of every problem."""
    return [(Path(problem.path).name, problem.code) for problem in scan.all_problems()]


def test_the_files_of_a_directory_are_its_databases(directory):
    """`*.yaml` and `*.yml`; no hidden files, no subdirectories, nothing that starts with `_`."""
    put(directory / "audit.yml", GOOD)
    for ignored in (
        ".hidden.yaml",
        "_note.yaml",
        "orders.yaml~",
        "README",
        "x.json",
        ".x.yaml.swp",
    ):
        put(directory / ignored, "{")
    (directory / "sub").mkdir()
    put(directory / "sub" / "deeper.yaml", "{")
    scan = DirectoryLoader(directory).scan()
    scan.raise_for_problems()
    assert set(scan.configs) == scan.present == {"audit", "events", "orders"}
    assert scan.watched_directories == {str(directory)}
    assert scan.directory_ok


def test_all_problems_of_all_files_come_at_once(directory):
    """Bad files don't hide each other, nor harm good ones."""
    put(directory / "bad.yaml", "connection_type: x\nconnection_settings: {host: a, port: b}\n")
    put(directory / "worse.yaml", "a: [")
    scan = DirectoryLoader(directory).scan()
    assert set(scan.configs) == {"orders", "events"}
    assert set(scan.problems) == {"bad", "worse"}
    with pytest.raises(RegistryConfigError) as caught:
        scan.raise_for_problems()
    problems = caught.value.problems
    assert [(Path(p.path).name, p.line, p.database) for p in problems] == [
        ("bad.yaml", 1, "bad"), ("bad.yaml", 2, "bad"), ("bad.yaml", 2, "bad"),
        ("bad.yaml", 2, "bad"), ("worse.yaml", 2, "worse"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["Orders.yaml", "-x.yaml", "1a.yaml", "a b.yaml", f"{'x' * 64}.yaml", "é.yaml", "a\x1b.yml"],
)
def test_a_bad_name_is_a_problem_of_its_own(directory, name):
    """It harms no other database, and cannot forge a line of output."""
    put(directory / name, GOOD)
    scan = DirectoryLoader(directory).scan()
    (problem,) = scan.general
    assert problem.code == "config.file_name"
    assert problem.path.isprintable()
    assert set(scan.configs) == {"orders", "events"}


def test_a_database_declared_twice_is_a_problem_of_both_files(directory):
    """Neither is guessed to be the right one."""
    put(directory / "orders.yml", GOOD)
    scan = DirectoryLoader(directory).scan()
    assert codes(scan) == [
        ("orders.yaml", "config.declared_twice"),
        ("orders.yml", "config.declared_twice"),
    ]
    assert "orders" in scan.present
    assert set(scan.configs) == {"events"}


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_regular_file_is_a_problem(directory, kind):
    """A directory or a pipe with the name of a config is refused, and not waited for."""
    path = directory / "strange.yaml"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    scan = DirectoryLoader(directory).scan()
    assert codes(scan) == [("strange.yaml", "config.not_regular")]


def test_a_dangling_link_is_present_but_bad(directory):
    """As while a volume is replaced: no deletion."""
    (directory / "lost.yaml").symlink_to("nowhere")
    scan = DirectoryLoader(directory).scan()
    assert codes(scan) == [("lost.yaml", "config.missing")]
    assert "lost" in scan.present


@pytest.mark.parametrize(
    "make, code",
    [
        (lambda path: None, "registry.missing"),
        (lambda path: path.write_text("x"), "registry.not_a_directory"),
        (lambda path: path.symlink_to(path), "registry.unreadable"),
    ],
)
def test_a_directory_that_is_none_is_no_deletion(tmp_path, make, code):
    """Missing, a file, a circle of links: one problem, and `directory_ok` is false."""
    path = tmp_path / "registry.d"
    make(path)
    scan = DirectoryLoader(path).scan()
    assert [problem.code for problem in scan.general] == [code]
    assert not scan.directory_ok
    with pytest.raises(RegistryConfigError):
        scan.raise_for_problems()


def test_an_emptied_file_is_present_and_bad(directory):
    """Emptying is no deletion; removing is one."""
    loader = DirectoryLoader(directory)
    loader.scan()
    put(directory / "orders.yaml", "")
    (directory / "events.yaml").unlink()
    scan = loader.scan()
    assert codes(scan) == [("orders.yaml", "config.empty")]
    assert scan.present == {"orders"}


def test_only_the_names_that_are_asked_for_are_opened(directory):
    """Another database's broken file or missing secret is none of this service's business."""
    put(directory / "broken.yaml", "{")
    put(directory / "Bad Name.yaml", "{")
    scan = DirectoryLoader(directory, names=["orders"]).scan()
    scan.raise_for_problems()
    assert set(scan.configs) == scan.present == {"orders"}


def test_a_name_without_a_file_is_missing(directory):
    """Asked for and not declared: a problem with the nearest name."""
    put(directory / "orders.yaml", "not: read\n")
    scan = DirectoryLoader(directory, names=["ordres", "events"]).scan()
    assert scan.missing == {"ordres"}
    with pytest.raises(RegistryConfigError, match=r"no file declares") as caught:
        scan.raise_for_problems()
    assert [one.hint for one in caught.value.problems] == ['did you mean "orders"?']


# Defaults


def test_defaults_are_merged_under_every_database(directory):
    """Section by section, key by key; an own value wins, a null takes a default away."""
    put(
        directory / "_defaults.yaml",
        "connection_settings: {sslmode: require, password: {from_env: NO_SUCH_VARIABLE}}\n"
        "pool_settings: {max_size: 3, timeout: 7}\nsync_settings: {jit: off}\nrequired: false\n",
    )
    put(
        directory / "orders.yaml",
        GOOD + "pool_settings: {max_size: 4}\nsync_settings: {jit: ~}\nasync_settings:\n",
    )
    scan = DirectoryLoader(directory).scan()
    scan.raise_for_problems()
    config = scan.configs["orders"]
    assert (config.pool("pool").max_size, config.pool("pool").timeout) == (4, 7)
    assert config.connect_kwargs("pool")["sslmode"] == "require"
    assert config.connect_kwargs("pool")["options"] == ""
    assert not config.required
    assert scan.configs["events"].pool("pool").max_size == 3


def test_a_problem_of_the_defaults_is_said_once_with_its_place(directory):
    """However many databases it breaks."""
    put(directory / "_defaults.yaml", "pool_settings:\n  max_size: x\n")
    scan = DirectoryLoader(directory).scan()
    assert set(scan.problems) == {"orders", "events"}
    (problem,) = scan.all_problems()
    assert (Path(problem.path).name, problem.line, problem.column) == ("_defaults.yaml", 2, 13)


def test_a_contradiction_to_the_defaults_says_where_both_are(directory):
    """The file has one half of it, the defaults have the other."""
    put(directory / "_defaults.yaml", "pool_settings:\n  max_size: 2\n")
    put(directory / "orders.yaml", GOOD + "pool_settings: {min_size: 5}\n")
    (problem,) = DirectoryLoader(directory).scan().all_problems()
    assert problem.message == (
        f"min_size is larger than max_size (max_size at {directory}/_defaults.yaml:2:13)"
    )
    assert (Path(problem.path).name, problem.line, problem.column) == ("orders.yaml", 2, 27)


def test_broken_defaults_break_every_database_until_they_are_mended(directory):
    """The problem is general, and each database's own."""
    loader = DirectoryLoader(directory)
    put(directory / "_defaults.yaml", "{")
    scan = loader.scan()
    assert len(scan.general) == len(scan.all_problems()) == 1
    assert set(scan.problems) == {"orders", "events"}
    put(directory / "_defaults.yaml", "required: no")
    scan = loader.scan()
    scan.raise_for_problems()
    assert not scan.configs["orders"].required
    (directory / "_defaults.yaml").unlink()
    assert loader.scan().configs["orders"].required


def test_the_environment_is_blamed_once(directory):
    """A variable that intrudes is one problem of the directory, not one of each file."""
    loader = DirectoryLoader(directory, environ={"PGTZ": "UTC"})
    (problem,) = loader.scan().all_problems()
    assert (problem.path, problem.code) == (str(directory), "environment.intrudes")


# Scanning again


def test_nothing_changed_means_nothing_is_made(directory, made):
    """The same objects come back, and no file is parsed again."""
    loader = DirectoryLoader(directory)
    first = loader.scan()
    made.clear()
    second = loader.scan()
    assert made == []
    assert all(second.configs[name] is first.configs[name] for name in first.configs)


def test_only_what_changed_is_made_again(directory, made):
    """One changed file among others."""
    loader = DirectoryLoader(directory)
    before = loader.scan().configs["orders"]
    made.clear()
    put(directory / "orders.yaml", GOOD.replace("tea", "mate"))
    after = loader.scan().configs["orders"]
    assert made == ["orders"]
    assert before.changed_keys(after) == {"connection_settings.password": "reconnect"}
    assert before.digest != after.digest


def test_a_rewrite_with_equal_content_changes_nothing(directory, made):
    """What counts is content."""
    loader = DirectoryLoader(directory)
    loader.scan()
    made.clear()
    put(directory / "orders.yaml", GOOD, age=30)
    loader.scan()
    assert made == []


def test_a_change_within_one_tick_of_the_clock_is_seen(directory):
    """Same size, same time of modification, same inode: a young file's content is compared."""
    path = directory / "orders.yaml"
    path.write_text(GOOD)
    status = path.stat()
    loader = DirectoryLoader(directory)
    before = loader.scan().configs["orders"]
    path.write_text(GOOD.replace("tea", "eat"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert loader.scan().configs["orders"].digest != before.digest


def test_a_changed_variable_is_seen(directory, made):
    """A reference is resolved again when its variable changes, unset or set."""
    environ = {}
    put(directory / "orders.yaml", GOOD.replace("tea", "'${TEA}'"))
    loader = DirectoryLoader(directory, environ=environ)
    assert codes(loader.scan()) == [("orders.yaml", "reference.unset")]
    environ["TEA"] = "green"
    first = loader.scan().configs["orders"]
    environ["TEA"] = "black"
    second = loader.scan().configs["orders"]
    assert first.changed_keys(second) == {"connection_settings.password": "reconnect"}
    made.clear()
    loader.scan()
    assert made == []


def test_a_swapped_secret_is_seen(directory, volume, made):
    """A Kubernetes volume changes; its directory is watched, also while the secret is missing."""
    put(
        directory / "orders.yaml",
        GOOD.replace("tea", "{from_file: %s}" % volume.path("password")),  # noqa: UP031 - the text is full of braces
    )
    loader = DirectoryLoader(directory)
    scan = loader.scan()
    assert codes(scan) == [("orders.yaml", "secret.missing")]
    assert scan.watched_directories == {str(directory), str(volume.directory)}
    volume.write({"password": "one"})
    first = loader.scan().configs["orders"]
    volume.write({"password": "two"})
    scan = loader.scan()
    assert scan.configs["orders"].connect_kwargs("pool")["password"] == "two"
    assert first.connect_digest != scan.configs["orders"].connect_digest
    assert scan.watched_directories == {str(directory), str(volume.directory)}
    volume.write({})
    assert codes(loader.scan()) == [("orders.yaml", "secret.missing")]


def test_a_config_map_of_files_is_read_through_its_links(tmp_path, made):
    """The registry directory may itself be a Kubernetes volume."""
    from tests.kit.secret_volume import SecretVolume

    volume = SecretVolume(tmp_path / "registry.d")
    volume.write({"orders.yaml": GOOD, "_defaults.yaml": "required: false"})
    loader = DirectoryLoader(volume.directory)
    assert not loader.scan().configs["orders"].required
    volume.write({"orders.yaml": GOOD, "_defaults.yaml": "required: true", "events.yaml": GOOD})
    scan = loader.scan()
    scan.raise_for_problems()
    assert scan.configs["orders"].required
    assert scan.present == {"orders", "events"}


def test_an_unknown_name_is_said_with_near_ones(directory):
    """The error says what was asked for, where, near names, and how many there are."""
    put(directory / "orders_old.yaml", GOOD)
    with Registry(directory) as registry, pytest.raises(KeyError) as caught:
        registry.get("ordres")
    assert str(caught.value) == (
        f'no database "ordres" in {directory}; did you mean "orders" or "orders_old"? (3 declared)'
    )
