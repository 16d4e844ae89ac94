"""What the documentation of pgmonkey 4.0 shows, from the first page to the last, runs here.

The README, the reference guide and the best practices of 4.0: each command, and each program that is no
recipe of docs/from-4.0. Where the answer is another one, docs/upgrade.md has the words in `differs`.
"""

from __future__ import annotations

import stat
from pathlib import Path
from textwrap import dedent, indent
from typing import NamedTuple

import pytest
import yaml

from pgmonkey import load_config
from tests.docs.snippets import ROOT
from tests.kit import Canary, TemporaryDatabase
from tests.kit.command import invoke
from tests.recipes.recipe import environ, run

PAGE = (ROOT / "docs" / "upgrade.md").read_text(encoding="utf-8")
#: The full configuration of the README.
TEMPLATE = """\
connection_type: 'normal'

connection_settings:
  user: '{user}'
  password: '{password}'
  host: '{host}'
  port: '{port}'
  dbname: '{name}'
  sslmode: 'prefer'  # Options: disable, allow, prefer, require, verify-ca, verify-full
  sslcert: ''  # Path to the client SSL certificate, if needed
  sslkey: ''  # Path to the client SSL key, if needed
  sslrootcert: ''  # Path to the root SSL certificate, if needed
  connect_timeout: '10'  # Maximum wait for connection, in seconds
  application_name: 'myapp'
  keepalives: '1'  # Enable TCP keepalives (1=on, 0=off)
  keepalives_idle: '60'  # Seconds before sending a keepalive probe
  keepalives_interval: '15'  # Seconds between keepalive probes
  keepalives_count: '5'  # Max keepalive probes before closing the connection

pool_settings:
  min_size: 5
  max_size: 20
  timeout: 30  # Seconds to wait for a connection from the pool before raising an error
  max_idle: 300  # Seconds a connection can remain idle before being closed
  max_lifetime: 3600  # Seconds a connection can be reused
  check_on_checkout: false  # Validate connections with SELECT 1 before handing to caller

async_settings:
  idle_in_transaction_session_timeout: '5000'  # Timeout for idle in transaction (ms)
  statement_timeout: '30000'  # Cancel statements exceeding this time (ms)
  lock_timeout: '10000'  # Timeout for acquiring locks (ms)
  # work_mem: '256MB'  # Memory for sort operations and more

async_pool_settings:
  min_size: 5
  max_size: 20
  timeout: 30  # Seconds to wait for a connection from the pool before raising an error
  max_idle: 300
  max_lifetime: 3600
  check_on_checkout: false  # Validate connections with SELECT 1 before handing to caller
"""
REFERENCES = """\
connection_type: 'normal'

connection_settings:
  user: '${PGUSER:-postgres}'
  password: '${PGPASSWORD}'
  host: '${PGHOST:-localhost}'
  port: '${PGPORT:-5432}'
  dbname: '${PGDATABASE:-mydb}'
"""


@pytest.fixture
def directory(tmp_path: Path, database: TemporaryDatabase) -> Path:
    """A directory with the files of the documentation, for a database that exists."""
    text = TEMPLATE.format(
        user=database.user, password=database.password, host=database.host, port=database.port,
        name=database.name,
    )  # fmt: skip
    for name, content in (("config.yaml", text), ("env.yaml", REFERENCES)):
        (tmp_path / name).write_text(content, encoding="utf-8")
        (tmp_path / name).chmod(0o600)
    return tmp_path


class Step(NamedTuple):
    """A command, its exit code here, what its output has, and what the upgrade page says of it."""

    command: str
    code: int = 0
    has: str = ""
    differs: str = ""


