"""`pgmonkey pgserverconfig`: what servers need so that these clients can log in, and what they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, as_json, table
from pgmonkey.cli.registry_files import scan
from pgmonkey.cli.servers import connected, limits_of, side_by_side

if TYPE_CHECKING:
    import psycopg

    from pgmonkey.config.budget import Fleet
    from pgmonkey.config.models import ConnectionType
    from pgmonkey.config.server_audit import Facts, Failure, Rule, Verdict
    from pgmonkey.config.server_needs import Client, Needs
    from pgmonkey.config.settings import DatabaseConfig

_TITLES: Final = ("SERVER", "WHAT", "NEEDED", "FOUND", "STATUS", "REASON")
_SETTINGS: Final = ("ssl", "ssl_cert_file", "ssl_key_file", "ssl_ca_file")
# Roles are looked up one by one: for `pg_has_role` a superuser is a member of each, for pg_hba.conf not.
_ABOUT_CLIENT: Final = """
WITH RECURSIVE mine AS (
  SELECT oid FROM pg_roles WHERE rolname = session_user
  UNION
  SELECT roleid FROM pg_auth_members JOIN mine ON member = mine.oid
)
SELECT session_user::text, current_database()::text,
       coalesce(host(inet_client_addr()), ''), coalesce(host(inet_server_addr()), ''),
       ARRAY(SELECT rolname::text FROM pg_roles JOIN mine USING (oid)),
       (SELECT json_object_agg(name, setting) FROM pg_settings WHERE name = ANY (%s))
