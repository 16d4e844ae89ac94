"""Files for other programs, made of a registry: pure functions of text, without any secret.

Each format quotes in its own way. What a format has no form for is left out, and a comment says so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pgmonkey.config.libpq import keywords, passfile_line, service_line
from pgmonkey.config.redaction import scrub

if TYPE_CHECKING:
    from pgmonkey.config.settings import Portable


_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _comment(mark: str, text: str) -> str:
    """Return a comment of one line, whatever is in the text."""
    return f"{mark} {_CONTROL.sub(' ', scrub(text, ()))}"


# ---- PgBouncer

#: What PgBouncer takes of a database. Everything else is one setting of PgBouncer for all.
_OF_PGBOUNCER: Final = ("host", "hostaddr", "port", "dbname")
_RESERVED: Final = "pgbouncer"  # the name of its console


def pgbouncer_value(text: str) -> str | None:
    """Return a value of a connection string in pgbouncer.ini; `None` if none can be written.

    Example:
        >>> print(pgbouncer_value("orders"), pgbouncer_value("it's here"))
        orders 'it''s here'
    """
    if not text or "\n" in text or "\0" in text:
        return None
    if re.fullmatch(r"[^\s']+", text):
        return text
    return "'" + text.replace("'", "''") + "'"


def pgbouncer(entries: Iterable[Portable]) -> Iterator[str]:
    """Yield the lines of a section [databases] for PgBouncer."""
    yield "; The databases of the registry, for pgbouncer.ini (or a file that it includes)."
    yield "; Passwords are not here. PgBouncer logs in with those of its auth_file: a line for each"
    yield '; user, of the form "USER" "PASSWORD".'
    yield "[databases]"
    for entry in entries:
        line, comments = _pgbouncer(entry)
        yield from (_comment(";", f"{entry.name}: {text}") for text in comments)
        if line is not None:
            yield line


def _pgbouncer(entry: Portable) -> tuple[str | None, list[str]]:
    settings = entry.settings
    if entry.through_pgbouncer:
        return None, [f"its file leads to PgBouncer already, at {settings.get('host')}"]
    if entry.name == _RESERVED:
        return None, ["PgBouncer keeps this name for its console"]
    host = settings.get("hostaddr") or settings.get("host")
    ports = set(settings.get("port", "5432").split(","))
    if {"host", "hostaddr"} & {*entry.hidden}:
        return None, ["its host holds a secret"]
    if host is None:
        return None, ["it names a service of libpq, which PgBouncer does not know"]
    if len(ports) > 1 or "" in ports:
        return None, ["PgBouncer takes one port for all hosts"]
    comments = []
    if user := settings.get("user"):
        quoted = user.replace('"', '""')
        comments.append(f'its user in auth_file is "{quoted}"')
    if left_out := [key for key in settings if key not in (*_OF_PGBOUNCER, "user")]:
        comments.append(
            f"set in PgBouncer or its clients, not in [databases]: {', '.join(left_out)}"
        )
    if "," in host:
        comments.append("PgBouncer takes the hosts in turn, whichever is the primary")
    given = {"host": host, "port": ports.pop(), "dbname": settings.get("dbname", entry.name)}
    written = {key: pgbouncer_value(value) for key, value in given.items()}
    if None in written.values():
        return None, ["its host or dbname is empty or has a line break"]
    values = " ".join(f"{key}={value}" for key, value in written.items())
    return f"{entry.name} = {values}", comments


# ---- libpq's service file


def pg_service(entries: Iterable[Portable]) -> Iterator[str]:
    """Yield the lines of a service file of libpq, for `psql service=NAME`."""
    yield "# The databases of the registry, for ~/.pg_service.conf or the file of PGSERVICEFILE."
    yield "# Passwords are not here: libpq finds them in ~/.pgpass, or in the file of passfile."
    for entry in entries:
        yield ""
        yield f"[{entry.name}]"
        for key, value in entry.settings.items():
            if key == "service":
                yield _comment("#", f"it is a service already: psql service={value}")
                continue
            line = service_line(key, value)
            yield (
                _comment("#", f"a service file cannot hold the value of {key}")
                if line is None
                else line
            )
        if "password" in entry.hidden:
            yield _comment("#", f"password: a line in ~/.pgpass: {_pgpass(entry.settings)}")
        yield from _left_out("#", entry.hidden)


def _pgpass(settings: Mapping[str, str]) -> str:
    """Return the line of a password file for the password of a database."""
    given = {key: settings.get(key, "*") for key in ("host", "port", "dbname", "user")}
    # It has one host a line, and another word for a directory of sockets.
    host, port, dbname, user = (
        "*" if re.search(r",|\A/", value) else value for value in given.values()
    )
    return passfile_line(host, port, dbname, user, "PASSWORD")


def _left_out(mark: str, hidden: Iterable[str]) -> Iterator[str]:
    if others := [key for key in hidden if key != "password"]:
        yield _comment(mark, f"left out because it is secret: {', '.join(others)}")


# ---- variables of the environment

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:@%+,=-]+")


def env_value(text: str) -> str | None:
    r"""Return a value for a file of variables; `None` if programs would read it differently.

    A shell, systemd, Docker Compose and python-dotenv agree on a plain word, on text in single
    quotes without a quote or a backslash, and on these two, escaped, in double quotes. They differ
    in what `$` means there.

    Example:
        >>> print(env_value("orders"), env_value("-c jit=off"), env_value("it's"))
        orders '-c jit=off' "it's"
    """
    if _PLAIN.fullmatch(text):
        return text
    if not text.isprintable() or "${" in text:
        return None
    if not re.search(r"['\\]", text):
        return f"'{text}'"
    if re.search("[$`]", text):
        return None
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def env(entry: Portable) -> Iterator[str]:
    """Yield the lines of a file with the variables of libpq for one database."""
    yield f"# The database {entry.name} of the registry, in the variables of libpq."
    yield "# For a shell, systemd, Docker Compose and python-dotenv. docker run --env-file takes"
    yield "# quotes as a part of the value."
    known = keywords()
    for key, value in entry.settings.items():
        variable = known[key].variable
        if variable is None:
            yield _comment("#", f"libpq has no variable for {key}")
            continue
        written = env_value(value)
        if written is None:
            yield _comment(
                "#", f"{variable} is left out: programs would read its value differently"
            )
        else:
            yield f"{variable}={written}"
    if "password" in entry.hidden:
        yield "# PGPASSWORD is not here: the place that holds the secret sets it. Or PGPASSFILE"
        yield _comment("#", f"names a file with the line {_pgpass(entry.settings)}")
    yield from _left_out("#", entry.hidden)


# ---- Docker Compose


def compose_text(text: str) -> str:
    """Return a text for a Compose file, which replaces `$NAME` even in quotes.

    Example:
        >>> print(compose_text("/srv/$shop"))
        "/srv/$$shop"
    """
    # JSON is YAML, but YAML has no pairs of surrogates, and more characters that must be escaped.
    written = json.dumps(text, ensure_ascii=False).replace("$", "$$")
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in written)


def compose(directory: str, variables: Iterable[str], directories: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a Compose file for the service that uses the registry.

    Args:
        directory: The directory of the registry, an absolute path.
        variables: The names of the variables that its files refer to.
        directories: The directories of its secret files and TLS files.
    """
    yield "# What the container of an application needs for the registry. Every path is the same in it"
    yield "# as outside, so the paths in the files are right. Directories are mounted, not files, so"
    yield "# that a rotated secret arrives."
    yield "services:"
    yield "  app:"
    yield "    environment:"
    yield f"      PGMONKEY_REGISTRY: {compose_text(directory)}"
    if names := sorted(set(variables)):
        yield "      # With the values that they have where Compose runs, or in its .env file:"
        yield from (f"      {compose_text(name)}:" for name in names)
    yield "    volumes:"
    for path in _outermost([directory, *directories]):
        yield "      - type: bind"
        yield f"        source: {compose_text(path)}"
        yield f"        target: {compose_text(path)}"
        yield "        read_only: true"


def _outermost(paths: Iterable[str]) -> Sequence[str]:
    """Return the directories that are in none of the others."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(os.path.commonpath([path, one]) == one for one in kept):
            kept.append(path)
    return kept
