"""`pgmonkey psql`: the psql of this machine, connected as an application is."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, tell
from pgmonkey.cli.registry_files import scan

if TYPE_CHECKING:
    from pgmonkey.config.redaction import Secret
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.pool.credentials import Given

#: What Debian's wrapper of psql reads.
_OF_THE_WRAPPER: Final = "PGCLUSTER"


@click.command("psql")
@options.name
@click.argument("arguments", metavar="[-- ARGUMENT...]", nargs=-1, type=click.UNPROCESSED)
@options.directory_beside_names
@options.references
def command(
    name: str,
    arguments: tuple[str, ...],
    directory: Path,
    references: options.References,
) -> Answer:
    """Run psql, connected as an application would be.

    What stands after -- are arguments of psql, and the exit code is that of psql. The password is
    in none of its arguments and variables, and in no file that has a name.
    """
    program = shutil.which("psql")
    if program is None:
        note = (
            "psql is not installed, or not in PATH\n  hint: it is in the package postgresql-client"
        )
        return Answer(code=ExitCode.PROBLEM, note=note)
    found = scan(directory, references, [name])
    found.raise_for_problems()
    environment = _environment(found.configs[name])
    if isinstance(environment, dict):
        sys.stderr.flush()
        # Python ignores these, and psql would do so, too.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execve(program, [program, *arguments], environment)  # noqa: S606 - without a shell
    return environment


def _environment(config: DatabaseConfig) -> dict[str, str] | Answer:
    """Return the environment of psql, or why there is none. Its files stay open for psql."""
    from pgmonkey.config.libpq import NO_FILE, keywords, libpq_variables

    given = _given(config)
    settings = _settings(config)
    password = config.connection_settings.get("password")
    if given is not None:
        password = given.password
        if given.user is not None:
            settings["user"] = given.user
    outside = libpq_variables(os.environ) | {_OF_THE_WRAPPER}
    environment = {name: text for name, text in os.environ.items() if name not in outside}
    rest: dict[str, str] = {}
    for name, text in settings.items():
        variable = keywords()[name].variable
        if variable is None:
            rest[name] = text
        else:
            environment[variable] = text
    if "PGHOSTADDR" in environment:  # the wrapper looks for PGHOST alone
        environment.setdefault("PGHOST", environment["PGHOSTADDR"])
    in_files = rest if password is None else {"password": password.reveal(), **rest}
    if broken := [name for name, text in in_files.items() if "\n" in text or "\r" in text]:
        note = f"{config.name}: psql cannot get a {broken[0]} with a line break in it"
        return Answer(code=ExitCode.PROBLEM, note=note)
    if password:
        environment["PGPASSFILE"] = _unnamed(_password_lines(environment, password))
    elif "service" not in settings:
        environment.setdefault("PGPASSFILE", NO_FILE)
    if rest and "service" in settings:
        tell(f"{config.name}: psql gets no {', '.join(rest)}: its service file has to say that")
    elif rest:
        environment["PGSERVICE"] = config.name
        lines = [f"[{config.name}]", *(f"{name}={text}" for name, text in rest.items())]
        environment["PGSERVICEFILE"] = _unnamed(lines)
    return environment


def _given(config: DatabaseConfig) -> Given | None:
    """Return the credentials that are made on demand, if they are."""
    if config.on_demand is None:
        return None
    from pgmonkey.pool.credentials import obtained
    from pgmonkey.pool.failures import ConnectFailure

    found = obtained(config)
    if isinstance(found, ConnectFailure):
        raise found.error(config.name)
    return found


def _settings(config: DatabaseConfig) -> dict[str, str]:
    """Return the parameters of libpq that a connection has, except for its password.

    What only keeps the environment out is left out: the environment of psql has none of it.
    """
    from pgmonkey.config.libpq import isolation, keywords, session_options

    settings = {
        name: str(value)
        for name, value in config.connect_kwargs(config.connection_type).items()
        if name in keywords() and name != "password" and value != isolation().get(name)
    }
    # PgBouncer takes no options.
    transactions = _of_transactions(config.psycopg_settings) if config.pooler == "none" else {}
    if transactions:
        added = session_options(transactions.items())
        settings["options"] = f"{added} {settings.get('options', '')}"
    return settings


def _of_transactions(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the session settings by which a transaction of psql begins as one of psycopg does."""
    flags = {
        f"default_transaction_{key}": "on" if settings[key] else "off"
        for key in ("read_only", "deferrable")
        if settings.get(key) is not None
    }
    level = settings.get("isolation_level")
    return flags if level is None else {"default_transaction_isolation": level, **flags}


def _password_lines(environment: Mapping[str, str], password: Secret) -> Iterator[str]:
    r"""Yield the lines of a password file for this user at these servers.

    A server that somebody leads psql to with `\connect` does not get the password.
    """
    user = environment.get("PGUSER", "*")
    hosts = environment.get("PGHOST", "*").split(",")
    ports = environment.get("PGPORT", "*").split(",")
    if len(ports) < len(hosts):
        ports = ports[:1] * len(hosts)
    for host, port in zip(hosts, ports, strict=True):
        # libpq calls one directory of sockets, which it was built with, by this name.
        for name in (host, "localhost") if host.startswith("/") else (host,):
            fields = (name, port or "*", "*", user, password.reveal())
            yield ":".join(
                one if one == "*" else one.replace("\\", "\\\\").replace(":", "\\:")
                for one in fields
            )


def _unnamed(lines: Iterable[str]) -> str:
    """Return the path of a new file without a name, for this process and what takes its place."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pgmonkey", 0)
        os.fchmod(descriptor, 0o600)  # libpq takes no password file that is open to others
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
            os.set_inheritable(descriptor, True)
    with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
        file.write("".join(f"{line}\n" for line in lines))
    return f"/dev/fd/{descriptor}"
