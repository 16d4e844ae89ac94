"""`pgmonkey pgexport`: a table or a view into a CSV file, which is there when it is complete."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.page import shown
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase
from tests.kit.command import Finished, command, environment, invoke, run
from tests.kit.eventually import eventually


class Export:
    """Export the table t, which has two columns."""

    def __init__(self, directory: Path, database: TemporaryDatabase, canary: Canary) -> None:
        self.directory = directory
        self.database = database
        self.canary = canary
        self.csv = directory / "out.csv"
        database.execute("DROP SCHEMA public CASCADE")
        database.execute("CREATE SCHEMA public")
        database.execute(f'ALTER SCHEMA public OWNER TO "{database.user}"')
        self.execute("CREATE TABLE t (id int, name text)")
        self.execute("INSERT INTO t VALUES (1, 'tea, \"green\"'), (2, NULL), (3, '')")
        content = {"connection_settings": database.parameters()}
        (directory / "config.yaml").write_text(yaml.safe_dump(content))

    def __call__(self, *options: object, table: str = "t", file: str = "out.csv") -> Finished:
        return invoke(
            *self.arguments(*options, table=table, file=file),
            canary=self.canary,
            cwd=self.directory,
        )

    def arguments(self, *options: object, table: str = "t", file: str = "out.csv") -> list[object]:
        """Return the command line."""
        config = self.directory / "config.yaml"
        return [
            *("pgexport", "--table", table, "--connconfig", config),
            *("--export_file", file, *options),
        ]

    def copies(self) -> bool:
        """Tell whether an export of the view v is going on."""
        return any('"v") TO' in one["query"] for one in self.database.backends())

    def files(self) -> list[str]:
        """Return the names of the files in the directory."""
        return sorted(path.name for path in self.directory.iterdir())

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as the owner of the database."""
        with self.database.connect(autocommit=True) as conn:
            cursor = conn.execute(statement)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def exported(tmp_path: Path, module_database: TemporaryDatabase, canary: Canary) -> Export:
    """Exports from a database with one table."""
    return Export(tmp_path, module_database, canary)


TEXT = 'id,name\n1,"tea, ""green"""\n2,\n3,""\n'


def test_the_command_of_4_0_exports_at_the_first_run(exported: Export) -> None:
    """The command of 4.0 writes the CSV file at once, and no settings file beside it."""
    done = exported()
    assert (done.code, done.err) == (0, "")
    assert done.out == "3 rows exported from public.t to out.csv\n"
    assert exported.csv.read_text() == TEXT
    assert exported.files() == ["config.yaml", "out.csv"]


def test_the_page_shows_what_it_prints(exported: Export) -> None:
    """The page shows the output of an export: the number of rows, the table and the file."""
    exported.execute("CREATE TABLE items AS SELECT * FROM t LIMIT 2")
    assert [exported(table="items", file="items.csv").out] == shown("pgmonkey pgexport")


def test_a_registry_names_the_database(
    registry_dir: RegistryDirectory, exported: Export, canary: Canary, tmp_path: Path
) -> None:
    """NAME and --dir choose the database; without a name, the file is called like the table."""
    registry_dir.declare("orders", exported.database, "async_pool")
    done = invoke(
        *("pgexport", "orders", "--dir", registry_dir, "--table", "public.t"),
        canary=canary,
        cwd=tmp_path,
    )
    assert (done.code, done.out) == (0, "3 rows exported from public.t to public.t.csv\n"), done
    assert (tmp_path / "public.t.csv").read_text() == TEXT


def test_the_rows_of_the_application_do_not_matter(
    registry_dir: RegistryDirectory, exported: Export, canary: Canary, tmp_path: Path
) -> None:
    """Both commands work with any `row_factory`, `read_only` and `autocommit` of the file."""
    settings = {"row_factory": "dict_row", "read_only": True, "autocommit": True}
    registry_dir.declare("orders", exported.database, connection=settings)
    arguments = ("orders", "--dir", registry_dir, "--table", "t")
    done = invoke("pgexport", *arguments, canary=canary, cwd=tmp_path)
    assert done.code == 0, done
    done = invoke("pgimport", *arguments, "--import_file", "t.csv", canary=canary, cwd=tmp_path)
    assert done.code == 1
    assert "in a read-only transaction" in done.err


def test_what_a_select_can_read_is_exported(exported: Export) -> None:
    """An export takes views, partitioned tables and odd names, and leaves out generated columns."""
    exported.execute("CREATE VIEW v AS SELECT id FROM t")
    assert exported(table="v").code == 0
    assert exported.csv.read_text() == "id\n1\n2\n3\n"
    exported.execute('CREATE TABLE "Odd.one" ("A b" int, twice int GENERATED ALWAYS AS (2) STORED)')
    exported.execute('INSERT INTO "Odd.one" VALUES (7)')
    assert exported(table="public.Odd.one").code == 0
    assert exported.csv.read_text() == "A b\n7\n"
    exported.execute("CREATE TABLE p (a int) PARTITION BY LIST (a)")
    exported.execute("CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)")
    exported.execute("INSERT INTO p VALUES (1)")
    assert exported(table="p").out.startswith("1 row exported")