"""
_RULES: Final = "SELECT to_json(r) FROM pg_hba_file_rules AS r"


def _networks(_: click.Context, __: click.Parameter, given: Sequence[str]) -> tuple[str, ...]:
    from pgmonkey.config.server_needs import network

    try:
        return tuple(dict.fromkeys(map(network, given)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("pgserverconfig")
@click.argument("argument", metavar="[DIR]", required=False, type=options.PATH)
@options.directory_option
@click.option(
    *("--filepath", "--connconfig", "path"),
    metavar="FILE",
    type=options.PATH,
    help="One config file, instead of a registry.",
)
@click.option("--audit", is_flag=True, help="Connect, and compare with what the servers have.")
@click.option(
    *("--client", "addresses"),
    metavar="ADDRESS",
    multiple=True,
    callback=_networks,
    help="Where the applications run: an address, or a network such as 10.0.0.0/8.",
)
@click.option(
    *("--connection-type", "kinds"),
    type=click.Choice(["normal", "pool", "async", "async_pool"]),
    multiple=True,
    help="A type with which programs use FILE; may be repeated.  [default: the type in FILE, and each"
    " pool that has a section there]",
)
@options.fleet
@options.resolve_env
@options.references
@options.output_of_text
def command(
    argument: Path | None,
    option: Path | None,
    path: Path | None,
    audit: bool,
    addresses: tuple[str, ...],
    kinds: tuple[ConnectionType, ...],
    fleet: Fleet,
    resolve_env: bool,
    references: options.References,
    output: str,
) -> Answer:
    """Print the settings that servers need for their clients.

    They are lines of pg_hba.conf and postgresql.conf, for a registry or for one config file. --audit
    compares them with what each server has. Exit code 1: something does not match. 4: a server
    cannot be reached.
    """
    from pgmonkey.config.server_needs import SAMENET, clients_of, needs

    configs: Collection[DatabaseConfig]
    if path is None:
        if kinds or resolve_env:
            raise click.UsageError("--connection-type and --resolve-env go with --filepath")
        found = scan(options.chosen(argument, option), references)
        found.raise_for_problems()
        configs = found.configs.values()
    else:
        if argument is not None or option is not None:
            raise click.UsageError("give a registry or --filepath, not both")
        config, kinds = _single(path, kinds, resolve=resolve_env, references=references)
        configs = [config]
    clients: list[Client] = []
    skipped: dict[str, str] = {}
    for one in configs:
        match clients_of(one, fleet.loops, kinds):
            case str(why):
                skipped[one.name] = why
            case several:
                clients += several
    needed = needs(clients, fleet, addresses or (SAMENET,))
    audited = _audited(configs, needed, fleet, addresses) if audit else None
    answer = _answer(output, needed, skipped, audited)
    return answer if needed or path is None else replace(answer, code=ExitCode.PROBLEM)


def _single(
    path: Path,
    kinds: Sequence[ConnectionType],
    *,
    resolve: bool,
    references: options.References,
) -> tuple[DatabaseConfig, tuple[ConnectionType, ...]]:
    """Return the config of one file, and the connection types that a program may use with it."""
    from pgmonkey.config.legacy import load_config
    from pgmonkey.config.loader import load_file

    config = load_file(path, resolve=resolve, isolate=False, **references)
    if not kinds:
        sections = load_config(path)
        pools: list[ConnectionType] = ["pool", "async_pool"]
        written = [kind for kind in pools if sections.get(f"{kind}_settings")]
        kinds = tuple(dict.fromkeys((config.connection_type, *written)))
    return config, tuple(kinds)


class _Audited(NamedTuple):
    """What was found at one server."""

    verdicts: tuple[Verdict, ...]
    unreachable: bool


def _audited(
    configs: Iterable[DatabaseConfig],
    needed: Sequence[Needs],
    fleet: Fleet,
    addresses: Sequence[str],
) -> dict[str, _Audited]:
    """Connect to each server as each of its clients, and compare."""
    from pgmonkey.config.server_audit import Failure, audit

    named = {config.name: config for config in configs}
    wanted = [(one.server, client) for one in needed for client in one.clients]
    counted = Counter(client.name for _, client in wanted)
    looked = side_by_side(
        partial(_look, several={name for name, times in counted.items() if times > 1}, named=named),
        [client for _, client in wanted],
    )
    facts: dict[str, dict[str, Facts | Failure]] = {}
    for (server, client), found in zip(wanted, looked, strict=True):
        there = facts.setdefault(server, {})
        # Several addresses can have one name: then one that does not answer counts.
        if not isinstance(there.get(client.name), Failure):
            there[client.name] = found
    return {
        server: _Audited(
            verdicts, any(isinstance(found, Failure) for found in facts[server].values())
        )
        for server, verdicts in audit(needed, facts, fleet, addresses).items()
    }


def _look(
    client: Client, *, several: Collection[str], named: Mapping[str, DatabaseConfig]
) -> Facts | Failure:
    """Connect to one server as one client, and look; return why that cannot be done."""
    import psycopg

    from pgmonkey.config.overrides import Overrides
    from pgmonkey.config.server_audit import Failure
    from pgmonkey.errors import Problem
    from pgmonkey.pool.failures import classify

    config = named[client.name]
    if client.name in several:  # this one of its hosts, whatever the server is
        place = {"host": client.host, "port": client.port, "target_session_attrs": None}
        if client.hostaddr:
            place["hostaddr"] = client.hostaddr
        config = config.overridden(Overrides(place, {}))
    connection = connected(config)
    if isinstance(connection, Problem):
        reason = connection.code.removeprefix("probe.")
        return Failure(reason, f"{connection.message} [{reason}]")
    try:
        connection.autocommit = True  # a refused question leaves no transaction behind
        return _facts(connection, config)
    except psycopg.Error as error:
        failed = classify(error, config).error(config.name)
        return Failure(failed.reason, str(failed))
    finally:
        connection.close()


def _facts(connection: psycopg.Connection[Any], config: DatabaseConfig) -> Facts:
    from psycopg.rows import tuple_row

    from pgmonkey.config.redaction import scrub
    from pgmonkey.config.server_audit import Facts

    # The row factory of the file is for its application.
    with connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(_ABOUT_CLIENT, [[*_SETTINGS]])
        ((user, database, came_from, server_address, roles, settings),) = cursor
        return Facts(
            scrub(user, config.secrets),
            scrub(database, config.secrets),
            came_from,
            server_address,
            bool(connection.pgconn.ssl_in_use),
            frozenset(roles),
            settings or {},
            _rules(cursor),
            limits_of(cursor, config),
        )


def _rules(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Rule, ...] | str:
    """Return the lines of pg_hba.conf, or why this role cannot see them."""
    import psycopg

    from pgmonkey.config.server_audit import Rule

    try:
        return tuple(Rule.of(row) for (row,) in cursor.execute(_RULES))
    except psycopg.Error as error:
        return error.diag.message_primary or str(error)


def _answer(
    output: str,
    needed: Sequence[Needs],
    skipped: Mapping[str, str],
    audited: Mapping[str, _Audited] | None,
) -> Answer:
    from pgmonkey.config.server_needs import SAMENET

    verdicts = [verdict for one in (audited or {}).values() for verdict in one.verdicts]
    code = ExitCode.OK
    if any(one.unreachable for one in (audited or {}).values()):
        code = ExitCode.DATABASE_UNREACHABLE
    if any(one.status == "mismatch" for one in verdicts):
        code = ExitCode.PROBLEM
    if output == "json":
        report = {
            "servers": [_as_dict(one, audited) for one in needed],
            "skipped": [{"database": name, "reason": why} for name, why in skipped.items()],
        }
        return Answer(as_json(report), code)
    notes = [f"{name}: {why}" for name, why in skipped.items()]
    if audited is None:
        text = "\n\n".join("\n".join(_text(one)) for one in needed)
        if any(line.address == SAMENET for one in needed for line in one.lines):
            notes.append(
                "samenet is every address of the server's own networks; --client 10.0.0.0/8 says"
                " where the applications run"
            )
    else:
        rows = [(server, *verdict) for server, one in audited.items() for verdict in one.verdicts]
        text = table([_TITLES, *rows]) if rows else ""
    return Answer(text, code, "\n".join(notes))


def _text(one: Needs) -> Iterator[str]:
    """Yield the lines for the files of one server."""
    yield f"# {one.server}, for {', '.join(one.names)}"
    yield ""
    yield "# pg_hba.conf"
    yield from table([("# TYPE", "DATABASE", "USER", "ADDRESS", "METHOD", ""), *one.lines]).split(
        "\n"
    )
    yield ""
    yield "# postgresql.conf"
    yield from table([(str(each), f"# {each.why}") for each in one.settings]).split("\n")


def _as_dict(one: Needs, audited: Mapping[str, _Audited] | None) -> dict[str, Any]:
    return {
        "server": one.server,
        "databases": list(one.names),
        "connections": one.open,
        "pg_hba": [{**line._asdict(), "line": str(line)} for line in one.lines],
        "settings": [setting._asdict() for setting in one.settings],
        "audit": None
        if audited is None
        else [verdict._asdict() for verdict in audited[one.server].verdicts],
    }