ONLY_A_PROGRAM = "two lines of prose, and a program with `PGConnectionManager`"
EVERY_RUN_WORKS = "the first run wrote the file of settings, and nothing was imported or exported"
COMMANDS = [
    Step("", 2, "Commands:", "`pgmonkey` and `pgmonkey pgconfig` alone"),
    Step("--help", has="pgconfig"),
    Step("--version", has="pgmonkey 5."),
    Step("pgconfig", 2, "generate-code", "`pgmonkey` and `pgmonkey pgconfig` alone"),
    Step("settings --help", 2, "No such command", "`pgmonkey settings`"),
    # Creating a Configuration Template
    Step(
        "pgconfig create --type pg --filepath new.yaml", has="new.yaml", differs="its owner alone"
    ),
    Step("pgconfig create --connconfig other/new.yaml", has="new.yaml"),
    Step(
        "pgconfig create --type pg --filepath config.yaml",
        *(1, "exists already", "exit code 1 if there is one already"),
    ),
    # Testing a Connection
    Step("pgconfig test --connconfig config.yaml", has="type normal works"),
    *(
        Step(
            f"pgconfig test --connconfig config.yaml --connection-type {kind}",
            has=f"type {kind} works",
            differs="`pgconfig test` of a pool borrowed" if kind.endswith("pool") else "",
        )
        for kind in ("normal", "pool", "async", "async_pool")
    ),
    Step("pgconfig test --connconfig env.yaml --resolve-env", has="type normal works"),
    Step(
        "pgconfig test --connconfig env.yaml --connection-type pool --resolve-env",
        has="type pool works",
    ),
    Step(
        "pgconfig test --connconfig env.yaml --resolve-env --allow-sensitive-defaults",
        has="type normal works",
    ),
    Step(
        "pgconfig test --connconfig env.yaml",
        *(1, "pass --resolve-env", "`pgconfig test` without `--resolve-env`"),
    ),
    Step("pgconfig test --conn config.yaml", 2, "No such option", "An abbreviated one"),
    Step("pgconfig test --connconfig no.yaml", 1, "No such file", "a missing file was a traceback"),
    # Generating Python Code
    Step("pgconfig generate-code --filepath config.yaml", has="Registry", differs=ONLY_A_PROGRAM),
    *(
        Step(
            f"pgconfig generate-code --filepath config.yaml --connection-type {kind}{library}",
            has=has,
            differs=ONLY_A_PROGRAM,
        )
        for kind in ("normal", "pool", "async", "async_pool")
        for library, has in (
            ("", "import Registry"),
            (" --library pgmonkey-4.0", "import PGConnectionManager"),
            (" --library psycopg", "import psycopg"),
        )
    ),
    Step(
        "pgconfig generate-code --connconfig env.yaml --resolve-env",
        has="import Registry",
        differs=ONLY_A_PROGRAM,
    ),
    # Server Configuration Recommendations, Auditing Live Server Settings
    Step(
        "pgserverconfig --filepath config.yaml",
        has="max_connections = 100",
        differs="the sum of all, while they rotate",
    ),
    Step(
        "pgserverconfig --filepath config.yaml --audit",
        has="cannot tell",
        differs="`ok`, `mismatch`, `cannot tell`, with the reason",
    ),
    Step("pgserverconfig --filepath no.yaml", 1, "No such file", "a missing file was a traceback"),
    # Importing and Exporting Data
    Step(
        "pgexport --table public.my_table --connconfig config.yaml --export_file output.csv",
        has="1 row exported from public.my_table to output.csv",
        differs=EVERY_RUN_WORKS,
    ),
    Step(
        "pgexport --table public.my_table --connconfig config.yaml",
        has="1 row exported from public.my_table to public.my_table.csv",
        differs="an export of `public.items` was the file `public.csv`",
    ),
    Step(
        "pgimport --table public.my_table --connconfig config.yaml --import_file data.csv",
        has="1 row imported into public.my_table",
        differs=EVERY_RUN_WORKS,
    ),
]


@pytest.mark.parametrize("step", COMMANDS, ids=lambda step: step.command)
def test_a_command_does_what_it_did(
    step: Step,
    directory: Path,
    database: TemporaryDatabase,
    canary: Canary,
) -> None:
    """As documented, or as the upgrade page says; and what goes wrong is not exit code 0."""
    assert step.differs in PAGE
    database.execute("CREATE TABLE public.my_table (id text, name text)")
    database.execute(f"ALTER TABLE public.my_table OWNER TO {database.user}")
    database.execute("INSERT INTO public.my_table VALUES ('1', 'John')")
    (directory / "data.csv").write_text("id,name\n1,Alice\n")
    done = invoke(*step.command.split(), canary=canary, cwd=directory, env=environ(database))
    assert done.code == step.code, done.err
    assert step.has in done.out + done.err
    if step.command.startswith("pgconfig create") and step.code == 0:
        path = directory / step.command.split()[-1]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


