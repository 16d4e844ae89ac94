"""`pgmonkey pgimport`: a CSV file into a table, all of it or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.page import shown
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase
from tests.kit.command import Finished, command, environment, invoke, measured, run
from tests.kit.eventually import eventually


@pytest.fixture
def config(tmp_path: Path, module_database: TemporaryDatabase) -> Path:
    """A config file of a database that has no table."""
    module_database.execute("DROP SCHEMA public CASCADE")
    module_database.execute("CREATE SCHEMA public")
    module_database.execute(f'ALTER SCHEMA public OWNER TO "{module_database.user}"')
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"connection_settings": module_database.parameters()}))
    return path


class Import:
    """Import texts into the table t."""

    def __init__(self, config: Path, database: TemporaryDatabase, canary: Canary) -> None:
        self.config = config
        self.database = database
        self.canary = canary
        self.csv = config.with_name("t.csv")

    def __call__(self, text: str | bytes, *options: object, table: str = "t") -> Finished:
        self.csv.write_bytes(text if isinstance(text, bytes) else text.encode())
        return self.again(*options, table=table)

    def again(self, *options: object, table: str = "t") -> Finished:
        """Import the file as it is."""
        return invoke(
            *("pgimport", "--table", table, "--import_file", self.csv.name),
            *("--connconfig", self.config, *options),
            canary=self.canary,
            cwd=self.csv.parent,
        )

    def create(self, columns: str) -> None:
        """Create the table."""
        self.execute(f"CREATE TABLE t ({columns})")

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as the owner of the database."""
        with self.database.connect(autocommit=True) as conn:
            cursor = conn.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def rows(self) -> list[tuple[Any, ...]]:
        """Return what is in the table."""
        return self.execute("SELECT * FROM t")


@pytest.fixture
def imported(config: Path, module_database: TemporaryDatabase, canary: Canary) -> Import:
    """Imports into a database without tables."""
    return Import(config, module_database, canary)


def failed(done: Finished, line: int | None, *words: str) -> None:
    """Check that an import has failed, at a line, with words that say why."""
    assert (done.code, done.out) == (1, ""), done
    if line is not None:
        assert done.err.startswith(f"t.csv:{line}: "), done.err
    for word in words:
        assert word in done.err, done.err


# The table

CREATED = "2 rows imported into public.t, created with the columns first_name, e_mail, total\n"


def test_the_command_of_4_0_imports_at_the_first_run(imported: Import) -> None:
    """The command of 4.0 creates the table from the header and imports all rows at once."""
    done = imported('First Name,e-mail,Total\nAnn,ann@x,1\n Bob ,"b,""b""\nb",\n')
    assert (done.code, done.out, done.err) == (0, CREATED, "")
    assert imported.rows() == [("Ann", "ann@x", "1"), (" Bob ", 'b,"b"\nb', None)]
    types = imported.execute(
        "SELECT attname::text, atttypid::regtype::text FROM pg_attribute"
        " WHERE attrelid = 'public.t'::regclass AND attnum > 0 ORDER BY attnum"
    )
    assert types == [("first_name", "text"), ("e_mail", "text"), ("total", "text")]
    assert not imported.csv.with_suffix(".yaml").exists()
    assert imported.again().out == "2 rows imported into public.t\n"
    assert len(imported.rows()) == 4


def test_the_page_shows_what_it_prints(imported: Import) -> None:
    """The page shows the output of an import, and the error of a row that is refused."""
    created, refused = shown("pgmonkey pgimport")
    imported.csv = imported.csv.with_name("items.csv")
    assert imported("id,item,price\n1,tea,\n2,milk,3\n", table="items").out == created
    imported.execute("ALTER TABLE items ALTER price TYPE numeric USING price::numeric")
    done = imported("id,item,price\n3,'a\n4,milk,cheap\n".replace("'a", '"a\nb",1'), table="items")
    assert (done.code, done.err) == (1, refused)


