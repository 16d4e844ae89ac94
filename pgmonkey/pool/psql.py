"""What psql needs to connect as a pool does: variables, and files in memory for the rest."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgmonkey.config.libpq import (
    NO_FILE,
    isolation,
    keywords,
    libpq_variables,
    passfile_line,
    service_line,
    session_options,
)
from pgmonkey.config.redaction import MASK, Secret, scrub
from pgmonkey.errors import PgmonkeyError
from pgmonkey.pool.credentials import obtained
from pgmonkey.pool.failures import ConnectFailure

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.settings import DatabaseConfig

#: What Debian's wrapper of psql reads.
_OF_THE_WRAPPER: Final = "PGCLUSTER"


class Login(NamedTuple):
    """How psql is started.

    Args:
        environment: Its variables, all of them. No secret is among them.
        descriptors: Of the files that the variables name: psql has to inherit them.
        note: What psql does not get, and why; empty if it gets everything.
    """

    environment: dict[str, str]
    descriptors: tuple[int, ...]
    note: str


@contextmanager
def psql_login(config: DatabaseConfig, connection_type: ConnectionType) -> Iterator[Login]:
    """Let psql connect as the application does, whatever the environment of this process says.

    For a psql that is started inside of the block. The password is in an open file that has no
    name, which only psql gets: nothing is left of it, however psql ends.

    Args:
        config: Of the database.
        connection_type: Whose session settings psql gets.

    Raises:
        ConnectError: there are no credentials, which are made on demand.
        PgmonkeyError: no file of libpq can hold a value, such as one with a line break.
    """
    password, user = _credentials(config)
    settings, rest = _settings(config, connection_type)
    if user is not None:
        settings["PGUSER"] = user
    outside = libpq_variables(os.environ) | {_OF_THE_WRAPPER}
    environment = {name: text for name, text in os.environ.items() if name not in outside}
    environment |= settings
    if "PGHOSTADDR" in environment:  # the wrapper looks for PGHOST alone
        environment.setdefault("PGHOST", environment["PGHOSTADDR"])
    impossible = [
        name for name, value in rest.items() if service_line(name, value.reveal()) is None
    ]
    if password is not None and not {"\n", "\r"}.isdisjoint(password.reveal()):
        impossible.append("password")
    if impossible:
        what = ", ".join(impossible)
        raise PgmonkeyError(
            f"{config.name}: psql cannot get its {what}: no file of libpq can hold the value"
        )
    note = ""
    with ExitStack() as open_files:
        descriptors: list[int] = []

        def path_of(lines: Iterable[str]) -> str:
            descriptors.append(open_files.enter_context(_unnamed(lines)))
            return f"/dev/fd/{descriptors[-1]}"

        if password:
            environment["PGPASSFILE"] = path_of(_password_lines(environment, password))
        elif "PGSERVICE" not in settings:
            environment.setdefault("PGPASSFILE", NO_FILE)
        if rest and "PGSERVICE" in settings:
            note = (
                f"{config.name}: psql runs without {', '.join(rest)}: only its service"
                f" {settings['PGSERVICE']} can set that"
            )
        elif rest:
            environment["PGSERVICE"] = config.name
            environment["PGSERVICEFILE"] = path_of(_service_lines(config.name, rest))
        yield Login(environment, tuple(descriptors), note)


def _credentials(config: DatabaseConfig) -> tuple[Secret | None, str | None]:
    """Return the password, and the user if it is not that of the file."""
    if config.on_demand is None:
        return config.connection_settings.get("password"), None
    given = obtained(config)
    if isinstance(given, ConnectFailure):
        raise given.error(config.name)
    return given.password, given.user


def _settings(
    config: DatabaseConfig, connection_type: ConnectionType
) -> tuple[dict[str, str], dict[str, Secret]]:
    """Return the parameters of a connection: those of variables, by variable, and the rest, by name.

    What only keeps the environment out is left out: the environment of psql has none of it, and
    its libpq may be older, and not know it. The rest has no variable, or holds a secret.
    """
    parameters = {
        name: str(value)
        for name, value in config.connect_kwargs(connection_type).items()
        if name in keywords() and name != "password" and value != isolation().get(name)
    }
    # PgBouncer takes no options.
    transactions = _of_transactions(config.psycopg_settings) if config.pooler == "none" else {}
    if transactions:
        given = filter(None, (session_options(transactions.items()), parameters.get("options")))
        parameters["options"] = " ".join(given)
    settings: dict[str, str] = {}
    rest: dict[str, Secret] = {}
    for name, text in parameters.items():
        variable = keywords()[name].variable
        # A session setting can be secret, too.
        if variable is None or (name == "options" and MASK in scrub(text, config.secrets)):
            rest[name] = Secret(text)
        else:
            settings[variable] = text
    return settings, rest


def _of_transactions(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the session settings by which a transaction of psql begins as one of psycopg does."""
    flags = {
        f"default_transaction_{key}": "on" if settings[key] else "off"
        for key in ("read_only", "deferrable")
        if settings.get(key) is not None
    }
    level = settings.get("isolation_level")
    return flags if level is None else {"default_transaction_isolation": level, **flags}


def _service_lines(name: str, settings: Mapping[str, Secret]) -> Iterator[str]:
    """Yield the lines of a service file with one service."""
    yield f"[{name}]"
    yield from (f"{key}={value.reveal()}" for key, value in settings.items())


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
            yield passfile_line(name, port or "*", "*", user, password.reveal())


@contextmanager
def _unnamed(lines: Iterable[str]) -> Iterator[int]:
    """Yield the descriptor of a file without a name, in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pgmonkey")
        os.fchmod(descriptor, 0o600)  # libpq takes no password file that is open to others
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
            file.write("".join(f"{line}\n" for line in lines))
        # Elsewhere than on Linux, to open /dev/fd/N goes on where this one stands.
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