class Program(NamedTuple):
    """A program, and what becomes of it.

    Args:
        text: As the documentation has it; statements outside of a function are put into a `main`.
        output: What its output has.
        errors: What its standard error has, of warnings and errors.
        differs: What the upgrade page says of it.
    """

    text: str
    output: tuple[str, ...] = ()
    errors: str = ""
    differs: str = ""


def in_main(text: str, kind: str) -> str:
    """Put a part of the documentation into a program, after what makes its `connection`."""
    waits = kind.startswith("async")
    start = (
        f"connection = {'await ' * waits}manager.get_database_connection('config.yaml', '{kind}')"
    )
    return (
        "import asyncio\nfrom pgmonkey import PGConnectionManager\n"
        "manager = PGConnectionManager()\n"
        f"async def main():\n    {start}\n{indent(dedent(text), '    ')}\nasyncio.run(main())\n"
    )


PROGRAMS = {
    "One Config File, All Connection Types": Program(
        in_main(
            """
            conn = manager.get_database_connection('config.yaml', 'normal')
            conn = manager.get_database_connection('config.yaml', 'pool')
            conn = await manager.get_database_connection('config.yaml', 'async')
            conn = await manager.get_database_connection('config.yaml', 'async_pool')
            print(manager.cache_info['size'], sorted(manager.cache_info['connection_types'].values()))
            """,
            "normal",
        ),
        ("4 ['async', 'async_pool', 'normal', 'pool']",),
    ),
    "Using the Config File Default": Program(
        in_main(
            """
            connection = manager.get_database_connection('config.yaml')
            print(connection.connection_type)
            """,
            "normal",
        ),
        ("normal",),
    ),
    **{
        f"Synchronous transaction, {kind}": Program(
            in_main(
                """
                with connection as conn:
                    with conn.transaction():
                        with conn.cursor() as cur:
                            cur.execute('INSERT INTO my_table (name) VALUES (%s)', ('Alice',))
                            cur.execute('SELECT * FROM my_table WHERE name = %s', ('Alice',))
                            print(cur.fetchall())
                """,
                kind,
            ),
            ("(None, 'Alice')",),
        )
        for kind in ("normal", "pool")
    },
    **{
        f"Asynchronous transaction, {kind}": Program(
            in_main(
                """
                async with connection as conn:
                    async with conn.transaction():
                        async with conn.cursor() as cur:
                            await cur.execute('INSERT INTO my_table (name) VALUES (%s)', ('Alice',))
                            await cur.execute('SELECT * FROM my_table WHERE name = %s', ('Alice',))
                            print(await cur.fetchall())
                """,
                kind,
            ),
            ("(None, 'Alice')",),
        )
        for kind in ("async", "async_pool")
    },
    "Manual commit": Program(
        in_main(
            """
            async with connection as conn:
                async with conn.cursor() as cur:
                    await cur.execute('UPDATE my_table SET name = %s WHERE id = %s', ('Doe', '1'))
                await conn.commit()
            other = await manager.get_database_connection('config.yaml', 'async')
            async with other as conn:
                async with conn.cursor() as cur:
                    await cur.execute("SELECT name FROM my_table WHERE id = '1'")
                    print(await cur.fetchone())
            """,
            "async_pool",
        ),
        ("('Doe',)",),
    ),
    "Manual rollback on error": Program(
        in_main(
            """
            try:
                async with connection as conn:
                    async with conn.cursor() as cur:
                        await cur.execute('DELETE FROM my_table WHERE id = %s', ('1',))
                        raise Exception('Simulated error')
                    await conn.commit()
            except Exception as e:
                print(f"Error: {e}. Rolling back...")
                await conn.rollback()
            async with connection as conn:
                async with conn.cursor() as cur:
                    await cur.execute("SELECT count(*) FROM my_table WHERE id = '1'")
                    print(await cur.fetchone())
            """,
            "async_pool",
        ),
        ("Error: Simulated error. Rolling back...", "(1,)"),
        differs="**Do not call `conn.rollback()`, or anything else of `conn`, in the `except` after",
    ),
    "Testing All Connection Types": Program(
        """
import asyncio
from pgmonkey import PGConnectionManager

def test_sync(manager, config_file, connection_type):
    connection = manager.get_database_connection(config_file, connection_type)
    with connection as conn:
        with conn.cursor() as cur:
            cur.execute('SELECT version();')
            print(f"{connection_type}: {cur.fetchone()}")

async def test_async(manager, config_file, connection_type):
    connection = await manager.get_database_connection(config_file, connection_type)
    async with connection as conn:
        async with conn.cursor() as cur:
            await cur.execute('SELECT version();')
            print(f"{connection_type}: {await cur.fetchone()}")

async def main():
    manager = PGConnectionManager()
    config_file = 'config.yaml'

    # Test synchronous connections
    test_sync(manager, config_file, 'normal')
    test_sync(manager, config_file, 'pool')

    # Test asynchronous connections
    await test_async(manager, config_file, 'async')
    await test_async(manager, config_file, 'async_pool')

if __name__ == "__main__":
    asyncio.run(main())
""",
        tuple(f"{kind}: ('PostgreSQL" for kind in ("normal", "pool", "async", "async_pool")),
    ),
    "Testing Pool Capacity": Program(
        """
import asyncio
from pgmonkey import PGConnectionManager

async def test_async_pool(config_file, num_connections):
    manager = PGConnectionManager()
    connections = []

    for _ in range(num_connections):
        connection = await manager.get_database_connection(config_file, 'async_pool')
        connections.append(connection)

    for idx, connection in enumerate(connections):
        async with connection as conn:
            async with conn.cursor() as cur:
                await cur.execute('SELECT version();')
                version = await cur.fetchone()
                print(f"Async pool connection {idx + 1}: {version}")

    for connection in connections:
        await connection.disconnect()

def test_sync_pool(config_file, num_connections):
    manager = PGConnectionManager()
    connections = []

    for _ in range(num_connections):
        connection = manager.get_database_connection(config_file, 'pool')
        connections.append(connection)

    for idx, connection in enumerate(connections):
        with connection as conn:
            with conn.cursor() as cur:
                cur.execute('SELECT version();')
                version = cur.fetchone()
                print(f"Sync pool connection {idx + 1}: {version}")

    for connection in connections:
        connection.disconnect()

async def main():
    config_file = 'config.yaml'
    num_connections = 5
    await test_async_pool(config_file, num_connections)
    test_sync_pool(config_file, num_connections)

if __name__ == "__main__":
    asyncio.run(main())
""",
        tuple(f"{side} pool connection 5: ('PostgreSQL" for side in ("Async", "Sync")),
        errors="DeprecationWarning",
        differs="`handle.connect()`, `handle.disconnect()` | work, with a `DeprecationWarning`",
    ),
    "load_config": Program(
        """
from pgmonkey import load_config
cfg = load_config('env.yaml')
print(cfg['connection_settings']['host'])
cfg = load_config('env.yaml', resolve_env=True)
print(cfg['connection_settings']['host'], cfg['connection_type'])
cfg = load_config('env.yaml', resolve_env=True, allow_sensitive_defaults=True)
cfg = load_config('env.yaml', resolve_env=True, strict=True)
""",
        ("${PGHOST:-localhost}", "127.0.0.1 normal"),
        "TypeError",
        "`load_config(..., strict=True)`, as documented | a `TypeError`, as it was in 4.0",
    ),
    "Redacting Secrets for Logging": Program(
        """
from pgmonkey import load_config
from pgmonkey.common.utils.redaction import redact_config

cfg = load_config('env.yaml', resolve_env=True)
print(redact_config(cfg))
""",
        ("'password': '***REDACTED***'",),
        errors="DeprecationWarning: import redact_config from pgmonkey",
        differs="`redact_config`, `load_config` and `EnvInterpolationError` of `pgmonkey.common.utils`;"
        " `pgmonkey.managers.pgconnection_manager` | work, with a `DeprecationWarning`",
    ),
    "Error Handling": Program(
        """
import os
from pgmonkey import load_config, EnvInterpolationError
password = os.environ.pop('PGPASSWORD')
try:
    cfg = load_config('env.yaml', resolve_env=True)
except EnvInterpolationError as e:
    print(f"Config error: {e}".replace("\\n", " "))
finally:
    os.environ['PGPASSWORD'] = password
""",
        ("PGPASSWORD",),
        differs="it names all, with file and line",
    ),
    "Cache Management": Program(
        in_main(
            """
            assert connection is manager.get_database_connection('config.yaml', 'pool')
            same = manager.get_database_connection('config.yaml', 'pool', force_reload=True)
            print(same is connection, manager.cache_info['size'])
            manager.clear_cache()
            await manager.clear_cache_async()
            print(manager.cache_info)
            """,
            "pool",
        ),
        ("True 1", "{'size': 0, 'connection_types': {}}"),
        differs="it connects first, and keeps the handle",
    ),
    "get_database_connection_from_dict": Program(
        in_main(
            """
            from pgmonkey import load_config
            cfg = load_config('env.yaml')
            connection = manager.get_database_connection_from_dict(cfg, 'normal', resolve_env=True)
            with connection as conn:
                with conn.cursor() as cur:
                    cur.execute('SELECT 1')
                    print(cur.fetchone())
            """,
            "normal",
        ),
        ("(1,)",),
    ),
}


