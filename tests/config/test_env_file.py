"""Variables from a mapping and from a `.env` file, instead of the environment."""

from __future__ import annotations

import os
import subprocess
from collections import ChainMap
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgmonkey import (
    EnvInterpolationError,
    PGConnectionManager,
    Registry,
    RegistryConfigError,
    load_config,
    read_env_file,
)
from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.config.env_file import Variables, parse_env
from pgmonkey.config.explain import explain
from pgmonkey.errors import ConfigError
from tests.kit.command import invoke

ORDERS = """\
connection_settings:
  host: ${ORDERS_HOST:-localhost}
  dbname: orders
  user: {from_env: ORDERS_USER}
  password: ${ORDERS_PASSWORD}
"""


@pytest.fixture
def directory(tmp_path):
    """A registry whose database needs variables, none of which is set."""
    path = tmp_path / "registry.d"
    path.mkdir()
    (path / "orders.yaml").write_text(ORDERS)
    return path


def values(text):
    """Return the variables of a text that has no problems."""
    found = {}
    assert list(parse_env(text, found)) == []
    return found


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        ("\n  \n# A=1\n   # B=2", {}),
        ("A=b", {"A": "b"}),
        ("A=b\r\nC=d\r\n", {"A": "b", "C": "d"}),
        ("export A=b\n  export\tC = d  \n", {"A": "b", "C": "d"}),
        ("A=\nB=''\nC=\"\"\n", {"A": "", "B": "", "C": ""}),
        ("A=b c  # d\nB=b#c\nC= # d\nD=#d", {"A": "b c", "B": "b#c", "C": "", "D": "#d"}),
        ("A='b # c'# \nB=2".replace("'# ", "' # "), {"A": "b # c", "B": "2"}),
        ("A='b\nc' # d\nB=2", {"A": "b\nc", "B": "2"}),
        ('A="b\nc"\nB=2', {"A": "b\nc", "B": "2"}),
        (r'A="\n\t\r\"\$\\\x"', {"A": '\n\t\r"$\\\\x'}),
        (r"A='\n${B}'", {"A": r"\n${B}"}),
        (r'A="\${B}"', {"A": "${B}"}),
        ("A=it's\nB=a=b\nC=$B", {"A": "it's", "B": "a=b", "C": "$B"}),
        ("A=1\nA=2", {"A": "2"}),
        ("A=postgresql://app:t%40e@db/x?a=b#c", {"A": "postgresql://app:t%40e@db/x?a=b#c"}),
    ],
)
def test_lines_are_variables(text, expected):
    """Plain, in single quotes, in double quotes; comments, `export` and line ends of Windows."""
    assert values(text) == expected


@pytest.mark.parametrize(
    "text, line, said",
    [
        ("A=1\nhunter2\nB=2", 2, "expected NAME=value"),
        ("A: hunter2", 1, "expected NAME=value"),
        ("1A=hunter2", 1, "expected NAME=value"),
        ("export hunter2", 1, "expected NAME=value"),
        ("A='b\nc'\n\nB='hunter2\nC=1", 4, "a quote is not closed"),
        ('A="hunter2', 1, "a quote is not closed"),
        ("A='hunter2'x", 1, "there is text after the closing quote"),
        ("A='hunter2'#x", 1, "there is text after the closing quote"),
        ("A=hunter2${B}", 1, "${ refers to another variable, which is not replaced in this file"),
        ('A="hunter2\n${B}"', 1, "${ refers to another variable, which is not replaced in this file"),
    ],
)  # fmt: skip
def test_other_lines_are_problems(tmp_path, text, line, said):
    """With file and line; nothing of it is quoted."""
    path = tmp_path / ".env"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_env_file(path)
    (problem,) = caught.value.problems
    assert (problem.path, problem.line, problem.message) == (str(path), line, said)
    assert problem.code == "environment.syntax"
    assert "hunter2" not in str(caught.value)


def test_every_wrong_line_is_reported(tmp_path):
    """All at once; the rest of the file is read."""
    path = tmp_path / ".env"
    path.write_text("x\nA='1' 2\nB=3\ny\n")
    with pytest.raises(ConfigError) as caught:
        read_env_file(path)
    assert [problem.line for problem in caught.value.problems] == [1, 2, 4]


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "the file does not exist"),
        (b"A=\xff\n", "the file is not UTF-8 text"),
        (b"A=1\n" * 100_000, "the file is larger than 256 KiB"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem(tmp_path, content, said):
    """As a file of a database is; a byte order mark is ignored."""
    path = tmp_path / ".env"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_env_file(path)
    path.write_bytes(b"\xef\xbb\xbfA=1")
    assert dict(read_env_file(path)) == {"A": "1"}


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True)
TEXT = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]))


def quoted(value):
    """Write a value in double quotes."""
    for character in '\\"$':
        value = value.replace(character, f"\\{character}")
    return f'"{value}"'


