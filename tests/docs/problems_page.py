"""The page of problem codes: the catalogue of the code, with an example of each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from unittest import mock

import psycopg

from pgmonkey.cli.test import not_rehearsed
from pgmonkey.config.belief import Look
from pgmonkey.config.directory import DirectoryLoader
from pgmonkey.config.env_file import read_env_file
from pgmonkey.config.failed_probes import failed_probe, pool_too_large
from pgmonkey.config.loader import load_file
from pgmonkey.config.secret_files import (
    KEEP_THE_DIRECTORY,
    LIMIT,
    MOUNT_THE_DIRECTORY,
    UNLINKED,
)
from pgmonkey.config.upgrade import find_changes
from pgmonkey.config.warnings import find_warnings
from pgmonkey.errors import ConfigError, Problem, Reason
from pgmonkey.pool.failures import HINTS, ConnectFailure, classify, configure_left
from tests.docs.problem_codes import CODES
from tests.docs.snippets import ROOT

_BAD = ROOT / "tests" / "configs"
_BEGINNING = """\
# Problems

A problem has a stable code: programs and alerts may rely on it. The message is for people, and may change. Search this page for
the code that you see.

In text a problem is one line and, where there is something to do, a hint:

```text
file:line:column: key: message  [code]
  hint: what to do
```

As JSON (`pgmonkey check -o json`) it has the fields `path`, `line`, `column`, `key`, `code`, `message`, `hint` and
`database`. The position is that of the value, or of a wrong key. A problem never shows the value of a sensitive key, nor a
value from outside of the file: it names the variable or the file instead. It does not quote text that looks like a secret.
"""
_TITLES = {
    "registry": "The registry",
    "config": "Database files",
    "environment": "The environment",
    "reference": "References",
    "secret": "Secret files",
    "file": "TLS and password files",
    "probe": "The server",
    "warning": "Warnings of a check",
}
_NOTES = {
    "warning": (
        "These are not problems: `pgmonkey check` accepts the files, and its exit code is 0.",
        "",
    ),
}
_DATABASE = "connection_settings: {host: db.example, dbname: orders, user: app}\n"

# These depend on the system or on timing: they are written here, not produced.
_SHOWN = {
    "permission": ("may not be read (permission denied)", "the process runs as uid 65532"),
    "unreadable": ("cannot be read (Input/output error)", None),
    "moving": ("is replaced again and again", None),
}
_FILE = """\
connection_settings:
  host: db.example
  dbname: orders
  user: app
  password: ${ORDERS_PASSWORD}
  sslmode: verify-full
  sslrootcert: system