#: Runs the programs that it is given the names of, one after the other.
_ALL = """
import runpy, sys, traceback
for name in sys.argv[1:]:
    for stream in (sys.stdout, sys.stderr):
        print(f"\\f{name}", file=stream, flush=True)
    try:
        runpy.run_path(name, run_name="__main__")
    except Exception:
        traceback.print_exc()
"""


def test_each_program_does_what_it_did(
    directory: Path, database: TemporaryDatabase, canary: Canary
) -> None:
    """The output that is documented; a warning or an error is on the upgrade page. The process ends."""
    database.execute("CREATE TABLE public.my_table (id text, name text)")
    database.execute(f"ALTER TABLE public.my_table OWNER TO {database.user}")
    database.execute("INSERT INTO public.my_table VALUES ('1', 'John')")
    for number, program in enumerate(PROGRAMS.values()):
        (directory / f"{number}.py").write_text(program.text, encoding="utf-8")
    names = [f"{number}.py" for number in range(len(PROGRAMS))]
    program = _ALL.replace("sys.argv[1:]", repr(names))
    ended = run(
        program, directory, environ=environ(database), arguments=("-X", "dev", "-W", "default")
    )
    output, errors = (
        [part.partition("\n")[2] for part in text.split("\f")[1:]]
        for text in ("\n".join(ended.output), ended.errors)
    )
    canary.check("\n".join([*output, *errors]))
    assert (ended.code, len(output)) == (0, len(PROGRAMS)), ended.errors
    for (title, program), out, err in zip(PROGRAMS.items(), output, errors, strict=True):
        assert program.differs in PAGE, title
        assert program.errors in err if program.errors else err == "", (title, err)
        for expected in program.output:
            assert expected in out, (title, out)


