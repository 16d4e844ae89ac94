"""The table of an import or an export, and the transaction that it is done in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from pgmonkey.cli.csv_format import CsvError

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

    from pgmonkey.config.settings import DatabaseConfig

#: Without these limits, which an application sets for its statements: they would end a long copy.
_NO_LIMITS: Final = (
    "SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN"
    " ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')"
)
_LONGEST_MESSAGE: Final = 1000  # characters: it may quote a whole field
#: The columns of a table that are not generated.
COLUMNS: Final = (
    "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s)"
    " AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum"
)


class Table(NamedTuple):
    """Name a table, as it is written in the catalogue; without a schema the search path decides."""

    schema: str | None
    name: str

    @classmethod
    def named(cls, text: str, schema: str | None) -> Table:
        """Return the table that a user names, `schema.table` or `table`, in its case and unquoted.

        Example:
            >>> Table.named("public.orders", None)
            Table(schema='public', name='orders')
        """
        if '"' in text:
            raise click.BadParameter(
                "write the name without quotes: its case is kept", param_hint="--table"
            )
        before, dot, name = text.partition(".")
        if not (name if dot else before) or (dot and not before):
            raise click.BadParameter("expected table or schema.table", param_hint="--table")
        return cls(before, name) if dot else cls(schema, text)

    def __str__(self) -> str:
        return self.name if self.schema is None else f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """The name as a part of a statement."""
        from psycopg import sql

        return sql.Identifier(*filter(None, self))


@contextmanager
def copying(config: DatabaseConfig) -> Iterator[psycopg.Connection[Any]]:
    """Give a block a connection of its own, as an application gets it, in one transaction.

    Raises:
        ConnectError: it cannot be made, or it is lost in the block.
        CsvError: the server refuses what the block does; all is undone.
    """
    import psycopg

    from pgmonkey.pool._sync.connecting import connect
    from pgmonkey.pool.failures import ConnectFailure, classify

    connection = connect(config, config.connection_type)
    if isinstance(connection, ConnectFailure):
        raise connection.error(config.name)
    ended = False
    try:
        with connection.transaction():
            connection.execute(_NO_LIMITS)
            yield connection
            ended = True
    except psycopg.Error as error:
        if connection.broken:
            failure = classify(error, config)
            if ended:
                text = f"{failure.text}; this was at the end: look whether the rows are there"
                failure = failure._replace(text=text)
            raise failure.error(config.name) from None
        raise CsvError(told(error, config)) from None
    finally:
        connection.close()


def told(error: psycopg.Error, config: DatabaseConfig) -> str:
    """Return what a server says, in one line and without secrets."""
    from pgmonkey.config.redaction import scrub

    parts = (error.diag.message_primary or str(error), error.diag.message_detail)
    text = scrub("; ".join(part.strip().rstrip(".") for part in parts if part), config.unquotable)
    if len(text) > _LONGEST_MESSAGE:
        text = f"{text[:_LONGEST_MESSAGE]} ..."
    hint = error.diag.message_hint
    return f"{text}\n  hint: {scrub(hint, config.unquotable)}" if hint else text