def test_a_registry_names_the_database(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, tmp_path: Path
) -> None:
    """NAME and --dir choose the database, and its search path decides about the schema."""
    with database.connect(autocommit=True) as conn:
        conn.execute("CREATE SCHEMA sales")
    settings = {"search_path": "sales, public"}
    registry_dir.declare("orders", database, "async_pool", async_settings=settings)
    (tmp_path / "new.csv").write_text("a\n1\n")
    done = invoke(
        *("pgimport", "orders", "--dir", registry_dir, "--table", "t"),
        *("--import-file", tmp_path / "new.csv"),
        canary=canary,
    )
    assert (done.code, done.out) == (0, "1 row imported into t, created with the columns a\n"), done
    assert database.execute("SELECT a FROM sales.t") == [("1",)]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "give the NAME of a database, or the config file"),
        (("orders", "--connconfig", "c.yaml"), "give the NAME of a database, or"),
        (("orders", "--table", ".t"), "expected table or schema.table"),
        (("orders", "--table", '"Items"'), "write the name without quotes"),
        (("nowhere",), 'no database "nowhere" in registry.d'),
        (("orders", "--delimiter", ";;"), "expected one ASCII character"),
        (("orders", "--delimiter", '"'), "it is the delimiter, too"),
        (("orders", "--null-text", ","), "for --null-text: it has the delimiter"),
        (("orders", "--encoding", "base64"), "Python knows no such encoding of text"),
    ],
)
def test_wrong_usage_is_code_2(
    arguments: tuple[str, ...],
    words: str,
    registry_dir: RegistryDirectory,
    canary: Canary,
    tmp_path: Path,
) -> None:
    """A wrong option is found before anything is connected to or read."""
    settings = {"host": "127.0.0.1", "port": 1, "dbname": "orders", "user": "app"}
    registry_dir.write("orders", {"connection_settings": settings})
    done = invoke(
        "pgimport", "--import_file", "none.csv", "--table", "t", *arguments,
        canary=canary, cwd=tmp_path,
    )  # fmt: skip
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_failures_have_the_codes_of_all_commands(imported: Import, canary: Canary) -> None:
    """A missing file is code 1, and a database that cannot be reached is code 4."""
    done = imported.again()
    assert (done.code, done.err) == (1, "t.csv: No such file or directory\n")
    text = imported.config.read_text().replace("password: ", "password: wrong")
    imported.config.write_text(text)
    done = imported("a\n1\n")
    assert done.code == 4
    assert "[auth]" in done.err
    imported.config.unlink()
    done = imported.again()
    assert done.code == 1
    assert "config.yaml: No such file or directory" in done.err


def test_a_table_gets_the_columns_that_the_header_has(imported: Import) -> None:
    """The header may have any order, and columns that it leaves out get their default."""
    imported.create("id serial, \"Größe\" int, made date DEFAULT '2026-01-01', total numeric")
    assert imported('TOTAL,"Größe"\n1.5,2\n,3\n').code == 0
    rows = imported.execute('SELECT id, "Größe", made::text, total::text FROM t')
    assert rows == [(1, 2, "2026-01-01", "1.5"), (2, 3, "2026-01-01", None)]


def test_a_header_that_does_not_fit_is_refused(imported: Import) -> None:
    """An import refuses a column that the table does not have, and two names for one column."""
    imported.create("id int, total int")
    failed(
        imported("id,totl,x\n1,2,3\n"), None, "no column totl, x; it has id, total", "--no-headers"
    )
    failed(imported("id,ID\n1,2\n"), None, "several columns of the header are the column id")
    assert imported.rows() == []


def test_headers_of_any_kind_make_columns(imported: Import) -> None:
    """A name may start with a digit; --no-lowercase keeps the names; equal ones are refused."""
    assert imported("2024,select\n1,2\n").code == 0
    assert imported.execute('SELECT "2024", "select" FROM t') == [("1", "2")]
    imported.execute("DROP TABLE t")
    assert imported("First Name,Größe\n1,2\n", "--no-lowercase").code == 0
    assert imported.execute('SELECT "First Name", "Größe" FROM t') == [("1", "2")]
    imported.execute("DROP TABLE t")
    failed(imported("a b,A-B\n1,2\n"), None, "several columns", "a_b")
    long = "x" * 70
    assert imported(f"{long},b\n1,2\n").code == 0
    assert imported(f"{long},b\n1,2\n").code == 0
    assert len(imported.rows()) == 2


