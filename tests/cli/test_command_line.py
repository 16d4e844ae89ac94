"""The command line as a whole: help, usage, streams, completion, documentation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pgmonkey.cli.app import app
from pgmonkey.version import __version__
from tests.docs.commands import commands, leaves, options_of
from tests.docs.snippets import ROOT, snippets
from tests.kit import Canary
from tests.kit.command import command, environment, invoke, run

PAGE = ROOT / "docs" / "command-line.md"
COMMANDS = dict(leaves())
GROUPS = [[], ["pgconfig"]]
GOOD = "connection_settings: {host: db, dbname: orders, user: app}\n"


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A registry with one database."""
    directory = tmp_path / "registry.d"
    directory.mkdir()
    (directory / "orders.yaml").write_text(GOOD)
    return directory


def test_version_is_printed(canary: Canary) -> None:
    """`python -m pgmonkey --version` prints name and version on standard output, nothing else."""
    done = run("--version", canary=canary)
    assert (done.code, done.out, done.err) == (0, f"pgmonkey {__version__}\n", "")


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_the_commands(option: str, canary: Canary) -> None:
    """Help lists every command, in plain text."""
    done = invoke(option, canary=canary)
    assert done.code == 0
    assert app.commands.keys() <= set(done.out.split())
    assert "\x1b" not in done.out


@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_the_sentence_of_each_command_fits_its_line(group: list[str], canary: Canary) -> None:
    """On 80 columns the list of commands has one line for each, and none is cut short."""
    done = invoke(*group, "--help", canary=canary, env={"COLUMNS": "80"})
    listed = done.out.partition("Commands:\n")[2].splitlines()
    assert listed
    assert all(re.fullmatch(r"  \S+ +[A-Z].*[A-Za-z]\.", line) for line in listed)
    assert all(len(line) <= 80 for line in done.out.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str, canary: Canary) -> None:
    """It says what the command does and what each option means, within 80 columns."""
    done = invoke(*name.split()[1:], "--help", canary=canary, env={"COLUMNS": "80"})
    assert done.code == 0
    assert done.out.startswith(f"Usage: {name} ")
    assert all(len(line) <= 80 for line in done.out.splitlines())
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help
            assert parameter.help.endswith((".", "]")), parameter.opts


@pytest.mark.parametrize(
    "arguments",
    [
        ["chek"],
        ["serve", "--listen", "nowhere"],
        ["serve", "--listen", "127.0.0.1:70000"],
        ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "nowhere"],
        ["serve", "--grace", "-1"],
        ["serve", "--grace", "abc"],
        ["serve", "--log-format", "xml"],
        ["serve", "--tls-cert", "cert.pem"],
        ["serve", "a", "b"],
        ["serve", "a", "--dir", "a"],
        ["list", "a", "--dir", "a"],
        ["show", "orders", "a", "--dir", "a"],
        ["show"],
        ["test"],
        ["psql"],
        ["psql", "orders", "-c", "SELECT 1"],
        ["init"],
        ["init", "orders", "a", "--dir", "a"],
        ["demo", "--port", "70000"],
        ["demo", "--rotate-every", "0"],
        ["demo", "a", "--dir", "a"],
        ["pgconfig", "test"],
        ["pgconfig", "create", "--type", "mysql", "--filepath", "x.yaml"],
        ["pgconfig", "generate-code", "--connconfig", "x.yaml", "--library", "asyncpg"],
        ["pgconfig", "test", "--connconfig", "x.yaml", "--connection-type", "pools"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], canary: Canary, tmp_path: Path) -> None:
    """A wrong argument is named on standard error with the usage, and ends with code 2."""
    done = invoke(*arguments, canary=canary, cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("Usage: pgmonkey")
    assert "Error: " in done.err
    assert done.out == ""


@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_no_command_shows_the_help(group: list[str], canary: Canary) -> None:
    """Without a command the help is on standard error, and the code is that of wrong usage."""
    done = invoke(*group, canary=canary)
    assert (done.code, done.out) == (2, "")
    assert "Commands:\n" in done.err


@pytest.mark.skipif(
    not hasattr(click.exceptions, "NoSuchCommand"), reason="click does it since 8.4"
)
def test_near_command_is_suggested(canary: Canary) -> None:
    """A mistyped command is answered with the one that was meant."""
    done = invoke("serv", canary=canary)
    assert done.code == 2
    assert "'serve'" in done.err


def test_the_directory_is_an_argument_an_option_or_a_variable(
    registry: Path, tmp_path: Path, canary: Canary
) -> None:
    """DIR and --dir are the same; without them $PGMONKEY_REGISTRY counts, then ./registry.d."""
    for words in (
        ["check", "-o", "json"],
        ["list", "-o", "json"],
        ["show", "orders", "-o", "json"],
    ):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        for where, env in (
            ([registry], {"PGMONKEY_REGISTRY": "elsewhere"}),
            (["--dir", registry], {"PGMONKEY_REGISTRY": "elsewhere"}),
            ([], {"PGMONKEY_REGISTRY": str(registry)}),
            ([], {}),
            ([], {"PGMONKEY_REGISTRY": ""}),
        ):
            done = invoke(*words, *where, canary=canary, env=env, cwd=tmp_path)
            assert (done.code, done.err) == (0, "")
            assert json.loads(done.out)
    for where in (["elsewhere"], ["--dir", "elsewhere"]):
        assert "declares no" in invoke("check", *where, canary=canary, cwd=tmp_path).err


def test_the_service_takes_the_directory_as_an_option(canary: Canary, tmp_path: Path) -> None:
    """`serve` reads the directory that is given with --dir."""
    done = run("serve", "--listen", "127.0.0.1:0", "--dir", "nowhere", canary=canary, cwd=tmp_path)
    assert done.code == 1
    assert "nowhere: the directory does not exist" in done.err


# Documentation


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_is_documented(name: str) -> None:
    """Its section of the page, or the text for all commands, has every option of a command.

    The page of the service has all of its own.
    """
    introduction, *sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    heading = " ".join(name.split()[:2])
    (section,) = (text for text in sections if text.startswith(f"{heading}\n"))
    if name == "pgmonkey serve":
        page = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
        introduction, section = (
            "-h --help",
            page.partition("\n## Options\n")[2].partition("\n## ")[0],
        )
    written = set(re.findall(r"(?<![\w-])--?[a-z](?:[\w.-]*\w)?", introduction + section))
    assert options_of(COMMANDS[name]) <= written


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_example(name: str) -> None:
    """The page of the command line has a command line of it."""
    examples = [
        " ".join(words)
        for snippet in snippets(PAGE)
        if snippet.language in ("shell", "console")
        for words in commands(snippet)
    ]
    assert any(f"{example} ".startswith(f"{name} ") for example in examples)


# Streams


_IMPORTS = """
import sys
sys.argv = ["pgmonkey", *sys.argv[1:]]
from pgmonkey.cli.app import main
try:
    main()
except SystemExit:
    pass
heavy = {"psycopg", "psycopg_pool", "pydantic", "yaml", "structlog", "starlette", "hypercorn",
         "prometheus_client", "watchfiles", "rich", "typer", "asyncio"}
print(sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments, env",
    [
        (["--help"], {}),
        (["serve", "--help"], {}),
        ([], {"_PGMONKEY_COMPLETE": "bash_complete", "COMP_WORDS": "pgmonkey ", "COMP_CWORD": "1"}),
    ],
    ids=["help", "help of a command", "completion"],
)
def test_help_and_completion_import_no_driver(arguments: list[str], env: dict[str, str]) -> None:
    """They need none of the driver, the web server, the schema or the log library."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS, *arguments],
        capture_output=True,
        text=True,
        env=environment(**env),
        check=True,
    )
    assert done.stderr == "[]\n"
    assert done.stdout


