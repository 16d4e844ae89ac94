"""Files, settings and habits of pgmonkey 4.0, whose import and export lost data without a word."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import yaml

from pgmonkey.cli.csv_export import export_csv
from pgmonkey.cli.csv_format import CsvFormat
from pgmonkey.cli.csv_import import import_csv
from pgmonkey.cli.csv_tables import Table
from pgmonkey.cli.progress import Progress
from pgmonkey.config.loader import load_file
from tests.kit import Canary, TemporaryDatabase
from tests.kit.command import Finished, invoke

# As 4.0 wrote it, without some lines of the comment.
SETTINGS = """\
auto_create_table: true
delimiter: ;
encoding: ascii
enforce_lowercase: true
has_headers: true
quotechar: '"'

    # Import configuration options:
    #
    #    - '\\t' (tab): Useful for tab-separated files.
    #
    # You can modify these settings based on the specifics of your CSV file.
    """


class Shell:
    """Run the commands of 4.0 in a directory with the files of an application."""

    def __init__(self, directory: Path, database: TemporaryDatabase, canary: Canary) -> None:
        self.directory = directory
        self.canary = canary
        self.database = database
        content = {"connection_type": "async_pool", "connection_settings": database.parameters()}
        (directory / "config.yaml").write_text(yaml.safe_dump(content))

    def __call__(self, line: str, **env: str) -> Finished:
        name, *arguments = f"{line} --connconfig config.yaml".split()
        return invoke(name, *arguments, canary=self.canary, cwd=self.directory, env=env)

    def rows(self, table: str = "public.items") -> list[tuple[str | None, ...]]:
        """Return what is in a table."""
        return self.database.execute(f"SELECT * FROM {table}")


@pytest.fixture
def shell(tmp_path: Path, database: TemporaryDatabase, canary: Canary) -> Shell:
    """The commands of 4.0, in a directory with a config file."""
    return Shell(tmp_path, database, canary)


IMPORT = "pgimport --table public.items --import_file items.csv"
EXPORT = "pgexport --table public.items --export_file items.csv"


def test_settings_that_4_0_has_written_are_read(shell: Shell) -> None:
    """An import reads UTF-8 where 4.0 has guessed ASCII from the first rows."""
    (shell.directory / "items.yaml").write_text(SETTINGS)
    (shell.directory / "items.csv").write_text("Item Name;price\nthé;1\n")
    assert shell(IMPORT).code == 0
    assert shell.rows() == [("thé", "1")]
    done = shell(EXPORT)
    assert (done.code, done.out) == (1, "")
    assert "ascii has no 'é' (U+00E9)" in done.err
    text = SETTINGS.replace("ascii", "utf-8").replace("delimiter: ;", 'delimiter: "\\t"')
    (shell.directory / "items.yaml").write_text(text)
    assert shell(EXPORT).code == 0
    assert (shell.directory / "items.csv").read_text() == "item_name\tprice\nthé\t1\n"


def test_an_ascii_file_of_settings_says_why_an_export_is_refused(shell: Shell) -> None:
    """An export names the option that helps when ASCII lacks a character."""
    (shell.directory / "items.csv").write_text("a\né\n")
    assert shell(IMPORT).code == 0
    done = shell(f"{EXPORT} --encoding ascii")
    assert done.code == 1
    assert "hint: --encoding utf-8 has every character" in done.err


def test_a_file_of_one_column_keeps_what_stands_behind_a_comma(shell: Shell) -> None:
    """An import refuses a comma that 4.0 cut a row at, or keeps it with another delimiter."""
    rows = ["note", *["plain"] * 6, "plain, tail"]
    (shell.directory / "items.csv").write_text("\n".join(rows) + "\n")
    done = shell(IMPORT)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("items.csv:8: row 7: extra data after last expected column")
    assert shell(f"{IMPORT} --delimiter tab").code == 0
    assert shell.rows() == [(row,) for row in rows[1:]]


def test_typed_columns_may_be_empty(shell: Shell) -> None:
    """An empty field is NULL; 4.0 sent empty text, which is no number and no date."""
    shell.database.execute("CREATE TABLE items (id int, made date, name text)")
    shell.database.execute(f'ALTER TABLE items OWNER TO "{shell.database.user}"')
    (shell.directory / "items.csv").write_text('id,made,name\n,,""\n')
    assert shell(IMPORT).code == 0
    assert shell.rows() == [(None, None, "")]
    assert shell(EXPORT).code == 0
    assert (shell.directory / "items.csv").read_text() == 'id,made,name\n,,""\n'


def test_a_config_file_with_references(shell: Shell) -> None:
    """Both commands resolve references, which 4.0 could not; a missing file is code 1."""
    path = shell.directory / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["connection_settings"]["password"] = "${ITEMS_PASSWORD}"
    path.write_text(yaml.safe_dump(content))
    (shell.directory / "items.csv").write_text("a\n1\n")
    assert shell(IMPORT).code == 4
    env = {"ITEMS_PASSWORD": shell.database.password}
    assert shell(f"{IMPORT} --resolve-env", **env).code == 0
    assert shell(f"{EXPORT} --resolve-env", **env).code == 0
    assert "ITEMS_PASSWORD" in shell(f"{EXPORT} --resolve-env").err
    path.unlink()
    for line in (IMPORT, EXPORT):
        done = shell(line)
        assert (done.code, done.out) == (1, "")
        assert done.err == "config.yaml: No such file or directory\n"


def test_a_default_for_a_password_is_allowed_on_request(shell: Shell) -> None:
    """`--allow-sensitive-defaults` allows a default for a password."""
    path = shell.directory / "config.yaml"
    password = "${ITEMS_PASSWORD:-" + shell.database.password + "}"
    content = yaml.safe_load(path.read_text())
    content["connection_settings"]["password"] = password
    path.write_text(yaml.safe_dump(content))
    (shell.directory / "items.csv").write_text("a\n1\n")
    assert shell(f"{IMPORT} --resolve-env").code == 1
    assert shell(f"{IMPORT} --resolve-env --allow-sensitive-defaults").code == 0


def test_two_tables_of_a_schema_have_files_of_their_own(shell: Shell) -> None:
    """An export names its file after schema and table; 4.0 wrote both to public.csv."""
    for name in ("items", "orders"):
        shell.database.execute(f"CREATE TABLE {name} AS SELECT '{name}' AS name")
        shell.database.execute(f'ALTER TABLE {name} OWNER TO "{shell.database.user}"')
        assert shell(f"pgexport --table public.{name}").code == 0
        text = (shell.directory / f"public.{name}.csv").read_text()
        assert text == f"name\n{name}\n"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_progress_is_shown_on_a_terminal(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both commands show rows and bytes, an import with a bar, and clear the line at the end."""
    path = shell.directory / "items.csv"
    path.write_text("a,b\n" + "1,2\n" * 100_000)
    config = load_file(shell.directory / "config.yaml")
    table = Table("public", "items")
    monkeypatch.setattr("pgmonkey.cli.progress._EVERY", 0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    import_csv(config, path, table, CsvFormat())
    assert "[####################] 100 %  100,000 rows  0.4 of 0.4 MB" in terminal.getvalue()
    assert terminal.getvalue().endswith(" \r")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    export_csv(config, table, path, CsvFormat())
    assert "\r100,001 rows  0.4 MB  " in terminal.getvalue()
    assert "[" not in terminal.getvalue()
    assert terminal.getvalue().endswith(" \r")


def test_progress_is_quiet_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress writes nothing to a pipe, however long a copy takes."""
    monkeypatch.setattr("pgmonkey.cli.progress._EVERY", 0)
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with Progress(100) as progress:
        progress.add(rows=1, octets=50)
    assert stream.getvalue() == ""