def test_a_file_without_a_header(imported: Import) -> None:
    """The fields go to the columns of the table or of --columns; a new table numbers them."""
    assert imported("1,2\n3,4\n", "--no-headers").code == 0
    assert imported.execute("SELECT column_1, column_2 FROM t") == [("1", "2"), ("3", "4")]
    imported.execute("DROP TABLE t")
    imported.create("id serial, a int, b int")
    assert imported("1,2\n3,4\n", "--no-headers", "--columns", "b, a").code == 0
    assert imported.rows() == [(1, 2, 1), (2, 4, 3)]
    failed(imported("1,2\n", "--no-headers"), 1, "row 1", 'missing data for column "b"')
    assert imported("x,y\n5,6\n", "--columns", "a,b").code == 0
    failed(imported("x\n5\n", "--columns", "a,b"), None, "the header has 1 column")


def test_the_fields_of_the_first_row_may_be_long(imported: Import) -> None:
    """A new table gets a column for each field; the limit for a quoted first row is named."""
    long = "x" * 200_000
    assert imported(f'{long},"1,\n",{long}\n', "--no-headers").code == 0
    assert imported.execute("SELECT * FROM t") == [(long, "1,\n", long)]
    imported.execute("DROP TABLE t")
    lines = ("y" * 99 + "\n") * 20_000
    refused = imported(f'"{lines}",2\n', "--no-headers")
    failed(refused, 1, "a quote is opened in this row and not closed within 1 MiB")


def test_a_table_is_not_created_where_that_is_not_wanted(imported: Import) -> None:
    """--no-create-table, or a header with another delimiter, creates no table."""
    failed(imported("a\n1\n", "--no-create-table"), None, "there is no table public.t")
    failed(imported("a;b\n1;2\n"), None, "has the character ';' in it", "--delimiter ';'")
    failed(imported("a\tb\n1\t2\n"), None, "has the character 'tab' in it", "--delimiter 'tab'")
    assert imported.execute("SELECT to_regclass('public.t')") == [(None,)]
    imported.create("a int, b int")
    failed(imported("a;b\n1;2\n"), None, "has the character ';' in it", "--delimiter ';'")


def test_one_column_may_have_any_name(imported: Import) -> None:
    """A quoted delimiter is part of the name; for another separator, `--columns` gives the name."""
    assert imported('"price, net"\n1\n').code == 0
    assert imported.execute("SELECT price__net FROM t") == [("1",)]
    imported.execute("DROP TABLE t")
    failed(imported("net;gross\n1\n"), None, "--delimiter ';'", "--columns NAME if it does not")
    assert imported("net;gross\n1\n", "--columns", "net").code == 0
    assert imported.execute("SELECT net FROM t") == [("1",)]


def test_columns_without_a_name_must_be_empty(imported: Import) -> None:
    """An import leaves out a column without a name, and refuses one that has a value."""
    text = 'a,,b,\n1,,2,\n3,"",4,\n'
    assert imported(text).out == "2 rows imported into public.t, created with the columns a, b\n"
    assert imported(text).out == "2 rows imported into public.t\n"
    assert imported.rows() == [("1", "2"), ("3", "4")] * 2
    failed(imported("a,,b,\n1,,2,x\n"), None, "column 4 has no name in the header, and rows have")
    failed(imported("a,,b,\n1,,2,\n3,4\n"), 3, 'row 2: missing data for column "b"')
    imported.execute("ALTER TABLE t ALTER a TYPE int USING a::int, ADD CHECK (a < 9)")
    failed(imported("a,,b,\n1,,2,\n\nx,,4,\n"), 4, "row 2, column a: invalid input syntax")
    failed(imported("a,\n9,\n"), None, "violates check constraint", "(9, null)")
    assert len(imported.rows()) == 4


def test_a_column_that_is_always_generated_takes_the_values_of_the_file(imported: Import) -> None:
    """An identity column of the header is filled, also beside a column without a name."""
    imported.create("id int GENERATED ALWAYS AS IDENTITY, name text")
    assert imported("id,name\n7,tea\n").code == 0
    assert imported("id,name,\n8,milk,\n").code == 0
    assert imported.rows() == [(7, "tea"), (8, "milk")]


