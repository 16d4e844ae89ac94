"""Export a table or a view to a CSV file, which appears when it is complete."""

from __future__ import annotations

import codecs
import os
import select
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn

from pgmonkey.cli.csv_format import STANDARD, CsvError, CsvFormat
from pgmonkey.cli.csv_tables import COLUMNS, Table, copying
from pgmonkey.cli.progress import Progress

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql
    from psycopg.pq.abc import PGresult

    from pgmonkey.config.settings import DatabaseConfig

#: How long one wait takes at most: a Ctrl-C that comes just before a wait does not end that wait.
_GLANCE: Final = 100  # milliseconds
#: How long a request to cancel the COPY may take.
_CANCEL: Final = 2.0  # seconds


def export_csv(config: DatabaseConfig, table: Table, path: Path, form: CsvFormat) -> int:
    """Export a table to a CSV file, with memory for a part of it, and return the number of rows.

    Args:
        config: The database.
        table: A table or a view.
        path: The file; `-` for standard output.
        form: How the file is written.

    Raises:
        ConnectError: the database cannot be reached.
        CsvError: the server refuses it, or the encoding has no such character.
    """
    from psycopg import sql
    from psycopg.rows import tuple_row

    if not form.quotes:
        raise CsvError("an export needs a quote character, for values with a delimiter in them")
    with (
        _ended_by_sigterm(),
        copying(config) as connection,
        new_file(path) as file,
        Progress() as progress,
    ):
        with connection.cursor(row_factory=tuple_row) as cursor:
            found = cursor.execute(COLUMNS, [table.identifier.as_string(connection)]).fetchall()
        if not found:
            raise CsvError(f"there is no table {table} with columns")
        # COPY takes no view and no partitioned table, but a query on them.
        statement = sql.SQL(
            "COPY (SELECT {} FROM {}) TO STDOUT WITH"
            " (FORMAT csv, HEADER {}, DELIMITER {}, QUOTE {}, NULL {}, ENCODING 'UTF8')"
        ).format(
            sql.SQL(", ").join(sql.Identifier(name) for (name,) in found),
            table.identifier,
            *(form.has_headers, form.delimiter, form.quote, form.null_text),
        )
        encoded = Encoded(file, path, form.encoding or "utf-8")
        number = copied(connection, statement, encoded.write, progress)
        encoded.write(b"", final=True)
        return number


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """End a block with an exception when the process is to end, so that it leaves nothing behind."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Give a block a file to write, which replaces an existing one when the block ends.

    After an exception nothing of it is left. A pipe, another file that is not regular, and standard
    output are written directly.

    Raises:
        OSError: it cannot be written; the error has its name.
    """
    if path == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(os.path.realpath(path))  # a link stays one
    mode = target.stat().st_mode if target.exists() else None
    special = mode is not None and not stat.S_ISREG(mode)
    new = target if special else target.with_name(f".{target.name}.{token_hex(4)}")
    try:
        # It never has a bit more than the old one, and in the end those that the umask took.
        opener = partial(os.open, mode=0o666 if mode is None else stat.S_IMODE(mode))
        with open(new, "wb" if special else "xb", opener=opener) as file:
            if mode is not None and not special:
                new.chmod(stat.S_IMODE(mode))
            yield file
        if not special:
            new.replace(target)
    except BaseException as error:
        if not special:
            new.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


class Encoded:
    """Write UTF-8 to a file in another encoding.

    Args:
        file: The file.
        path: Its name.
        encoding: As Python names it.
    """

    def __init__(self, file: BinaryIO, path: Path, encoding: str) -> None:
        self._file = file
        self._path = path
        self._encoding = encoding
        self._same = codecs.lookup(encoding).name == "utf-8"
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._encoder = codecs.getincrementalencoder(encoding)()
        self._lines = 0

    def write(self, block: bytes, *, final: bool = False) -> None:
        """Write a part; with the last one, what some encodings end with.

        Raises:
            CsvError: the encoding has no such character.
        """
        if self._same:
            self._file.write(block)
            return
        text = self._decoder.decode(block, final)
        try:
            self._file.write(self._encoder.encode(text, final))
        except UnicodeEncodeError as error:
            line = self._lines + text.count("\n", 0, error.start) + 1
            character = text[error.start]
            raise CsvError(
                f"{self._path}:{line}: {self._encoding} has no {character!r} (U+{ord(character):04X})"
                "\n  hint: --encoding utf-8 has every character"
            ) from None
        self._lines += text.count("\n")


def copied(
    connection: psycopg.Connection[Any],
    statement: sql.Composed,
    write: Callable[[bytes], object],
    progress: Progress,
) -> int:
    """Write what a COPY sends, and return the number of rows.

    The server sends each row as a message of its own. `cursor.copy` of psycopg takes twice as long
    for one as psql does, so this asks libpq itself, as psql does.
    """
    import psycopg
    from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, TransactionStatus

    pgconn = connection.pgconn
    readable = select.poll()
    readable.register(pgconn.socket, select.POLLIN)

    def receive() -> None:
        readable.poll(_GLANCE)
        pgconn.consume_input()

    def result() -> PGresult | None:
        while pgconn.is_busy():
            receive()
        return pgconn.get_result()

    try:
        pgconn.send_query(statement.as_bytes(connection))
        while pgconn.flush():
            receive()
        answer = result()
        if answer is not None and answer.status == ExecStatus.COPY_OUT:
            _write(pgconn.get_copy_data, receive, write, progress)
            answer = result()
        assert answer is not None
        with suppress(psycopg.Error):  # the server may have closed the connection after an error
            while result() is not None:
                pass
        if answer.status == ExecStatus.COMMAND_OK:
            return answer.command_tuples or 0
        words = (DiagnosticField.MESSAGE_PRIMARY, DiagnosticField.MESSAGE_DETAIL)
        parts = [text.decode() for field in words if (text := answer.error_field(field))]
        raise psycopg.OperationalError("; ".join(parts) or answer.error_message.decode())
    except BaseException:
        if pgconn.status == ConnStatus.OK:  # a ROLLBACK is not possible in the middle of a COPY
            if pgconn.transaction_status == TransactionStatus.ACTIVE:
                with suppress(psycopg.Error):  # else the server goes on until its buffers are full
                    connection.cancel_safe(timeout=_CANCEL)
            connection.close()
        raise


def _write(
    next_row: Callable[[int], tuple[int, memoryview]],
    receive: Callable[[], None],
    write: Callable[[bytes], object],
    progress: Progress,
) -> None:
    rows: list[memoryview] = []
    while True:
        size, row = next_row(1)
        if size > 0:
            rows.append(row)
            continue
        if rows:  # all that has arrived
            block = b"".join(rows)
            write(block)
            progress.add(rows=len(rows), octets=len(block))
            rows.clear()
        if size < 0:
            return
        receive()