SAMPLES = {
    "Full YAML Configuration": TEMPLATE.format(
        user="postgres", password="password", host="localhost", port=5432, name="mydatabase"
    ),
    "Inline Syntax": REFERENCES,
    "Password-Based Authentication": """\
connection_type: 'normal'
connection_settings:
  user: 'your_user'
  password: 'your_password'
  host: 'localhost'
  dbname: 'your_database'
""",
    "Certificate-Based Authentication": """\
connection_type: 'normal'
connection_settings:
  user: 'your_user'
  password: 'your_password'
  host: 'localhost'
  dbname: 'your_database'
  sslmode: 'verify-full'
  sslcert: '/path/to/client.crt'
  sslkey: '/path/to/client.key'
  sslrootcert: '/path/to/ca.crt'
""",
    "Structured Syntax: from_env": """\
connection_settings:
  password:
    from_env: PGMONKEY_DB_PASSWORD
""",
    "Structured Syntax: from_file": """\
connection_settings:
  password:
    from_file: /var/run/secrets/db/password
""",
}


@pytest.mark.parametrize("title", SAMPLES)
def test_a_sample_is_read_as_it_was(title: str, tmp_path: Path) -> None:
    """`load_config` gives the values and types that 4.0 gave."""
    path = tmp_path / "config.yaml"
    path.write_text(SAMPLES[title], encoding="utf-8")
    assert load_config(path) == yaml.safe_load(SAMPLES[title])


@pytest.mark.parametrize("title", ["Full YAML Configuration", "Password-Based Authentication"])
def test_a_sample_means_what_it_did(title: str, tmp_path: Path, canary: Canary) -> None:
    """`check --from-4.0` finds nothing in it."""
    path = tmp_path / "config.yaml"
    path.write_text(SAMPLES[title], encoding="utf-8")
    done = invoke("check", "--from-4.0", path, canary=canary)
    assert (done.code, done.out, done.err) == (0, "", "")
