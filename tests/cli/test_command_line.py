from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pgmonkey.version import __version__
from tests.kit import Canary
from tests.kit.command import command, environment, run


def test_version_is_printed(canary: Canary) -> None:
    """`--version` prints name and version on standard output, and nothing else."""
    done = run("--version", canary=canary)
    assert (done.code, done.out, done.err) == (0, f"pgmonkey {__version__}\n", "")


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_the_commands(option: str, canary: Canary) -> None:
    """Help lists every command, in plain text."""
    done = run(option, canary=canary)
    assert done.code == 0
    assert {"serve", "demo", "pgconfig"} <= set(done.out.split())
    assert "\x1b" not in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["chek"],
        ["serve", "--listen", "nowhere"],
        ["serve", "--listen", "127.0.0.1:70000"],
        ["serve", "--grace", "-1"],
        ["serve", "--grace", "abc"],
        ["serve", "--log-format", "xml"],
        ["serve", "a", "b"],
        ["demo", "--port", "70000"],
        ["demo", "--rotate-every", "0"],
        ["pgconfig", "test"],
        ["pgconfig", "create", "--type", "mysql", "--filepath", "x.yaml"],
        ["pgconfig", "generate-code", "--connconfig", "x.yaml", "--library", "asyncpg"],
        ["pgconfig", "test", "--connconfig", "x.yaml", "--connection-type", "pools"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], canary: Canary, tmp_path: Path) -> None:
    """A wrong argument is named on standard error with the usage, and ends with code 2."""
    done = run(*arguments, canary=canary, cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith("Usage: pgmonkey")
    assert "Error: " in done.err
    assert done.out == ""


def test_no_command_shows_the_help(canary: Canary) -> None:
    """Without a command the help is shown, and the code is that of wrong usage."""
    done = run(canary=canary)
    assert done.code == 2
    assert "serve" in done.out + done.err


def test_near_command_is_suggested(canary: Canary) -> None:
    """A mistyped command is answered with the one that was meant."""
    done = run("serv", canary=canary)
    assert done.code == 2
    assert "'serve'" in done.err


_IMPORTS = """
import sys
sys.argv = ["pgmonkey", "--help"]
from pgmonkey.cli.app import main
try:
    main()
except SystemExit:
    pass
heavy = {"psycopg", "psycopg_pool", "pydantic", "yaml", "structlog", "starlette", "hypercorn",
         "prometheus_client", "watchfiles", "rich", "asyncio"}
print(sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""


def test_help_imports_no_driver() -> None:
    """The help needs none of the driver, the web server, the schema or the log library."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _IMPORTS,
        ],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert done.stderr == "[]\n"


def test_closed_pipe_is_quiet() -> None:
    """A reader that goes away early, such as `head`, makes no noise on standard error."""
    with subprocess.Popen(
        command("serve", "--help"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


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