def test_an_empty_file_is_refused(imported: Import) -> None:
    """A file without a header is refused; a header without rows imports no row."""
    failed(imported(""), None, "t.csv: there is no row in it")
    failed(imported("\n\n,,\n"), None, "t.csv: there is no row in it")
    assert imported("a,b\n").out == "0 rows imported into public.t, created with the columns a, b\n"


# All or nothing, and where a row is wrong


def test_a_row_that_is_refused_is_named_and_all_is_undone(imported: Import) -> None:
    """The error has file, line, row and column, and no row and no new table stays."""
    imported.create("id int, total int")
    done = imported('id,total\n1,2\n"2\n",3\n\n3,x\n4,5\n')
    failed(done, 6, 'row 3, column total: invalid input syntax for type integer: "x"')
    assert imported.rows() == []
    failed(imported("id,total\n1,2\n3,4,5\n"), 3, "row 2: extra data after last expected column")
    failed(imported("id,total\n1,2\n3\n"), 3, "row 2", 'missing data for column "total"')
    failed(imported("a,b\n1,2\n3\n", table="new"), 3, "row 2", 'missing data for column "b"')
    assert imported.execute("SELECT to_regclass('public.new')") == [(None,)]


def test_a_long_value_is_quoted_in_part(imported: Import) -> None:
    """The error cuts the message of the server, which has the whole value."""
    imported.create("a int")
    done = imported(f"a\n{'x' * 100_000}\n")
    failed(done, 2, "row 1, column a: invalid input syntax")
    assert len(done.err) < 1200


def test_a_row_that_a_constraint_refuses_is_named(imported: Import) -> None:
    """The error has the line of the row, although the server checks rows in groups."""
    imported.create("id int PRIMARY KEY, total int NOT NULL CHECK (total > 0)")
    failed(imported("id,total\n1,1\n2,2\n1,3\n4,4\n"), 4, "row 3", "Key (id)=(1) already exists")
    failed(imported("id,total\n1,1\n2,\n"), 3, "row 2, column total: null value in column")
    failed(imported("id,total\n1,1\n2,-1\n"), 3, "row 2", "check constraint")
    assert imported.rows() == []


