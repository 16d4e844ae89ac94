"""What `pgexport` writes, `pgimport` reads: generated tables come back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from pgmonkey.cli.csv_export import export_csv
from pgmonkey.cli.csv_format import CsvError, CsvFormat
from pgmonkey.cli.csv_import import import_csv
from pgmonkey.cli.csv_source import CsvSource
from pgmonkey.cli.csv_tables import Table
from pgmonkey.config.loader import load_file
from pgmonkey.config.settings import DatabaseConfig
from tests.kit import TemporaryDatabase

FAST = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# All of them, and those that mean something in a CSV file often.
CHARACTERS = st.one_of(
    st.sampled_from("\"',;|\t\n\r\\.\N{NO-BREAK SPACE}\ufeff "),
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
)
VALUES = st.one_of(st.none(), st.text(CHARACTERS, max_size=6), st.sampled_from(["\\.", "\\N", ""]))


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[str | None, ...]]:
    """Rows of the same length."""
    width = draw(st.integers(1, 3))
    return draw(st.lists(st.tuples(*[VALUES] * width), min_size=1, max_size=5))


@st.composite
def forms(draw: st.DrawFn) -> CsvFormat:
    """Formats that have every character."""
    return CsvFormat(
        delimiter=draw(st.sampled_from(",;|\t :\\")),
        quotechar=draw(st.sampled_from("\"'+")),
        encoding=draw(st.sampled_from([None, "utf-8-sig", "utf-16", "utf-32-be", "gb18030"])),
        null_text=draw(st.sampled_from(["", "NULL", "\\N"])),
        has_headers=draw(st.booleans()),
    )


@pytest.fixture
def connection(module_database: TemporaryDatabase) -> Iterator[psycopg.Connection[Any]]:
    """A connection that sees what was committed."""
    with module_database.connect(autocommit=True, prepare_threshold=None) as conn:
        yield conn


@pytest.fixture
def config(tmp_path: Path, module_database: TemporaryDatabase) -> DatabaseConfig:
    """The configuration of a database."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"connection_settings": module_database.parameters()}))
    return load_file(path)


@FAST
@given(rows=tables(), form=forms().filter(lambda form: not form.mistakes()))
@example(rows=[("\\.",), (None,), ("",)], form=CsvFormat())
@example(rows=[(None, None), ("a\r\nb", '"')], form=CsvFormat())
def test_a_table_comes_back_as_it_was(
    rows: list[tuple[str | None, ...]],
    form: CsvFormat,
    connection: psycopg.Connection[Any],
    config: DatabaseConfig,
    tmp_path: Path,
) -> None:
    """An import brings back every text and NULL that an export wrote, in every format."""
    columns = [f"c{number}" for number in range(len(rows[0]))]
    connection.execute("DROP TABLE IF EXISTS before, after")
    connection.execute(
        sql.SQL("CREATE TABLE before ({})").format(
            sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(one)) for one in columns)
        )
    )
    with connection.cursor() as cursor, cursor.copy("COPY before FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
    path = tmp_path / "table.csv"
    assert export_csv(config, Table("public", "before"), path, form) == len(rows)
    done = import_csv(config, path, Table("public", "after"), form)
    assert done.rows == len(rows)
    assert len(done.created) == len(columns)
    if form.has_headers:
        names = connection.execute("SELECT * FROM after LIMIT 0").description
        assert [one.name for one in names or ()] == columns
    assert connection.execute("SELECT * FROM after").fetchall() == rows


FIELDS = st.text(st.sampled_from('ab",\n\r\\. '), max_size=4)


@FAST
@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=6),
    eol=st.sampled_from(["\n", "\r\n", "\r"]),
    blanks=st.lists(st.integers(0, 5), max_size=3),
    bad=st.integers(0, 5),
)
def test_a_wrong_row_is_named_wherever_it_is(
    rows: list[tuple[str, str]],
    eol: str,
    blanks: list[int],
    bad: int,
    connection: psycopg.Connection[Any],
    config: DatabaseConfig,
    tmp_path: Path,
) -> None:
    """The error has the right line, row and column, whatever line breaks come before it."""
    bad %= len(rows)
    text = f"a,b,n{eol}"
    row_starts = []
    for number, row in enumerate(rows):
        text += eol * blanks.count(number)
        row_starts.append(text.count("\r" if eol == "\r" else "\n") + 1)
        fields = [*row, "x" if number == bad else str(number)]
        text += ",".join(_quoted(field, always=bad % 2 == 1) for field in fields) + eol
    path = tmp_path / "rows.csv"
    path.write_text(text, newline="")
    connection.execute("DROP TABLE IF EXISTS numbered")
    connection.execute("CREATE TABLE numbered (a text, b text, n int)")
    with pytest.raises(CsvError) as caught:
        import_csv(config, path, Table("public", "numbered"), CsvFormat())
    expected = f"{path}:{row_starts[bad]}: row {bad + 1}, column n: invalid input syntax"
    assert str(caught.value).startswith(expected)
    path.write_text(text.replace("x", "77"), newline="")
    import_csv(config, path, Table("public", "numbered"), CsvFormat())
    found = connection.execute("SELECT coalesce(a, ''), coalesce(b, '') FROM numbered").fetchall()
    assert found == rows


def _quoted(field: str, *, always: bool) -> str:
    needed = always or any(character in field for character in '",\r\n')
    return '"{}"'.format(field.replace('"', '""')) if needed else field


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.sampled_from('ab",\n\r\\. '), max_size=24),
    size=st.integers(1, 9),
)
def test_a_file_is_read_the_same_in_blocks_of_any_size(
    text: str, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The size of a block changes neither what is sent nor which line is refused."""
    path = tmp_path_factory.getbasetemp() / "blocks.csv"
    path.write_text(text, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgmonkey.cli.csv_source._BLOCK", size)
        parts = _read(path)
    assert parts == _read(path)


def _read(path: Path) -> str | tuple[bytes, int]:
    try:
        with CsvSource(path, CsvFormat()) as source:
            source.width()
            parts = list(source.data(2))
    except CsvError as error:
        return str(error)
    return b"".join(part for part, _ in parts), sum(ends for _, ends in parts)


def test_no_line_ends_the_data_of_older_servers(tmp_path: Path) -> None:
    r"""A line of `\.` alone is sent in quotes, unless it is inside of a quoted field."""
    path = tmp_path / "ends.csv"
    path.write_bytes(b'a\r\n\\.\r\n"x\n\\.\ny"\r\n\\.b\r\n\\.')
    with CsvSource(path, CsvFormat()) as source:
        assert source.header() == ["a"]
        sent = b"".join(part for part, _ in source.data(1))
    assert sent == b'"\\."\r\n"x\n\\.\ny"\r\n\\.b\r\n"\\."'
