"""The applications of docs/events.md, run as they are there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgmonkey.telemetry.events import CATALOGUE
from tests.docs.environment import Environment
from tests.docs.snippets import ROOT, snippets
from tests.kit import Canary
from tests.kit.server import PostgresServer

PAGE = ROOT / "docs" / "events.md"
HAPPENED = ["registry.loaded", "database.opened", "database.rotated"]


@pytest.fixture
def environment(server: PostgresServer, canary: Canary, tmp_path: Path) -> Iterator[Environment]:
    """The repository's registry, with its databases."""
    environment = Environment(tmp_path, server, canary)
    with environment.databases():
        yield environment


def run(name: str, environment: Environment, canary: Canary) -> subprocess.CompletedProcess[str]:
    """Run the program of the page that has this name."""
    (snippet,) = [one for one in snippets(PAGE) if one.text.startswith(f"# {name}\n")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet.text],
        env=environment.shell_variables(),
        cwd=environment.directory,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    canary.check(done.stdout + done.stderr, name)
    assert done.returncode == 0, done.stderr
    return done


def test_with_structlog(environment: Environment, canary: Canary) -> None:
    """Events pass the processors of the application: its filter, its field, its JSON."""
    done = run("with_structlog.py", environment, canary)
    assert done.stderr == ""
    events = [json.loads(line) for line in done.stdout.splitlines()]
    names = [event["event"] for event in events]
    assert set(HAPPENED) <= set(names)
    assert not {"config.applied", "database.drained"} & set(names)
    assert {event["service"] for event in events} == {"shop"}
    (opened,) = [event for event in events if event["event"] == "database.opened"]
    assert opened["level"] == "info"
    assert opened["config"]["connection_settings"]["password"] == "***REDACTED***"


def test_with_the_standard_library(environment: Environment, canary: Canary) -> None:
    """Events are records of the logger `pgmonkey`; nothing else of a quiet program is shown."""
    done = run("with_logging.py", environment, canary)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    pattern = re.compile(r"[\d-]+ [\d:,]+ INFO pgmonkey event='([a-z.]+)'")
    matches = [pattern.match(line) for line in lines]
    assert all(matches), lines
    assert set(HAPPENED) <= {match[1] for match in matches if match}
    (swapped,) = [line for line in lines if "database.rotated" in line]
    shown = re.search(r"^\d.*database\.rotated.*$", PAGE.read_text(), re.MULTILINE)
    assert shown is not None

    def shape(line: str) -> str:
        return re.sub(r"\d+(\.\d+)?(e-\d+)?", "0", line)

    assert shape(swapped) == shape(shown[0])


def test_the_page_lists_every_event_and_no_other() -> None:
    """Names and levels of the page are those of the catalogue."""
    rows = re.findall(r"^\| `([a-z_.]+)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == {name: level for name, (level, _) in CATALOGUE.items()}
    assert len(rows) == len(CATALOGUE)