@settings(deadline=None, max_examples=50)
@given(variables=st.dictionaries(NAMES, TEXT), rest=st.sampled_from(["", " # 'x", "\n\n#\n"]))
@example(variables={"A": "\\${\\\\$\"'\n#="}, rest="")
def test_every_value_can_be_written(variables, rest):
    """In double quotes with escapes; in single quotes if it has none; plain if it is simple."""
    lines = [f"{name}={quoted(value)}{rest}" for name, value in variables.items()]
    assert values("\n".join(lines)) == variables
    for name, value in variables.items():
        if "'" not in value:
            assert values(f"{name}='{value}'{rest}") == {name: value}
        if value.isalnum():
            assert values(f"{name}={value}{rest}") == {name: value}


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.sampled_from("AB=='\"\\ \n\r\t#${}export é")))
def test_any_text_is_variables_or_problems(text):
    """Nothing else comes out, and every line belongs to one or the other."""
    found = {}
    problems = list(parse_env(text, found))
    lines = text.replace("\r\n", "\n").split("\n")
    assert all(1 <= problem.line <= len(lines) for problem in problems)
    if not problems:
        assert len(found) <= sum("=" in line for line in lines)
    assert all(text.count(name) for name in found)


def test_a_shell_reads_the_same(tmp_path):
    """`set -a; . ./.env` of a file in quotes, which is how people tried it before."""
    path = tmp_path / ".env"
    path.write_text(
        "# x\nexport A='a b # \\n $C'\nB=\"a \\\"b\\\" \\\\ \\$C\"  # x\nC=plain-1\n\nD='a\nb'\nE=\n"
    )
    script = 'set -a; . "$1"; env -0'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", path], capture_output=True, check=True, env={}
    )
    shell = dict(one.split("=", 1) for one in done.stdout.decode().split("\0") if one)
    found = dict(read_env_file(path))
    assert {name: shell[name] for name in "ABCDE"} == found


def test_a_registry_takes_variables_from_a_mapping(directory, monkeypatch):
    """Instead of the environment, which stays as it is; `None` is not set, a number is its text."""
    monkeypatch.setenv("ORDERS_HOST", "elsewhere")
    monkeypatch.setenv("ORDERS_USER", "nobody")
    before = dict(os.environ)
    env = {"ORDERS_USER": "app", "ORDERS_PASSWORD": 7, "ORDERS_HOST": None}
    config = DirectoryLoader(directory, env=Variables(env)).scan().configs["orders"]
    kwargs = config.connect_kwargs("pool")
    assert (kwargs["host"], kwargs["user"], kwargs["password"]) == ("localhost", "app", "7")
    sources = {value.key: str(value.source) for value in explain(config)}
    assert sources["connection_settings.host"].endswith("default of ${ORDERS_HOST}")
    with Registry(directory, metrics=None, env=env) as registry:
        assert len(registry) == 1
    assert dict(os.environ) == before


def test_a_change_of_the_mapping_counts_at_the_next_reload(directory):
    """The mapping is looked at again, like the environment."""
    env = {"ORDERS_USER": "app", "ORDERS_PASSWORD": "tea"}
    with Registry(directory, metrics=None, watch=False, env=env) as registry:
        assert registry.reload().unchanged == ("orders",)
        env["ORDERS_PASSWORD"] = "mate"
        assert registry.reload().applied == ("orders",)
        del env["ORDERS_USER"]
        (problem,) = registry.reload().rejected["orders"]
        assert (problem.code, problem.line) == ("reference.unset", 4)


@pytest.mark.parametrize("text, code", [("\ud800", "reference.encoding"), ("\0", "config.nul")])
def test_what_no_environment_can_hold_is_a_problem_of_a_mapping(directory, text, code):
    """Half of a surrogate pair, which JSON can write, and a NUL."""
    env = {"ORDERS_USER": f"a{text}pp", "ORDERS_PASSWORD": "tea"}
    (problem,) = DirectoryLoader(directory, env=Variables(env)).scan().all_problems()
    assert (problem.key, problem.code) == ("connection_settings.user", code)


@pytest.mark.parametrize("env", [".env", Path(".env"), ["A=1"]])
def test_what_is_no_mapping_is_refused(directory, env):
    """The error says what makes a mapping of a file."""
    with pytest.raises(TypeError, match=r'env must be a mapping.* read_env_file\("\.env"\)'):
        Registry(directory, metrics=None, env=env)


def test_no_value_of_a_mapping_is_shown(directory, canary):
    """In no error, and in no frame of its traceback."""
    env = {"ORDERS_PASSWORD": canary.secret(), "ORDERS_HOST": "db:5432"}
    with pytest.raises(RegistryConfigError):
        Registry(directory, metrics=None, env=env)
    with pytest.raises(ValueError, match="probe_interval"):
        Registry(directory, metrics=None, env=env, probe_interval=0)
    canary.check(repr(Variables(env)))