@pytest.mark.parametrize("eol", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("embedded", ["\n", "\r\n", "\r"])
def test_lines_are_those_of_an_editor(eol: str, embedded: str, imported: Import) -> None:
    """Line breaks in fields, empty lines and every kind of line end count as in an editor."""
    imported.create("a text, b int")
    lines = [
        "",
        "a,b",
        f'"x{embedded}y",1',
        "",
        "z,2",
        f'"x{embedded}{embedded}y",3',
        "",
        "wrong,w",
    ]
    text = eol.join(lines) + eol
    before = text[: text.index("wrong")]
    breaks = before.count("\r") if eol == "\r" else before.count("\n")
    failed(imported(text), breaks + 1, "row 4, column b: invalid input syntax", '"w"')
    failed(imported(text.replace("1", "v")), 3, "row 1, column b", '"v"')
    fine = text.replace("wrong,w", "right,4")
    assert imported(fine).code == 0
    assert [b for _, b in imported.rows()] == [1, 2, 3, 4]


def test_a_quote_in_the_middle_of_a_field_is_refused(imported: Import) -> None:
    """The server would drop the quote, and take the next line for a part of the field."""
    imported.create("a text, b text")
    for text in ('a 5" disk,x', '"a"b,x', 'a, "x"', '"a" ,x', 'x,a"', '"a""b"c,x', 'x""y,z'):
        failed(
            imported(f'a,b\n"1\n1",2\n{text}\n3,4\n'),
            4,
            'a " in the middle of a field',
            "--quotechar none",
        )
    failed(imported('a,"b" \n1,2\n'), 1, 'a " in the middle of a field')
    failed(imported('a,b\n1,2\n3,"4\n5,6\n'), 3, "a quote is opened here and never closed")
    failed(imported('a,"b\n1,2\n'), 1, "a quote is opened in this row and never closed")
    assert imported.rows() == []
    assert imported('a,b\na 5" disk,"x"\n', "--quotechar", "none").code == 0
    assert imported.rows() == [('a 5" disk', '"x"')]
    refused = imported("a,b\n1,2\n3,\x01\n", "--quotechar", "none")
    failed(refused, 3, "the control character U+0001, which is not possible with --quotechar none")
    assert "hint" not in refused.err


def test_a_line_that_ends_the_data_of_older_servers_is_a_value(imported: Import) -> None:
    r"""A line of `\.` alone is a value: PostgreSQL up to 17 would leave out all that follows."""
    imported.create("a text")
    assert imported('a\n1\n\\.\n"x\n\\.\ny"\n2\n').out == "4 rows imported into public.t\n"
    assert imported.rows() == [("1",), ("\\.",), ("x\n\\.\ny",), ("2",)]


def test_empty_lines_are_left_out_where_there_are_several_columns(imported: Import) -> None:
    """An empty line is no row; in a file of one column it is NULL, as the server exports it."""
    assert imported('\n\na,b\n\n1,2\n\n\n"3\n\n",4\n\n').out.startswith("2 rows")
    assert imported.rows() == [("1", "2"), ("3\n\n", "4")]
    imported.execute("DROP TABLE t")
    assert imported('a\n1\n\n""\n\n').out.startswith("4 rows")
    assert imported.rows() == [("1",), (None,), ("",), (None,)]
    imported.execute("DROP TABLE t")
    assert imported("\n1\n\n", "--no-headers").out.startswith("3 rows")
    assert imported.rows() == [(None,), ("1",), (None,)]


def test_the_limits_of_the_application_do_not_end_an_import(imported: Import) -> None:
    """Neither command is ended by the `statement_timeout` of the file."""
    content = yaml.safe_load(imported.config.read_text())
    content["sync_settings"] = {"statement_timeout": "20ms"}
    imported.config.write_text(yaml.safe_dump(content))
    imported.create("a text, b text DEFAULT pg_sleep(0.05)::text")
    assert imported("a\n1\n").code == 0
    assert (
        invoke(
            *(
                "pgexport",
                "--table",
                "t",
                "--connconfig",
                imported.config,
                "--export_file",
                os.devnull,
            ),
            canary=imported.canary,
        ).code
        == 0
    )


# How the file is written


@pytest.mark.parametrize(
    "encoding, given",
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-8-sig", "utf-8"),
        ("utf-8", "ascii"),
        ("utf-16", None),
        ("utf-16", "utf-16"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", None),
        ("cp1252", "cp1252"),
        ("iso-8859-2", "latin2"),
        ("shift_jis", "shift_jis"),
        ("gb18030", "gb18030"),
        ("iso2022_jp", "iso2022_jp"),
        ("utf-7", "utf-7"),
    ],
)
def test_encodings(encoding: str, given: str | None, imported: Import) -> None:
    """A byte order mark tells the encoding, an option names it, and `ascii` reads UTF-8."""
    text = {
        "shift_jis": "日本",
        "iso2022_jp": "日本",
        "iso-8859-2": "čeština",
        "gb18030": "中文",
    }.get(encoding, "café")
    options = () if given is None else ("--encoding", given)
    many = 40_000 if encoding == "utf-16" else 1  # more than one block
    done = imported(("id,name\r\n" + f"1,{text}\r\n" * many).encode(encoding), *options)
    assert (done.code, done.err) == (0, "")
    assert imported.execute("SELECT DISTINCT id, name FROM t") == [("1", text)]


def test_a_file_in_another_encoding_is_refused(imported: Import) -> None:
    """The error has the line of the first wrong byte, and no character is replaced."""
    failed(
        imported("a,b\n1,2\n3,café\n".encode("cp1252")),
        3,
        "row 2",
        "invalid byte sequence",
        "cp1252",
    )
    failed(imported("a,é\n1,2\n".encode("cp1252")), 1, "not UTF-8", "--encoding cp1252")
    failed(imported('\na,"\né"\n'.encode("cp1252")), 2, "not UTF-8")  # where the row starts
    failed(imported("é".encode("cp1252")), 1, "not UTF-8")
    failed(imported(b"a,b\n1,2\n3,\x81\n", "--encoding", "cp1252"), 3, "not cp1252", "bytes 81")
    odd = "a,b\n1,2\n".encode("utf-16") + b"x"
    failed(imported(odd), 3, "the file is not utf-16-le")
    big_endian = b"\xfe\xff" + "a,b\n1,2\n".encode("utf-16-be") + b"\xdc\x00\x00\x00"
    failed(imported(big_endian), 3, "the file is not utf-16-be")
    failed(imported(b"a,b\n1,2\n3,\x00\n"), 3, "row 2", "invalid byte sequence")


@pytest.mark.parametrize(
    "mark, given",
    [
        ("utf-8-sig", "cp1252"),
        ("utf-8-sig", "utf-16"),
        ("utf-16", "latin1"),
        ("utf-16", "utf-8"),
        ("utf-16", "utf-16-be"),
        ("utf-32", "utf-16"),
    ],
)
def test_an_encoding_that_the_mark_contradicts_is_refused(
    mark: str, given: str, imported: Import
) -> None:
    """An import does not read a byte order mark as characters of another encoding."""
    done = imported("a,b\n1,2\n".encode(mark), "--encoding", given)
    failed(done, 1, "the file begins with the byte order mark of utf-", "and the encoding is ")
    assert imported.execute("SELECT to_regclass('public.t')") == [(None,)]


@pytest.mark.parametrize("delimiter", [";", "|", "\t", r"\t", "tab", ":"])
def test_delimiters(delimiter: str, imported: Import) -> None:
    """A delimiter is one character, or a name that people write for a tab."""
    one = {r"\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    text = 'a,b\n1,"2,,"\n'.replace(",", one)
    assert imported(text, "--delimiter", delimiter).code == 0
    assert imported.rows() == [("1", f"2{one}{one}")]


def test_quotes_and_nulls(imported: Import) -> None:
    """Another text for NULL makes an empty field empty text; another quote is possible, too."""
    text = "a,b\n'x,''y',\n,'n/a'\nn/a,\n"
    assert imported(text, "--quotechar", "'", "--null-text", "n/a").code == 0
    assert imported.rows() == [("x,'y", ""), ("", "n/a"), (None, "")]


def test_settings_in_a_file_beside_the_csv(imported: Import) -> None:
    """An import reads the settings of 4.0, and an option counts before them."""
    settings = imported.csv.with_suffix(".yaml")
    settings.write_text(
        "auto_create_table: True\ndelimiter: ;\nencoding: iso-8859-1\nenforce_lowercase: false\n"
        'has_headers: true\nquotechar: "\'"\n'
    )
    assert imported("Größe;b\n'1;';2\n".encode("latin1")).code == 0
    assert imported.execute('SELECT "Größe", b FROM t') == [("1;", "2")]
    assert imported("Größe|b\n3|4\n", "--delimiter", "|", "--encoding", "utf-8").code == 0
    assert len(imported.rows()) == 2
    settings.rename(settings.with_name("other.yaml"))
    done = imported("Größe;b\n5;6\n", "--settings", "other.yaml", "--encoding", "utf-8")
    assert done.code == 0
    assert len(imported.rows()) == 3


@pytest.mark.parametrize(
    "text, words",
    [
        ("delimitr: ;\nhas_headers: true", 't.yaml:1:1: delimitr: unknown key "delimitr"  [config'),
        ("delimitr: ;\nhas_headers: true", 'hint: did you mean "delimiter"?'),
        ("has_headers: maybe", "t.yaml:1:14: has_headers: expected true or false  [config.type]"),
        ("delimiter: ';;'", "t.yaml:1:12: delimiter: expected one ASCII character"),
        ("quotechar: ','", "quotechar: it is the delimiter, too"),
        ("encoding: klingon", "encoding: Python knows no such encoding of text"),
        ('encoding: "a\\0b"', "encoding: Python knows no such encoding of text"),
        ("encoding: [utf-8]", "encoding: expected text"),
        ("delimiter: ;\ndelimiter: ','", "t.yaml:2:1: "),
        ("delimiter: '", "t.yaml:"),
    ],
)
def test_settings_with_a_mistake_are_refused(text: str, words: str, imported: Import) -> None:
    """The problem has line, column and a suggestion, and nothing is imported."""
    imported.csv.with_suffix(".yaml").write_text(text)
    failed(imported("a,b\n1,2\n"), None, words)
    assert imported.execute("SELECT to_regclass('public.t')") == [(None,)]


def test_a_file_of_settings_that_is_named_must_have_some(imported: Import) -> None:
    """An import refuses a list where settings should be, and does not take the defaults."""
    imported.csv.with_name("other.yaml").write_text("- delimiter: ;\n")
    refused = imported("a;b\n1;2\n", "--settings", "other.yaml")
    failed(refused, None, "other.yaml:1:1: expected a mapping of settings  [config.shape]")


def test_the_config_file_is_not_taken_for_settings(imported: Import) -> None:
    """An import never takes the config file for settings, and says which file it leaves out."""
    beside = imported.csv.with_suffix(".yaml")
    imported.config.rename(beside)
    imported.config = beside
    done = imported("a,b\n1,2\n")
    assert (done.code, done.err) == (0, "")
    imported.config = beside.rename(beside.with_name("config.yaml"))
    beside.write_text(imported.config.read_text())
    done = imported("a,b\n1,2\n")
    assert (done.code, done.err) == (0, "t.yaml is left out: it has no setting of a CSV file\n")


# A program of its own


def test_standard_input_is_read_once(imported: Import) -> None:
    """`-` reads a pipe; an error has the line as the server counts it."""
    imported.create("a int, b int")
    arguments = ("pgimport", "--table", "t", "--connconfig", imported.config, "--import_file", "-")
    for text, code, words in (
        ("a,b\n1,2\n", 0, "1 row imported into public.t"),
        ("a,b\n1,2\n3,x\n", 1, "standard input:3: column b: invalid input syntax for type"),
    ):
        done = subprocess.run(
            command(*arguments), input=text, capture_output=True, text=True, env=environment(),
            timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert words in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert imported.rows() == [(1, 2)]


def test_an_interrupted_import_leaves_nothing(imported: Import) -> None:
    """Ctrl-C ends an import that waits for a pipe with code 130, without a row or a table."""
    pipe = imported.csv.with_name("pipe.csv")
    os.mkfifo(pipe)
    process = subprocess.Popen(
        command("pgimport", "--table", "t", "--connconfig", imported.config, "--import_file", pipe),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        with pipe.open("wb", buffering=0) as writer:
            writer.write(b"a,b\n" + b"1,2\n" * 100_000)
            sessions = imported.database.backends
            eventually(lambda: any('"t" ("a", "b") FROM' in one["query"] for one in sessions()), 30)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert imported.execute("SELECT to_regclass('public.t')") == [(None,)]


def test_a_connection_that_is_lost_is_code_4(imported: Import) -> None:
    """The error has the reason of the server."""
    imported.create("a text")
    function = "CREATE FUNCTION quit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM"
    imported.execute(f"{function} pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$")
    imported.execute("CREATE TRIGGER quit BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION quit()")
    done = imported("a\n1\n")
    assert done.code == 4, done
    assert "terminating connection due to administrator command" in done.err


def test_a_trigger_that_refuses_a_row_is_named_with_it(imported: Import) -> None:
    """The error has the line of the row and the words of the trigger."""
    imported.create("a text")
    function = "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    imported.execute(f"{function} IF NEW.a = '2' THEN RAISE 'not two'; END IF; RETURN NEW; END $$")
    imported.execute("CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION no()")
    failed(imported("a\n1\n2\n"), 3, "row 2: not two")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system counts it there")
def test_memory_does_not_grow_with_the_file(imported: Import, tmp_path: Path) -> None:
    """Both commands need little more memory for 32 MB than for a small file."""
    line = f'{"x" * 60},"{"y, " * 20}"\n'
    with imported.csv.open("w") as file:
        file.write("a,b\n")
        for _ in range(32):
            file.write(line * (2**20 // len(line)))
    imported.execute("CREATE UNLOGGED TABLE t (a text, b text)")
    out = tmp_path / "out.csv"
    peaks = []
    for arguments in (
        ("pgimport", "--no-headers", "--import_file", os.devnull),
        ("pgimport", "--import_file", imported.csv),
        ("pgexport", "--export_file", out),
    ):
        more = ("--table", "t", "--connconfig", imported.config)
        done = run(program=measured(*arguments, *more), canary=imported.canary)
        assert done.code == 0, done
        peaks.append(int(done.out.split()[-1]))
    small, *large = peaks
    assert max(large) - small < 8e6
    assert out.stat().st_size == imported.csv.stat().st_size