"""
# The files with the most common mistakes: they are the examples of their codes.
_TYPICAL = {
    "connection-type-misspelt",
    "duplicate-key",
    "host-with-a-port",
    "min-over-max",
    "port-is-text",
    "reference-unclosed",
    "unknown-key",
    "unset-variable",
    "url-with-an-at-sign",
    "user-with-a-line-break",
}
_PROBES: dict[Reason, str] = {
    "auth": 'FATAL:  password authentication failed for user "app"',
    "hba": 'FATAL:  no pg_hba.conf entry for host "192.0.2.7", user "app"',
    "no_database": 'FATAL:  database "orders" does not exist',
    "setting": 'FATAL:  unrecognized configuration parameter "statement_timout"',
    "tls": "SSL error: certificate verify failed",
    "dns": "[Errno -2] Name or service not known",
    "refused": 'connection to server at "192.0.2.7", port 5432 failed: Connection refused',
    "timeout": "connection timeout expired",
    "too_many_connections": "FATAL:  sorry, too many clients already",
    "other": "FATAL:  something else",
}
_COMMAND = "{from_command: [aws, rds, generate-db-auth-token]}"
_NO_CREDENTIALS = "the command aws ended with exit code 255: Unable to locate credentials"


def page() -> str:
    """Return the page."""
    examples = _examples()
    lines = [_BEGINNING]
    area = ""
    for code in sorted(CODES, key=lambda code: list(_TITLES).index(code.partition(".")[0])):
        if code.partition(".")[0] != area:
            area = code.partition(".")[0]
            lines += [f"## {_TITLES[area]}", "", *_NOTES.get(area, ())]
        lines += [f"### {code}", "", f"{_sentence(CODES[code])}.", ""]
        example = str(examples[code]).replace(".bad.yaml", ".yaml")
        # The files of the examples belong to the account that makes the page.
        lines += ["```text", example.replace(f"uid {os.geteuid()})", "root)"), "```", ""]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    """Return a text with a capital at its start, unless it starts with the name of a key."""
    return text if "_" in text.partition(" ")[0] else text[:1].upper() + text[1:]


def _examples() -> dict[str, Problem]:
    found: dict[str, Problem] = {}
    for problem in (*_of_files(), *_of_directories(), *_shown(), *_probed(), *_warned()):
        found.setdefault(problem.code, problem)
    return found


def _of_files() -> Iterator[Problem]:
    """Yield the problems of the files that test them, as if each were in `registry.d`."""
    files = _BAD.glob("*.bad.yaml")
    for path in sorted(files, key=lambda path: (path.name.split(".")[0] not in _TYPICAL, path)):
        with chdir(_BAD):
            problems = _problems(path.name)
        yield from problems


def _of_directories() -> Iterator[Problem]:
    """Yield the problems of a whole directory, and of the machine."""
    with tempfile.TemporaryDirectory() as name, chdir(name):
        yield from DirectoryLoader("nowhere").scan().all_problems()
        directory = Path("registry.d")
        directory.mkdir()
        (directory / "Orders DB.yaml").write_text(_DATABASE)
        (directory / "orders.yaml").write_text(_DATABASE)
        (directory / "orders.yml").write_text(_DATABASE)
        (directory / "reports.yaml").write_text(_DATABASE)
        (directory / "large.yaml").write_text("#" * (LIMIT * 4 + 1))
        (directory / "folder.yaml").mkdir()
        (directory / "link.yaml").symlink_to("nowhere.yaml")
        yield from DirectoryLoader("registry.d/orders.yaml").scan().all_problems()
        yield from DirectoryLoader(directory, environ={"PGTZ": "UTC"}).scan().all_problems()
        yield from DirectoryLoader(directory, names=["order"], environ={}).scan().all_problems()
        yield from _budget()
        yield from _emptied()
        Path("open.key").write_text("key")
        Path("open.key").chmod(0o666)  # also where it belongs to root
        Path("large").write_text("x" * (LIMIT + 1))
        Path("large.crt").write_bytes(bytes(1024 * 1024 + 1))
        for more in (
            "password: {from_file: large}",
            "sslrootcert: large.crt",
            "sslkey: open.key",
            "application_name: ${NAME}",
            "application_name: {from_env: NAME}",
        ):
            Path("orders.yaml").write_text(_DATABASE.replace("}", f", {more}}}"))
            yield from _problems("orders.yaml", NAME=os.fsdecode(b"\xff"))
        yield from _problems("orders.yaml", resolve=False)
        yield from _of_env_files()
        resolver = "password: {from_resolver: valt, key: db/orders}"
        (directory / "orders.yml").unlink()
        (directory / "orders.yaml").write_text(_DATABASE.replace("}", f", {resolver}}}"))
        loader = DirectoryLoader(directory, names=["orders"], environ={}, resolvers={"vault": str})
        yield from loader.scan().all_problems()


def _problems(path: str, *, resolve: bool = True, **environ: str) -> tuple[Problem, ...]:
    try:
        with mock.patch.dict(os.environ, environ, clear=True):
            load_file(path, resolve=resolve)
    except ConfigError as error:
        return error.problems
    return ()


def _of_env_files() -> Iterator[Problem]:
    """Yield the problems of a file of variables."""
    Path(".env").write_text("ORDERS_USER=app\nORDERS_PASSWORD: tea\n")
    for path in (".env", "nowhere.env"):
        try:
            read_env_file(path)
        except ConfigError as error:
            yield from error.problems


def _budget() -> Iterator[Problem]:
    """Yield the problems of pools that keep more open than they may."""
    directory = Path("budget", "registry.d")
    directory.mkdir(parents=True)
    for name in ("events", "orders"):
        text = f"connection_type: pool\npool_settings: {{min_size: 8}}\n{_DATABASE}"
        (directory / f"{name}.yaml").write_text(text)
    (directory / "_defaults.yaml").write_text("max_connections: 10\n")
    with chdir("budget"):
        yield from DirectoryLoader("registry.d", environ={}).scan().all_problems()


def _emptied() -> Iterator[Problem]:
    """Yield the problem of a directory that lost its files."""
    directory = Path("emptied", "registry.d")
    directory.mkdir(parents=True)
    (directory / "orders.yaml").write_text(_DATABASE)
    with chdir("emptied"):
        loader = DirectoryLoader("registry.d", environ={})
        loader.scan()
        Path("registry.d", "orders.yaml").unlink()
        for now in (0.0, 1.0):
            yield from loader.scan(Look(now, removal_delay=5.0, asked=False)).all_problems()


def _shown() -> Iterator[Problem]:
    where = {"line": 5, "column": 25, "key": "connection_settings.password.from_file"}
    for word, (message, hint) in _SHOWN.items():
        yield Problem("registry.d", f"registry.{word}", f"the directory {message}", hint=hint)
        yield Problem("registry.d/orders.yaml", f"config.{word}", f"the file {message}", hint=hint)
        secret = f"secret file /run/secrets/orders/password: {message}"
        yield Problem("registry.d/orders.yaml", f"secret.{word}", secret, **where, hint=hint)
        named = f"the file that sslkey names {message}"
        yield Problem("registry.d/orders.yaml", f"file.{word}", named, 7, 11, hint=hint)
    message = "the directory is on another device, without 2 files that it had"
    hint = "is its volume mounted? to accept the directory, reload explicitly (SIGHUP)"
    yield Problem("registry.d", "registry.replaced", message, hint=hint)
    message = "the file is not trusted: /etc/shop can be changed by everybody (mode 0777)"
    path = "/etc/shop/orders.yaml"
    yield Problem(path, "file.untrusted", message, hint="chmod go-w /etc/shop")
    password = "/run/secrets/orders/password"
    yield Problem(password, "file.unlinked", f"the file {UNLINKED}", hint=MOUNT_THE_DIRECTORY)
    message = f"the directory {UNLINKED}"
    yield Problem("registry.d", "registry.unlinked", message, hint=KEEP_THE_DIRECTORY)


def _probed() -> Iterator[Problem]:
    """Yield the problems of servers that refuse, or are not there."""
    with tempfile.TemporaryDirectory() as name, chdir(name):
        path = Path("registry.d", "orders.yaml")
        path.parent.mkdir()
        path.write_text(_FILE)
        environ = {"ORDERS_PASSWORD": "tea"}
        config = DirectoryLoader("registry.d", environ=environ).scan().configs["orders"]
        for reason, text in _PROBES.items():
            failure = classify(psycopg.OperationalError(text), config)
            assert failure.reason == reason
            yield failed_probe(config, failure.error("orders"))
        yield not_rehearsed(config)
        failure = configure_left(_adapt, "left a transaction open")
        yield failed_probe(config, failure.error("orders"))
        path.write_text(f"connection_type: pool\n{_FILE}pool_settings:\n  max_size: 20\n")
        config = DirectoryLoader("registry.d", environ=environ).scan().configs["orders"]
        too_large = pool_too_large(config, 10, "the CONNECTION LIMIT of the role")
        assert too_large is not None
        yield too_large
        path.write_text(_FILE.replace("${ORDERS_PASSWORD}", _COMMAND))
        path.chmod(0o644)
        config = DirectoryLoader("registry.d", environ={}).scan().configs["orders"]
        failure = ConnectFailure("credentials", _NO_CREDENTIALS, hint=HINTS["credentials"])
        yield failed_probe(config, failure.error("orders"))


def _adapt(_connection: object) -> None:
    """Stand for a function of an application."""


_adapt.__module__, _adapt.__qualname__ = "app.db", "adapt"


def _warned() -> Iterator[Problem]:
    """Yield the warnings about files that are accepted."""
    with tempfile.TemporaryDirectory() as name, chdir(name):
        path = Path("registry.d", "orders.yaml")
        path.parent.mkdir()
        text = _FILE.replace("${ORDERS_PASSWORD}", "$ORDERS_PASSWORD")
        path.write_text(f"\ufeff{text}  application_name: {'orders-' * 10}\n")
        configs = DirectoryLoader("registry.d", environ={}).scan().configs
        yield from find_warnings(configs.values())
        path.write_text(_FILE.replace("${ORDERS_PASSWORD}", "{from_file: ../password}"))
        Path("password").write_text("tea\n\n")
        configs = DirectoryLoader("registry.d", environ={}).scan().configs
        yield from find_warnings(configs.values())
        path.write_text(_FILE.replace("${ORDERS_PASSWORD}", "0123"))
        yield from find_changes(load_file("registry.d/orders.yaml"))
