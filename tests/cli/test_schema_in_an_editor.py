"""The published schema in yaml-language-server, which editors ask about YAML files.

It comes from npm, which a machine of a continuous integration may not have: then these tests are
skipped there, too. `test_schema.py` checks the schema itself on every machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.snippets import ROOT
from tests.kit.command import environment
from tests.kit.components import need

SCHEMA = ROOT / "docs" / "pgmonkey.schema.json"
FIRST_LINE = "# yaml-language-server: $schema=pgmonkey.schema.json\n"  # as the page has it


class Editor:
    """What an editor is to the language server: a client that speaks LSP over pipes."""

    def __init__(self, program: str, directory: Path) -> None:
        self._directory = directory
        self._requests = 0
        self._process = subprocess.Popen(
            [program, "--stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        completion = {"completionItem": {"snippetSupport": True}}
        can = {"textDocument": {"hover": {"contentFormat": ["markdown"]}, "completion": completion}}
        self._ask("initialize", processId=None, rootUri=None, capabilities=can)
        self._tell("initialized")
        wanted = {"schemaStore": {"enable": False}, "hover": True, "completion": True}
        self._settings = {"yaml": {"validate": True, **wanted}}
        self._tell("workspace/didChangeConfiguration", settings=self._settings)

    def close(self) -> None:
        """Let the server end as the protocol says."""
        self._ask("shutdown")
        self._tell("exit")
        self._process.communicate(timeout=10)

    def open(self, name: str, text: str) -> list[tuple[int, str]]:
        """Open a file; return line and message of each problem."""
        document = {"uri": self._uri(name), "languageId": "yaml", "version": 1, "text": text}
        self._tell("textDocument/didOpen", textDocument=document)
        while True:
            found = self._read()
            if found.get("method") != "textDocument/publishDiagnostics":
                continue
            if found["params"]["uri"] == self._uri(name):
                problems = found["params"]["diagnostics"]
                return sorted((one["range"]["start"]["line"], one["message"]) for one in problems)

    def complete(self, name: str, line: int, character: int) -> dict[str, str]:
        """Return what would be inserted at a place, by its label."""
        found = self._at("completion", name, line, character)
        return {one["label"]: one["insertText"] for one in found["items"]}

    def hover(self, name: str, line: int, character: int) -> str:
        """Return what is shown beside a place."""
        return self._at("hover", name, line, character)["contents"]["value"]

    def _at(self, what: str, name: str, line: int, character: int) -> Any:
        where = {"line": line, "character": character}
        return self._ask(
            f"textDocument/{what}", textDocument={"uri": self._uri(name)}, position=where
        )

    def _uri(self, name: str) -> str:
        return (self._directory / name).as_uri()

    def _ask(self, method: str, **params: Any) -> Any:
        self._requests += 1
        self._send({"id": self._requests, "method": method, "params": params})
        while True:
            found = self._read()
            if found.get("id") == self._requests and "method" not in found:
                assert "error" not in found, found
                return found["result"]

    def _tell(self, method: str, **params: Any) -> None:
        self._send({"method": method, "params": params})

    def _send(self, message: dict[str, Any]) -> None:
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        """Return the next message, and answer it if it is a request of the server."""
        assert self._process.stdout is not None
        length = 0
        while line := self._process.stdout.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert length, "the language server has ended"
        message: dict[str, Any] = json.loads(self._process.stdout.read(length))
        if "id" in message and "method" in message:
            asked = message["method"] == "workspace/configuration"
            items = message["params"]["items"] if asked else []
            result = [self._settings.get(one.get("section")) for one in items] if asked else None
            self._send({"id": message["id"], "result": result})
        return message


@pytest.fixture
def editor(tmp_path: Path) -> Iterator[Editor]:
    """An editor with the language server, in a directory that has the schema."""
    program = shutil.which("yaml-language-server")
    if program is None and shutil.which("npm") is None:
        pytest.skip("needs yaml-language-server, which npm installs")
    program = need(program, "yaml-language-server (.ci/install-servers)")
    shutil.copy(SCHEMA, tmp_path)
    editor = Editor(program, tmp_path)
    yield editor
    editor.close()


def test_good_files_have_no_problem(editor: Editor) -> None:
    """Those of the repository, the defaults included."""
    for path in (ROOT / "pgmonkey" / "demo" / "registry.d").glob("*.yaml"):
        assert editor.open(path.name, FIRST_LINE + path.read_text()) == [], path


def test_each_problem_says_what_is_expected(editor: Editor) -> None:
    """In words, not as a regular expression; and a misspelt key is one."""
    text = """\
connection_type: pol
connection_settings:
  host: db:5432
  port: 5432x
  dbname: postgres://db/orders
  user: 'app '
  password: ${PASSWORD:-tea}
  hots: db
pool_settings:
  max_size: ten
  timeout: 5m
  max_idle: ${
"""
    assert editor.open("bad.yaml", FIRST_LINE + text) == [
        (1, 'Value is not accepted. Valid values: "normal", "pool", "async", "async_pool".'),
        (3, "expected a host alone: the port has a key of its own, and an address no brackets"),
        (4, "expected an integer from 1 to 65535; several for several hosts"),
        (5, "expected the name of a database, not a URL"),
        (6, "expected no white space before or after it"),
        (7, "expected ${NAME} or ${NAME:?message}; a secret has no default"),
        (8, "Property hots is not allowed."),
        (10, "expected an integer from 1 to 1000"),
        (11, "expected a duration, such as 500ms, 30s, 5min, 2h or 1d"),
        (12, "expected a duration, such as 500ms, 30s, 5min, 2h or 1d"),
    ]


def test_keys_are_completed_and_explained(editor: Editor) -> None:
    """Keys of the section, with a default that is no text; one title, and an example without quotes."""
    editor.open("new.yaml", f"{FIRST_LINE}pool_settings:\n  max_size: 4\n  \n")
    offered = editor.complete("new.yaml", 3, 2)
    assert {"min_size", "timeout", "check_on_checkout"} <= offered.keys()
    assert "host" not in offered
    assert offered["check_on_checkout"] == "check_on_checkout: ${1:true}"
    shown = editor.hover("new.yaml", 2, 4)
    assert shown.startswith("#### an integer from 1 to 1000\n\nHow many connections the pool opens")
    assert shown.count("####") == 1
    assert "```yaml\n10\n```" in shown