def test_no_value_of_a_file_is_shown(tmp_path, canary):
    """Neither by a problem beside it, nor by what is returned."""
    path = tmp_path / ".env"
    path.write_text(f"A={canary.secret()}\n")
    canary.check(repr(read_env_file(path)))
    path.write_text(f"A={canary.secret()}\n{canary.secret()}\n")
    with pytest.raises(ConfigError):
        read_env_file(path)


def test_libpq_is_kept_from_the_real_environment(directory, monkeypatch):
    """A variable of libpq in the mapping does nothing; one in the environment is the problem it was."""
    env = {"ORDERS_USER": "app", "ORDERS_PASSWORD": "tea", "PGTZ": "UTC", "PGHOST": "nowhere"}
    scan = DirectoryLoader(directory, env=env).scan()
    scan.raise_for_problems()
    assert scan.configs["orders"].connect_kwargs("pool")["host"] == "localhost"
    monkeypatch.setenv("PGTZ", "UTC")
    problems = DirectoryLoader(directory, env=env).scan().all_problems()
    assert [problem.code for problem in problems] == ["environment.intrudes"]


def test_the_environment_over_a_file(directory, tmp_path):
    """The recipe of the documentation, and what `--env-file` does."""
    path = tmp_path / ".env"
    path.write_text("ORDERS_USER=app\nORDERS_PASSWORD=tea\n")
    env = ChainMap({"ORDERS_USER": "other"}, read_env_file(path))
    config = DirectoryLoader(directory, env=env).scan().configs["orders"]
    assert config.connect_kwargs("pool")["user"] == "other"


def test_commands_take_an_env_file(directory, tmp_path, canary):
    """`check`, `list` and `show`; what is set in the environment counts first."""
    path = tmp_path / ".env"
    path.write_text(f"ORDERS_USER=app\nORDERS_PASSWORD='{canary.secret()}'\nORDERS_HOST=db\n")
    assert invoke("check", directory, canary=canary).code == 1
    assert invoke("check", directory, "--env-file", path, canary=canary).code == 0
    done = invoke("list", directory, "--env-file", path, canary=canary, env={"ORDERS_HOST": "x"})
    assert done.code == 0
    assert done.out.splitlines()[1].split()[2] == "x"
    done = invoke("show", "orders", directory, "--env-file", path, "--source", canary=canary)
    assert f"{directory}/orders.yaml:4:9, environment variable ORDERS_USER" in done.out
    assert "ORDERS_USER" not in os.environ
    assert invoke("check", directory, "--env-file", path, "--static", canary=canary).code == 2
    path.write_text("ORDERS_USER app\n")
    done = invoke("check", directory, "--env-file", path, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"{path}:1: expected NAME=value  [environment.syntax]\n")


def test_an_env_file_may_be_named_for_every_command(directory, tmp_path, canary):
    """Before the command, or in a variable; that of the command counts first, then the one before it."""
    for name in ("own", "before", "variable"):
        (tmp_path / name).write_text(f"ORDERS_USER=app\nORDERS_PASSWORD=tea\nORDERS_HOST={name}\n")
    env = {"PGMONKEY_ENV_FILE": str(tmp_path / "variable")}
    before = ["--env-file", tmp_path / "before"]
    own = ["--env-file", tmp_path / "own"]

    def host(*words):
        done = invoke(*words, canary=canary, env=env)
        assert done.code == 0
        return done.out.splitlines()[1].split()[2]

    assert host(*before, "list", directory, *own) == "own"
    assert host(*before, "list", directory) == "before"
    assert host("list", directory) == "variable"


def test_commands_that_read_no_variables_take_no_notice_of_an_env_file(directory, tmp_path, canary):
    """One for every command is no reason to refuse: it may be in the environment of a hook."""
    assert invoke("--env-file", "no-such-file", "schema", canary=canary).code == 0
    (tmp_path / ".env").write_text("ORDERS_HOST='a b'\n")
    env = {"PGMONKEY_ENV_FILE": str(tmp_path / ".env")}
    done = invoke("check", directory, "--static", canary=canary, env=env)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_a_manager_looks_variables_up_in_its_mapping(directory, monkeypatch):
    """Instead of the environment, for files and dictionaries."""
    for name in ("ORDERS_USER", "ORDERS_PASSWORD"):
        monkeypatch.setenv(name, "not this one")
    path = directory / "orders.yaml"
    with PGConnectionManager(env={}) as manager:
        with pytest.raises(EnvInterpolationError, match="ORDERS_USER is not set"):
            manager.get_database_connection(path, resolve_env=True)
        with pytest.raises(EnvInterpolationError, match="ORDERS_USER is not set"):
            manager.get_database_connection_from_dict(load_config(path), resolve_env=True)