def test_closed_pipe_is_quiet(registry: Path) -> None:
    """A reader that goes away early, such as `head`, makes no noise on standard error."""
    for words in (["serve", "--help"], ["list", registry]):
        with subprocess.Popen(
            command(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(20) == 1


@pytest.mark.parametrize("words", ["list --dir registry.d", "--help"])
def test_a_full_disk_is_an_error_message(words: str, registry: Path, tmp_path: Path) -> None:
    """An answer that cannot be written is a line and exit code 1, not a traceback."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(*words.split()),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=tmp_path,
            check=False,
        )
    expected = "cannot write the answer: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_names_that_the_locale_cannot_show(canary: Canary, tmp_path: Path) -> None:
    """A path with characters beyond the locale is shown escaped, not as an encoding error."""
    done = run(
        "pgconfig",
        "create",
        "--filepath",
        tmp_path / "größe.yaml",
        canary=canary,
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.code == 0
    assert "UnicodeEncodeError" not in done.err


# Completion


def _completed(words: str, position: int, **env: str) -> set[str]:
    """Return what a bash completes."""
    script = (
        'eval "$(_PGMONKEY_COMPLETE=bash_source pgmonkey)"\n'
        f"COMP_WORDS=({words}) COMP_CWORD={position}\n"
        "_pgmonkey_completion pgmonkey\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        env=environment(PATH=path, **env),
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "words, expected",
    [
        ("pgmonkey show o", {"orders", "other"}),
        ("pgmonkey test orders ''", {"events", "other"}),
        ("pgmonkey psql --dir nowhere ''", set()),
        ("pgmonkey s", {"schema", "serve", "show", "status"}),
        ("pgmonkey pgconfig g", {"generate-code"}),
        ("pgmonkey export pg", {"pg_service", "pgbouncer"}),
        ("pgmonkey budget --l", {"--loops"}),
        ("pgmonkey diff --re", {"--revision"}),
        ("pgmonkey check --o", {"--output", "--online"}),
        ("pgmonkey serve --log-format ''", {"auto", "json", "console"}),
    ],
)
def test_bash_completes(words: str, expected: set[str], tmp_path: Path) -> None:
    """The function that bash gets completes commands, options, their words, and databases."""
    for name in ("orders.yaml", "other.yml", "events.yaml", "_defaults.yaml", ".x.yaml", "o.txt"):
        (tmp_path / name).write_text("nothing reads it: [")
    completed = _completed(words, len(words.split()) - 1, PGMONKEY_REGISTRY=str(tmp_path))
    assert completed == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_complete(shell: str, canary: Canary) -> None:
    """Zsh and fish get a script of their own, and complete commands with their sentences."""
    script = run(canary=canary, env={"_PGMONKEY_COMPLETE": f"{shell}_source"})
    assert (script.code, script.err) == (0, "")
    assert f"_PGMONKEY_COMPLETE={shell}_complete" in script.out
    words = {"zsh": ("pgmonkey sche", "1"), "fish": ("pgmonkey sche", "sche")}[shell]
    done = run(
        canary=canary,
        env={
            "_PGMONKEY_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": words[0],
            "COMP_CWORD": words[1],
        },
    )
    assert (done.code, done.err) == (0, "")
    assert "schema" in done.out
    assert "Print a JSON Schema" in done.out
