"""Each format quotes in its own way, and what is written is read again as it was."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import pq

from pgmonkey.config.env_file import parse_env
from pgmonkey.config.export import (
    compose,
    compose_text,
    env,
    env_value,
    pg_service,
    pgbouncer,
    pgbouncer_value,
)
from pgmonkey.config.libpq import service_line
from pgmonkey.config.loader import load_file
from pgmonkey.config.settings import Portable
from tests.kit import Canary

# Encodable text without NUL, as every setting of libpq is; with what formats stumble over.
TEXT = st.text(
    st.one_of(
        st.characters(codec="utf-8", exclude_characters="\0"), st.sampled_from("'\"\\$`#;= {}")
    )
)


def read_by_pgbouncer(line: str) -> dict[str, str]:
    """Read a connection string as PgBouncer does: the end is trimmed, '' is a quote in quotes."""
    found, rest = {}, line.rstrip(" \t\r\v\f")
    while rest:
        match = re.match(
            r" *([^= ]+) *= *(?:'((?:[^']|'')*)'|([^' ][^ ]*))(?: +|\Z)", rest, re.DOTALL
        )
        assert match is not None, rest
        assert match[2] != ""  # "disallow empty values"
        found[match[1]] = match[3] if match[2] is None else match[2].replace("''", "'")
        rest = rest[match.end() :]
    return found


@given(TEXT, TEXT)
def test_pgbouncer_reads_what_is_written(first: str, second: str):
    """Only an empty value and one with a line break have no form."""
    one, two = pgbouncer_value(first), pgbouncer_value(second)
    for text, written in ((first, one), (second, two)):
        assert (written is None) == (text == "" or "\n" in text)
    if one is not None and two is not None:
        assert read_by_pgbouncer(f"host={one} dbname={two}") == {"host": first, "dbname": second}


@settings(max_examples=50)
@given(value=TEXT)
def test_libpq_reads_what_is_written(value: str, tmp_path_factory: pytest.TempPathFactory):
    """Libpq itself reads the service file; what it would read differently is not written."""
    line = service_line("dbname", value)
    if line is None:
        assert "\n" in value or value[-1:] in tuple(" \t\v\f\r") or len(value.encode()) > 900
        return
    path = tmp_path_factory.getbasetemp() / "pg_service.conf"
    path.write_text(f"[orders]\nhost=db\n{line}\nport=1\n", encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGSERVICEFILE", str(path))
        patch.setenv("PGSERVICE", "orders")
        read = {one.keyword: one.val for one in pq.Conninfo.get_defaults()}
    assert (read[b"dbname"], read[b"port"]) == (value.encode(), b"1")


@settings(max_examples=20)
@given(st.lists(TEXT, max_size=20))
def test_a_shell_reads_what_is_written(values: list[str]):
    """A shell and our own reader of .env files read the same."""
    written = {f"V{at}": (text, env_value(text)) for at, text in enumerate(values)}
    good = {name: pair for name, pair in written.items() if pair[1] is not None}
    lines = "".join(f"{name}={form}\n" for name, (_, form) in good.items())
    ours: dict[str, str] = {}
    assert list(parse_env(lines, ours)) == []
    assert ours == {name: text for name, (text, _) in good.items()}
    show = "".join(f'printf "%s\\0" "${name}"\n' for name in good)
    done = subprocess.run(
        ["sh", "-eu"], input=(lines + show).encode(), capture_output=True, check=True
    )
    assert done.stdout.decode().split("\0")[:-1] == [text for text, _ in good.values()]


def test_what_programs_read_differently_is_no_variable():
    """A line break, a reference to a variable, and `$` beside a quote have no common form."""
    assert env_value("it's \\ here") == '"it\'s \\\\ here"'
    for text in ("a\nb", "${A}", "it's $A", "it's `a`"):
        assert env_value(text) is None


@given(TEXT)
def test_compose_reads_what_is_written(text: str):
    """YAML gives the text back, with each `$` doubled against the interpolation of Compose."""
    assert yaml.safe_load(compose_text(text)) == text.replace("$", "$$")


# ---- whole files


def test_what_pgbouncer_cannot_have_is_a_comment():
    """Several ports, a service of libpq, its own name, a file that leads to it already."""
    base = {"host": "db", "port": "5432", "dbname": "d", "user": 'a"b'}
    entries = [
        Portable("a-b", base),
        Portable("ports", base | {"host": "x,y", "port": "1,2"}),
        Portable("hosts", base | {"host": "x,y", "sslmode": "require"}),
        Portable("pgbouncer", base),
        Portable("there", base, through_pgbouncer=True),
        Portable("service", {"service": "s"}),
        Portable("hidden", {"dbname": "d"}, ("host",)),
        Portable("lines", base | {"dbname": "a\nb"}),
        Portable("address", base | {"hostaddr": "10.0.0.5"}),
    ]
    lines = list(pgbouncer(entries))
    assert [line for line in lines if not line.startswith(";")] == [
        "[databases]",
        "a-b = host=db port=5432 dbname=d",
        "hosts = host=x,y port=5432 dbname=d",
        "address = host=10.0.0.5 port=5432 dbname=d",
    ]
    assert '; a-b: its user in auth_file is "a""b"' in lines
    for name in ("ports", "pgbouncer", "there", "service", "hidden", "lines"):
        assert sum(line.startswith(f"; {name}: ") for line in lines) == 1
    assert "\n" not in "".join(lines)


def test_a_service_file_has_what_it_can():
    """A value without a form, and a service, are comments; a password has its line elsewhere."""
    entries = [
        Portable("a", {"host": "h:1", "dbname": "d ", "user": "u"}, ("password", "sslpassword")),
        Portable("b", {"service": "other", "host": "x,y"}, ("password",)),
    ]
    text = "\n".join(pg_service(entries))
    assert "[a]\nhost=h:1\n# a service file cannot hold the value of dbname\nuser=u\n" in text
    assert "# password: a line in ~/.pgpass: h\\:1:*:d :u:PASSWORD\n" in text
    assert "# left out because it is secret: sslpassword\n" in text
    assert "[b]\n# it is a service already: psql service=other\n" in text
    assert "*:*:*:*:PASSWORD" in text


def test_variables_are_those_of_libpq():
    """A keyword without a variable, and a value without a common form, are comments."""
    entry = Portable("a", {"host": "db", "options": "-c a=${b}", "keepalives": "1"}, ("password",))
    lines = list(env(entry))
    assert [line for line in lines if not line.startswith("#")] == ["PGHOST=db"]
    assert "# PGOPTIONS is left out: programs would read its value differently" in lines
    assert "# libpq has no variable for keepalives" in lines


def test_a_directory_inside_of_another_is_mounted_with_it():
    """Each directory once; variables pass through without a value."""
    lines = compose("/srv/r", ["B", "A", "B"], ["/srv/r/tls", "/run/s", "/run/s"])
    document = yaml.safe_load("\n".join(lines))
    (app,) = document["services"].values()
    assert app["environment"] == {"PGMONKEY_REGISTRY": "/srv/r", "A": None, "B": None}
    assert [one["source"] for one in app["volumes"]] == ["/run/s", "/srv/r"]
    assert all(one["source"] == one["target"] and one["read_only"] for one in app["volumes"])


def test_no_secret_is_portable(tmp_path: Path, canary: Canary):
    """Passwords, sensitive session settings, and texts that hold a secret are left out by key."""
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "orders.yaml").write_text(
        "connection_type: pool\n"
        "connection_settings:\n"
        "  user: app\n"
        "  dbname: orders\n"
        "  host: db\n"
        f"  password: {canary.secret()}\n"
        f"  options: -c app.token={canary.secret()}\n"
        "  application_name: ''\n"
        "  sslrootcert: ca.crt\n"
        "  autocommit: true\n"
        f"sync_settings: {{search_path: 'a, b', app.password: {canary.secret()}}}\n"
        "async_settings: {jit: off}\n"
    )
    entry = load_file(tmp_path / "orders.yaml").portable()
    assert list(entry.settings) == ["host", "dbname", "user", "sslrootcert", "options"]
    assert entry.settings["options"] == "-c search_path=a,\\ b"
    assert entry.settings["sslrootcert"] == str(tmp_path / "ca.crt")
    assert entry.hidden == ("options", "password", "sync_settings.app.password")
    canary.check(repr(entry), "the entry")