def test_options_and_settings(exported: Export) -> None:
    """An export takes the settings of an import; an option counts before the file of settings."""
    exported.csv.with_suffix(".yaml").write_text("delimiter: \\t\nencoding: utf-16\nquotechar: '+'")
    assert exported().code == 0
    assert exported.csv.read_bytes() == TEXT.replace(",", "\t").replace(
        '"tea\t ""green"""', 'tea, "green"'
    ).replace('""', "++").encode("utf-16")
    options = ("--delimiter", ";", "--encoding", "utf-8", "--no-headers", "--null-text", "NULL")
    assert exported(*options, "--quotechar", '"').code == 0
    assert exported.csv.read_text() == '1;"tea, ""green"""\n2;NULL\n3;\n'


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-7", "cp1252", "gb18030"])
def test_encodings(encoding: str, exported: Export) -> None:
    """An export writes every encoding of Python, also those that PostgreSQL does not know."""
    exported.execute("TRUNCATE t")
    exported.execute("INSERT INTO t SELECT n, 'café' FROM generate_series(1, 9999) AS n")
    assert exported("--encoding", encoding).code == 0
    lines = exported.csv.read_text(encoding=encoding).splitlines()
    assert (len(lines), lines[9999]) == (10_000, "9999,café")


def test_an_encoding_with_states_ends_as_it_must(exported: Export) -> None:
    """An export also writes what an encoder keeps until the end."""
    exported.execute("TRUNCATE t")
    exported.execute("INSERT INTO t VALUES (1, '日本')")
    for encoding in ("iso2022_jp", "utf-7"):
        assert exported("--encoding", encoding, "--no-headers").code == 0
        assert exported.csv.read_bytes() == "1,日本\n".encode(encoding)


def test_a_character_that_the_encoding_has_not_is_refused(exported: Export) -> None:
    """The error names the line of the character, and the old file stays."""
    exported.csv.write_text("old")
    exported.execute("UPDATE t SET name = '→' WHERE id = 3")
    done = exported("--encoding", "cp1252")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("out.csv:4: cp1252 has no '→' (U+2192)")
    assert exported.csv.read_text() == "old"


def test_a_failure_leaves_the_old_file(exported: Export) -> None:
    """The old file stays, and the error is the server's own, also after thousands of rows."""
    exported.csv.write_text("old")
    done = exported(table="nowhere")
    assert (done.code, done.err) == (1, "there is no table public.nowhere with columns\n")
    exported.execute("CREATE VIEW v AS SELECT 10000 / (20000 - n) FROM generate_series(1, 20000) n")
    done = exported(table="v")
    assert (done.code, done.out, done.err) == (1, "", "division by zero\n")
    exported.database.execute("ALTER TABLE t OWNER TO CURRENT_USER")
    done = exported()
    assert (done.code, done.err) == (1, "permission denied for table t\n")
    done = exported("--quotechar", "none")
    assert done.code == 1
    assert exported.csv.read_text() == "old"
    assert exported.files() == ["config.yaml", "out.csv"]


def test_the_new_file_takes_the_place_of_the_old_one(exported: Export) -> None:
    """The new file gets the mode and the link of the old one; a first one follows the umask."""
    exported.csv.write_text("old")
    exported.csv.chmod(0o664)  # more than the umask leaves
    (exported.directory / "link.csv").symlink_to("out.csv")
    assert exported(file="link.csv").code == 0
    assert exported.csv.read_text() == TEXT
    assert stat.S_IMODE(exported.csv.stat().st_mode) == 0o664
    before = os.umask(0o027)
    try:
        assert exported(file="new.csv").code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((exported.directory / "new.csv").stat().st_mode) == 0o640
    done = exported(file="nowhere/out.csv")
    assert (done.code, done.err) == (1, "nowhere/out.csv: No such file or directory\n")


def test_standard_output_has_the_rows_alone(exported: Export) -> None:
    """Standard error has the number of rows, and a reader may close the pipe at any time."""
    done = run(*exported.arguments(file="-"), canary=exported.canary)
    assert (done.code, done.out) == (0, TEXT)
    assert done.err == "3 rows exported from public.t\n"
    exported.execute("INSERT INTO t SELECT n, 'tea' FROM generate_series(1, 100000) AS n")
    words = " ".join(f"'{word}'" for word in command(*exported.arguments(file="-")))
    done = run(
        program=["bash", "-o", "pipefail", "-c", f"{words} | head -2"], canary=exported.canary
    )
    assert (done.code, done.err) == (1, "")
    assert done.out == 'id,name\n1,"tea, ""green"""\n'


def test_a_full_disk_is_named(exported: Export) -> None:
    """The error names the file and the reason."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    exported.execute("INSERT INTO t SELECT n, 'tea' FROM generate_series(1, 100000) AS n")
    done = exported(file="/dev/full")
    assert (done.code, done.out) == (1, "")
    assert done.err == "/dev/full: No space left on device\n"


@pytest.mark.parametrize(
    "how, code, says",
    [
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGTERM, 143, ""),
        (None, 4, "terminating connection"),
    ],
)
def test_an_export_that_ends_early_leaves_no_file(
    how: signal.Signals | None, code: int, says: str, exported: Export
) -> None:
    """Ctrl-C, SIGTERM and a connection that is lost leave the old file, and no statement running.

    The file that is being written has the mode of the old one from the start.
    """
    exported.csv.write_text("old")
    exported.csv.chmod(0o600)
    exported.execute(
        "CREATE VIEW v AS SELECT n, pg_sleep(0.01)::text FROM generate_series(1, 10000) n"
    )
    process = subprocess.Popen(
        command(*exported.arguments(table="v", file=exported.csv)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        eventually(exported.copies, 30)
        (new,) = exported.directory.glob(".out.csv.*")
        assert stat.S_IMODE(new.stat().st_mode) == 0o600
        if how is not None:
            process.send_signal(how)
        else:
            exported.database.terminate_backends()
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (code, "")
    eventually(lambda: not exported.database.backends(), 30)  # the server has heard of it
    assert err == says if how is not None else says in err, err
    assert exported.csv.read_text() == "old"
    assert exported.files() == ["config.yaml", "out.csv"]
