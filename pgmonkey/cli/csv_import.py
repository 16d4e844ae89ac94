"""Import a CSV file into a table: all of it or nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgmonkey.cli.csv_format import CsvError, CsvFormat
from pgmonkey.cli.csv_source import OTHER_ENCODING, CsvSource
from pgmonkey.cli.csv_tables import COLUMNS, Table, copying, told
from pgmonkey.cli.progress import Progress

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

    from pgmonkey.config.settings import DatabaseConfig

_LONGEST_NAME: Final = 63  # bytes of an identifier
#: A temporary table for rows that have columns without a name.
_STAGED: Final = Table("pg_temp", "pgmonkey_import")
#: Delimiters of other programs. A header of one column that contains one is probably several columns.
_OTHER_DELIMITERS: Final = ",;\t|"


class Imported(NamedTuple):
    """Tell what an import has done: its rows, and the columns of the table that it has created."""

    rows: int
    created: Sequence[str] = ()


def import_csv(
    config: DatabaseConfig,
    path: Path,
    table: Table,
    form: CsvFormat,
    columns: Sequence[str] | None = None,
) -> Imported:
    """Import a CSV file in one transaction, with memory for a part of it.

    Args:
        config: The database.
        path: The file; `-` for standard input.
        table: Where the rows go.
        form: How the file is written.
        columns: Those of the table, in the order of the file; else the header decides.

    Raises:
        ConnectError: the database cannot be reached.
        CsvError: something is wrong with the file or the table; nothing is imported.
    """
    import psycopg

    with CsvSource(path, form) as source:
        header = source.header() if form.has_headers else None
        if columns is not None and header is not None and len(header) != len(columns):
            raise CsvError(f"the header has {len(header)} columns, and --columns {len(columns)}")
        with copying(config) as connection:
            into = _target(connection, source, table, form, header, columns)
            try:
                number = _copy(connection, source, into, form)
            except psycopg.Error as error:
                place = None if connection.broken else _place(error, source, into)
                if place is None:
                    raise
                hint = ""
                if isinstance(error, psycopg.errors.CharacterNotInRepertoire):
                    hint = f"\n  hint: {OTHER_ENCODING}"
                raise CsvError(f"{place}: {told(error, config)}{hint}") from None
            if into.table == _STAGED:
                _move(connection, into, table)
            return Imported(number, into.created)


class _Target(NamedTuple):
    """Hold the column for each field of a row, in their order; `None` for one without a name."""

    table: Table
    columns: Sequence[str | None]
    created: Sequence[str] = ()

    def names(self) -> list[str]:
        return [name or f"column {number}" for number, name in enumerate(self.columns, 1)]

    def named(self) -> list[str]:
        return [name for name in self.columns if name is not None]


def _copy(
    connection: psycopg.Connection[Any], source: CsvSource, into: _Target, form: CsvFormat
) -> int:
    from psycopg import sql

    statement = sql.SQL(
        "COPY {} ({}) FROM STDIN WITH"
        " (FORMAT csv, DELIMITER {}, QUOTE {}, NULL {}, ENCODING 'UTF8')"
    ).format(
        into.table.identifier,
        _listed(into.names()),
        *(form.delimiter, form.quote, form.null_text),
    )
    with connection.cursor() as cursor, Progress(source.size) as progress:
        with cursor.copy(statement) as copy:
            before = 0
            for part, ends in source.data(len(into.columns)):
                copy.write(part)
                progress.add(rows=ends, octets=source.read - before)
                before = source.read
        return cursor.rowcount


def _target(
    connection: psycopg.Connection[Any],
    source: CsvSource,
    table: Table,
    form: CsvFormat,
    header: Sequence[str] | None,
    named: Sequence[str] | None,
) -> _Target:
    """Find out where the fields go, and create the table if it is missing."""
    from psycopg import sql
    from psycopg.rows import tuple_row

    with connection.cursor(row_factory=tuple_row) as cursor:
        found = cursor.execute(COLUMNS, [table.identifier.as_string(connection)]).fetchall()
        existing = [name for (name,) in found]
        columns: Sequence[str | None]
        if named is not None:
            columns = named
        elif header is not None:
            columns = matched(header, existing, form) if existing else new_columns(header, form)
        elif existing:
            columns = existing
        else:
            columns = [f"column_{number + 1}" for number in range(source.width())]
        into = _Target(table, columns)
        if not existing:
            if not form.auto_create_table:
                raise CsvError(f"there is no table {table}\n  hint: --create-table creates it")
            into = into._replace(created=into.named())
            text = (sql.SQL("{} text").format(sql.Identifier(name)) for name in into.created)
            cursor.execute(
                sql.SQL("CREATE TABLE {} ({})").format(table.identifier, sql.SQL(", ").join(text))
            )
        if None in columns:
            cursor.execute(
                sql.SQL(
                    "CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
                ).format(
                    sql.Identifier(_STAGED.name),
                    sql.SQL(", ").join(
                        sql.Identifier(one)
                        if name
                        else sql.SQL("NULL::text AS {}").format(sql.Identifier(one))
                        for one, name in zip(into.names(), columns, strict=True)
                    ),
                    table.identifier,
                )
            )
            into = into._replace(table=_STAGED)
        return into


def _move(connection: psycopg.Connection[Any], into: _Target, table: Table) -> None:
    """Move the rows to their table; an error if a column without a name has a value."""
    from psycopg import sql
    from psycopg.rows import scalar_row

    for number, name in enumerate(into.columns, 1):
        with connection.cursor(row_factory=scalar_row) as cursor:
            if (
                name is None
                and cursor.execute(
                    sql.SQL("SELECT {column} FROM {table} WHERE {column} <> '' LIMIT 1").format(
                        column=sql.Identifier(into.names()[number - 1]), table=into.table.identifier
                    )
                ).fetchone()
            ):
                raise CsvError(
                    f"column {number} has no name in the header, and rows have a value there"
                    "\n  hint: give it a name"
                )
    columns = _listed(into.named())
    connection.execute(
        # As COPY does it: an identity column takes the values of the file.
        sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
            table.identifier, columns, columns, into.table.identifier
        )
    )


def _listed(names: Sequence[str]) -> sql.Composed:
    from psycopg import sql

    return sql.SQL(", ").join(map(sql.Identifier, names))


def new_columns(header: Sequence[str], form: CsvFormat) -> list[str | None]:
    """Return the names of the columns that a header asks for.

    Example:
        >>> new_columns(["First Name", "e-mail"], CsvFormat())
        ['first_name', 'e_mail']
    """
    _refuse_another_delimiter(header, form)
    names = [_column(name, form) for name in header]
    _refuse_twins(names)
    return names


def matched(header: Sequence[str], existing: Sequence[str], form: CsvFormat) -> list[str | None]:
    """Return the column of a table for each name of a header; those left out get their default.

    Example:
        >>> matched(["Total", "id", ""], ["id", "made", "total"], CsvFormat())
        ['total', 'id', None]
    """
    names = [name if name in existing else _column(name, form) for name in header]
    unknown = [name for name in names if name is not None and name not in existing]
    if unknown:
        _refuse_another_delimiter(header, form)
        raise CsvError(
            f"the table has no column {', '.join(unknown)}; it has {', '.join(existing)}"
            "\n  hint: is the first row a header? If not: --no-headers"
        )
    _refuse_twins(names)
    return names


def _column(name: str, form: CsvFormat) -> str | None:
    if not name.strip():
        return None
    if form.enforce_lowercase:
        name = re.sub(r"[^a-zA-Z0-9_]", "_", name.lower())
    return name.encode()[:_LONGEST_NAME].decode(errors="ignore")  # as the server does


def _refuse_another_delimiter(header: Sequence[str], form: CsvFormat) -> None:
    others = set(_OTHER_DELIMITERS) - {form.delimiter}
    if len(header) == 1 and (other := set(header[0]) & others):
        shown = "tab" if other == {"\t"} else min(other)
        raise CsvError(
            f"the header is one column, and has the character {shown!r} in it"
            f"\n  hint: --delimiter '{shown}' if that separates columns, --columns NAME if it does not"
        )


def _refuse_twins(names: Sequence[str | None]) -> None:
    twins = [name for name, times in Counter(names).items() if name is not None and times > 1]
    if twins:
        raise CsvError(f"several columns of the header are the column {', '.join(twins)}")


def _place(error: psycopg.Error, source: CsvSource, into: _Target) -> str | None:
    """Return the place of a row that the server refuses: file, line, row and column."""
    found = place_in(error.diag.context or "", into.table.name, into.names())
    if found is None:
        return None
    number, column = found
    line, row = source.place(number, len(into.columns))
    words = [f"row {row:,}"] if row else []
    if name := column or error.diag.column_name:
        words.append(f"column {name}")
    return f"{source.name}:{line}: {', '.join(words)}".rstrip(": ")


def place_in(context: str, table: str, columns: Sequence[str]) -> tuple[int, str] | None:
    """Return the line, and the column if there is one, that the context of a server's error names.

    The words around them are in the language of the server.

    Example:
        >>> place_in('COPY orders, line 3, column total: "x"', "orders", ["id", "total"])
        (3, 'total')
        >>> place_in('COPY orders, Zeile 3: »x«', "orders", ["id", "total"])
        (3, '')
    """
    found = re.search(rf"^COPY {re.escape(table)}\W\D*(\d+)(?:, \S+ )?(.*)", context, re.MULTILINE)
    if found is None:
        return None
    named = (one for one in columns if re.match(rf"{re.escape(one)}(?:$|:)", found[2]))
    return int(found[1]), max(named, key=len, default="")
