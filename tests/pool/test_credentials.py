"""Credentials made on demand: read when a connection is made, and kept as long as they hold."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from psycopg import sql

from pgmonkey import ConnectError, Credentials, Registry
from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.events import CapturedEvents
from tests.kit.eventually import eventually
from tests.kit.process import in_a_child
from tests.kit.registry_dir import RegistryDirectory
from tests.pool.side import SIDES, Client, takes
from tests.pool.tokens import Mint, under_churn

FROM_RESOLVER = {"from_resolver": "mint", "key": "db/orders"}


@pytest.fixture
def database(shared_database: TemporaryDatabase) -> TemporaryDatabase:
    """One database for all these tests."""
    return shared_database


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> str:
    """Each of the two sides."""
    return str(request.param)


@pytest.fixture
def opened(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, side: str
) -> Iterator[Callable[..., Client]]:
    """Make a client of a database whose password is made on demand."""
    made: list[tuple[Registry, Client]] = []

    def make(
        resolver: Any = None,
        password: Any = FROM_RESOLVER,
        env: Any = None,
        watch: bool = True,
        **connection: Any,
    ) -> Client:
        sizes = {"min_size": 1, "max_size": 8}
        registry_dir.declare(
            "orders",
            database,
            side,
            connection={"password": password, **connection},
            pool_settings=sizes,
            async_pool_settings=sizes,
        )
        registry = Registry(
            registry_dir,
            metrics=None,
            watch=watch,
            resolvers={"mint": resolver or str},
            env=env,
        )
        made.append((registry, Client(registry)))
        return made[-1][1]

    yield make
    for registry, client in made:
        client.close()
        registry.close()


@pytest.fixture
def failure(registry_dir: RegistryDirectory) -> Iterator[Callable[..., str]]:
    """Return why a database whose password is made on demand cannot be reached."""
    opened: list[Registry] = []

    def probe(
        resolver: Any = str, password: Any = FROM_RESOLVER, user: Any = "app", env: Any = None
    ) -> str:
        settings = {"host": "localhost", "dbname": "orders", "user": user, "password": password}
        registry_dir.write("orders", {"connection_settings": settings})
        registry = Registry(
            registry_dir, metrics=None, watch=False, resolvers={"mint": resolver}, env=env
        )
        opened.append(registry)
        status = registry.probe("orders")
        assert status.last_error_reason == "credentials"
        return str(status.last_error)

    yield probe
    for registry in opened:
        registry.close()


def program(directory: Path, text: str) -> list[str]:
    """Write a shell program and return how it is run."""
    path = directory / "token"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return [str(path)]


def is_left(pid: int) -> bool:
    """Tell whether a process runs, or is a zombie of this one: others may collect theirs late."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE or process.ppid() == os.getpid()
    return False


def pipes() -> int:
    """Return how many pipes this process has open."""
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(one.readlink()).startswith("pipe:")
    return found


# What is read, and when


def test_many_connects_at_once_make_one_call(
    opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """Connections that are made side by side share the answer; so do those that come later."""
    mint = Mint(database)
    client = opened(mint)
    client.fill(4)
    database.terminate_backends()
    client.fill(4)
    assert mint.keys == ["db/orders"]


@pytest.mark.parametrize("side", ["pool"], indirect=True)
def test_five_tokens_cost_a_pool_nothing_but_its_new_connections(
    opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """One login for each new connection; a new token replaces none of the others."""
    mint = Mint(database, lifetime=0.05)
    client = opened(mint)
    client.fill(5)
    others = {row["pid"] for row in database.backends()}
    before = client.handle.status().connect_attempts
    calls = mint.calls
    for token in range(5):
        made = client.handle.status().connect_attempts
        eventually(lambda: time.monotonic() > mint.expires_at + 0.01, 5, "the token has expired")
        others.discard(client.run(closed))
        eventually(
            lambda number=made: client.handle.status().connect_attempts > number, 10, "a new one"
        )
        assert mint.calls == calls + token + 1
    assert client.handle.status().connect_attempts == before + 5
    assert others <= {row["pid"] for row in database.backends()}
    assert client.handle.status().evicted.get("rotation", 0) == 0


def closed(connection: Any) -> Any:
    """Close a connection inside its block, and return its backend."""
    backend = connection.info.backend_pid
    closing = connection.close()

    async def close() -> int:
        await closing
        return backend

    return close() if closing is not None else backend


def test_a_token_that_expires_is_read_once_for_each_expiry_and_replaces_no_connection(
    opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """Under load, with new connections all the time: no error, no rotation, no call too many."""
    lifetime = 0.2
    mint = Mint(database, lifetime)
    with under_churn(opened(mint), seconds=0.7) as churn:
        pass
    assert churn.errors == []
    assert churn.made > mint.calls >= 2
    gaps = [later - earlier for earlier, later in zip(mint.times, mint.times[1:], strict=False)]
    assert min(gaps) >= lifetime - 0.05
    status = churn.client.handle.status()
    assert status.version == 1
    assert status.evicted.get("rotation", 0) == 0


def test_a_revoked_token_costs_one_look(
    opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """All connects that the server refuses share one more call, and no client sees an error."""
    mint = Mint(database)
    client = opened(mint)
    client.fill(2)
    database.rotate()
    database.terminate_backends()
    answers = [client.ask_soon(timeout=20) for _ in range(4)]
    assert [answer.exception(30) for answer in answers] == [None] * 4
    assert mint.calls == 2
    assert client.errors() == {}


def test_a_source_that_gives_a_refused_token_again_is_not_asked_in_a_loop(
    opened: Callable[..., Client], canary: Canary
) -> None:
    """Its error is that of the server, and the login is tried as seldom as any refused one."""
    wrong = canary.secret()
    calls: list[str] = []

    def resolver(key: str) -> str:
        calls.append(key)
        return wrong

    client = opened(resolver)
    with takes(2), pytest.raises(ConnectError) as caught:
        client.ask(timeout=20)
    assert caught.value.reason == "auth"
    assert len(calls) <= 2


@pytest.mark.parametrize("side", ["async_pool"], indirect=True)
def test_a_reload_that_changes_something_else_reads_nothing_again(
    opened: Callable[..., Client], database: TemporaryDatabase, registry_dir: RegistryDirectory
) -> None:
    """Even if it replaces the connections: what was read last still holds."""
    mint = Mint(database)
    client = opened(mint)
    client.fill(2)
    text = registry_dir.file("orders").read_text()
    registry_dir.write("orders", f"{text}reset_on_return: true\n")
    assert client.registry.reload().applied == ("orders",)
    client.fill(2)
    assert client.handle.status().version == 2
    assert mint.calls == 1


@pytest.mark.parametrize("side", ["pool"], indirect=True)
def test_a_connection_outside_of_the_pool_gets_them_too(
    opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """With one look after a refusal; another user or password takes their place."""
    mint = Mint(database)
    registry = opened(mint).registry

    async def ask(**overrides: Any) -> None:
        async with await registry.aconnect("orders", **overrides) as connection:
            await connection.execute("SELECT 1")

    registry.connect("orders").close()
    database.rotate()
    asyncio.run(ask())
    assert mint.calls == 2
    registry.connect("orders", password=database.password).close()
    with pytest.raises(ConnectError, match="no password supplied"):
        registry.connect("orders", password=None)
    assert mint.calls == 2


def test_a_coroutine_function_serves_both_sides(
    opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """It runs in a loop of its own."""

    async def resolver(_key: str) -> str:
        await asyncio.sleep(0)
        return database.password

    assert opened(resolver).ask() == 1


@pytest.mark.parametrize("side", ["async_pool"], indirect=True)
def test_a_source_that_blocks_does_not_block_the_loop(
    opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """Tasks go on while a call waits in its thread."""
    asked, go_on = threading.Event(), threading.Event()

    def resolver(_key: str) -> str:
        asked.set()
        go_on.wait(20)
        return database.password

    client = opened(resolver)
    answer = client.ask_soon(timeout=20)
    assert asked.wait(10)
    turned: Future[None] = Future()
    client.loop.call_soon_threadsafe(turned.set_result, None)
    turned.result(10)
    assert not answer.done()
    go_on.set()
    assert answer.result(20) == 1


@pytest.mark.parametrize("side", ["pool"], indirect=True)
def test_a_child_process_uses_what_its_parent_read(
    opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """And asks by itself when that is over: a call of the parent does not hold it up."""
    mint = Mint(database)
    client = opened(mint, watch=False)
    client.fill(1)
    client.shut()
    assert in_a_child(client.ask) == 1
    assert mint.calls == 1


def test_a_call_of_the_parent_does_not_hold_up_a_child(
    failure: Callable[..., str], registry_dir: RegistryDirectory
) -> None:
    """Its thread is not in the child, so the child calls by itself."""
    parent, asked, go_on = os.getpid(), threading.Event(), threading.Event()

    def resolver(_key: str) -> str:
        if os.getpid() != parent:
            raise LookupError("the child has asked")
        asked.set()
        go_on.wait(20)
        raise LookupError("the parent has asked")

    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(failure(resolver)))
    thread.start()
    assert asked.wait(10)
    assert "the child has asked" in in_a_child(lambda: failure(resolver))
    go_on.set()
    thread.join(10)
    assert "the parent has asked" in found[0]


@pytest.mark.parametrize("side", ["async_pool"], indirect=True)
def test_what_has_expired_when_it_comes_is_used_for_a_second(
    opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """The clock of another machine may be behind: a source is not asked for each connection."""
    mint = Mint(database, lifetime=-3600)
    began = time.monotonic()
    opened(mint).fill(2)
    assert mint.calls <= 1 + (time.monotonic() - began)


# Users with leases


class Leases:
    """A source of users: each call makes another one, which owns what the database's owner does.

    Args:
        database: The database.
        lifetime: Seconds until the expiry that it returns.
    """

    def __init__(self, database: TemporaryDatabase, lifetime: float) -> None:
        self._database = database
        self.lifetime = lifetime
        self.users: list[str] = []

    def __call__(self, _key: str) -> Credentials:
        user = f"{self._database.name}_lease_{len(self.users)}"
        password = self._database.canary.secret()
        self._database.server.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(user), sql.Literal(password)
            )
        )
        self.users.append(user)
        return Credentials(password, user=user, expires_at=time.time() + self.lifetime)

    def drop(self) -> None:
        """Remove the users."""
        for user in self.users:
            self._database.server.drop_role(user)


@pytest.fixture
def leases(database: TemporaryDatabase) -> Iterator[Leases]:
    """Users of a short time."""
    leases = Leases(database, 0.2)
    yield leases
    database.terminate_backends()
    leases.drop()


def users(database: TemporaryDatabase) -> set[str]:
    """Return the users of the sessions in a database."""
    rows = database.server.execute(
        "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = %s"
        " AND backend_type = 'client backend' AND application_name <> 'embedded_server'",
        database.name,
    )
    return {user for (user,) in rows}


@pytest.mark.parametrize("side", ["pool"], indirect=True)
def test_a_lease_that_ends_replaces_user_and_password_together(
    leases: Leases, opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """No client asks for that: the idle connections of the old user are replaced, and no query fails."""
    client = opened(leases, user=FROM_RESOLVER)
    client.fill(3)
    first = leases.users[0]
    eventually(
        lambda: (found := users(database)) and first not in found, 20, "the old user is gone"
    )
    assert client.ask("SELECT current_user") in leases.users[1:]
    assert client.errors() == {}


@pytest.mark.parametrize("side", ["async"], indirect=True)
def test_a_handle_with_one_connection_replaces_it_too(
    leases: Leases, opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """Between two blocks, user and password together."""
    client = opened(leases, user=FROM_RESOLVER)
    first = client.ask("SELECT current_user")
    eventually(lambda: client.ask("SELECT current_user") != first, 20, "another user")
    assert client.errors() == {}


@pytest.mark.parametrize("side", ["pool"], indirect=True)
def test_a_user_that_somebody_else_got_replaces_the_connections(
    leases: Leases, opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """A probe, or another database with the same reference: the time of the new user is not over."""
    leases.lifetime = 60
    client = opened(leases, user=FROM_RESOLVER)
    client.fill(2)
    database.execute(f'ALTER ROLE "{leases.users[0]}" NOLOGIN')
    assert client.registry.probe("orders").probe.up
    eventually(lambda: users(database) == {leases.users[1]}, 20, "the connections are of the new")
    assert len(leases.users) == 2
    assert client.handle.status().version == 2


@pytest.mark.parametrize("side", ["async_pool"], indirect=True)
def test_a_user_that_a_connect_gets_replaces_those_of_the_file(
    opened: Callable[..., Client], leases: Leases, database: TemporaryDatabase
) -> None:
    """A busy pool moves to the new user as a whole, connections in use at their return."""
    client = opened(leases)  # the file names another user
    with client.holding(2):
        eventually(lambda: client.ask("SELECT current_user") != leases.users[0], 20, "the next")
    eventually(lambda: leases.users[0] not in users(database), 20, "the old user is gone")
    assert client.errors() == {}


@pytest.mark.parametrize("side", ["pool"], indirect=True)
def test_a_lease_that_is_not_renewed_is_reported_once_and_its_connections_serve(
    opened: Callable[..., Client], leases: Leases, events: CapturedEvents, canary: Canary
) -> None:
    """They are replaced when the resolver works again."""
    works = threading.Event()
    works.set()
    failed: list[str] = []

    def resolver(key: str) -> Credentials:
        if works.is_set():
            return leases(key)
        failed.append(key)
        raise ConnectionError(f"vault is sealed, token={canary.secret()}")

    client = opened(resolver, user=FROM_RESOLVER)
    client.fill(2)
    works.clear()
    reported = events.wait("credentials.not_renewed", 20)
    assert reported["error"].endswith("ConnectionError: vault is sealed, token=***REDACTED***")
    eventually(lambda: len(failed) >= 2, 20, "it is asked again")
    made = list(leases.users)
    assert client.ask("SELECT current_user") in made
    assert len(events.named("credentials.not_renewed")) == 1
    works.set()
    eventually(lambda: client.ask("SELECT current_user") not in made, 20, "another user")


# What goes wrong


def test_a_command_that_fails_is_named_with_its_place_and_its_last_words(
    failure: Callable[..., str],
    registry_dir: RegistryDirectory,
    tmp_path: Path,
    canary: Canary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Secrets in them are masked: its output, its arguments from outside, what is assigned or in a URL."""
    secret, given = canary.secret(), canary.secret()
    monkeypatch.setenv("DOOR", given)
    text = (
        f"echo {secret}; echo 'no door at https://door.example/' >&2;"
        f' echo "said {secret} to $1, token={canary.secret()}" >&2; exit 3'
    )
    found = failure(password={"from_command": [*program(tmp_path, text), "${DOOR}"]})
    file = registry_dir.file("orders")
    line = 2 + file.read_text().splitlines().index("  password:")
    assert found == (
        f"{file}:{line}:5: connection_settings.password: the command token ended with exit code 3:"
        " no door at https://door.example/ said ***REDACTED*** to ***REDACTED***,"
        " token=***REDACTED***"
    )


def test_secret_variables_are_masked_in_the_words_of_a_command(
    failure: Callable[..., str],
    tmp_path: Path,
    canary: Canary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those with the name of a secret, and of those that were given here what looks like one."""
    monkeypatch.setenv("VAULT_TOKEN", "sesame")
    env = {"AWS_SESSION_TOKEN": canary.secret(), "DOOR": canary.secret(), "AWS_PROFILE": "dev"}
    words = " ".join(f"${name}" for name in (*env, "VAULT_TOKEN"))
    command = program(tmp_path, f'echo "no {words}" >&2; exit 1')
    found = failure(password={"from_command": command}, env=env)
    assert found.endswith("code 1: no ***REDACTED*** ***REDACTED*** dev ***REDACTED***")


def test_an_argument_from_outside_is_masked_whatever_other_files_have(
    registry_dir: RegistryDirectory, tmp_path: Path
) -> None:
    """A file that has the same argument as text may show it; the other one may not."""
    run = program(tmp_path, 'echo "no $1" >&2; exit 1')
    settings = {"host": "localhost", "dbname": "orders", "user": "app"}
    for name, argument in {"open": "sesame", "shut": "${WORD}"}.items():
        password = {"from_command": [*run, argument]}
        registry_dir.write(name, {"connection_settings": {**settings, "password": password}})
    with Registry(registry_dir, metrics=None, watch=False, env={"WORD": "sesame"}) as registry:
        errors = {name: str(registry.probe(name).last_error) for name in registry}
    assert errors["open"].endswith("no sesame")
    assert errors["shut"].endswith("no ***REDACTED***")


def test_only_the_end_of_long_errors_is_quoted(
    failure: Callable[..., str], tmp_path: Path, canary: Canary
) -> None:
    """A secret is masked before the text is cut."""
    text = f"echo {canary.secret()}; yes {'x' * 98} | head -100 >&2; exit 1"
    found = failure(password={"from_command": program(tmp_path, text)})
    assert found.endswith(f"ended with exit code 1: ...{'x' * 3} {' '.join(['x' * 98] * 3)}")


def test_a_program_that_is_not_there_is_named(failure: Callable[..., str]) -> None:
    """With the words of the system."""
    found = failure(password={"from_command": ["no-such-program", "login"]})
    assert found.endswith("the command no-such-program cannot be run: No such file or directory")


@pytest.mark.parametrize(
    "text, words",
    {
        "true": "gave nothing that can be used: its output is empty",
        "echo": "gave nothing that can be used: its output is empty",
        r"printf 'a\000b'": "gave nothing that can be used: its output contains a NUL character",
        r"printf '\351t\351'": "gave nothing that can be used: its output is not UTF-8 text",
        "head -c 65537 /dev/zero": "gave more than 64 KiB",
        "yes": "gave more than 64 KiB",
        "kill -9 $$": "was killed by signal 9",
    }.items(),
)
def test_output_that_is_no_password_is_refused(
    failure: Callable[..., str], tmp_path: Path, text: str, words: str
) -> None:
    """As that of `from_file` is."""
    assert words in failure(password={"from_command": program(tmp_path, text)})


@pytest.mark.parametrize("side", ["pool"], indirect=True)
def test_one_newline_at_the_end_of_the_output_is_no_part_of_it(
    opened: Callable[..., Client], tmp_path: Path, database: TemporaryDatabase
) -> None:
    """A second one is. Relative programs are found in the directory of the file."""
    (tmp_path / "registry.d").mkdir(exist_ok=True)
    program(tmp_path / "registry.d", f"echo {database.password}")
    assert opened(password={"from_command": ["./token"]}).ask() == 1


@pytest.mark.parametrize("side", ["pool"], indirect=True)
def test_a_command_gets_the_variables_of_the_registry_over_the_environment(
    opened: Callable[..., Client], tmp_path: Path, database: TemporaryDatabase
) -> None:
    """As they are at the call. The environment of this process stays as it is."""
    env = {"HOME": "/nowhere", "PATH": None, "TOKEN": "old"}
    command = program(tmp_path, 'test "$HOME" = /nowhere && test "$PATH" && echo "$TOKEN"')
    client = opened(password={"from_command": command}, env=env)
    env["TOKEN"] = database.password
    assert client.ask() == 1
    assert "TOKEN" not in os.environ


def test_a_command_is_killed_with_its_children_at_its_timeout(
    failure: Callable[..., str], tmp_path: Path
) -> None:
    """No process is left, no zombie, and no descriptor."""
    numbers = tmp_path / "pids"
    text = f"sleep 60 & echo $! >>{numbers}; echo $$ >>{numbers}; wait"
    before = pipes()
    found = failure(password={"from_command": program(tmp_path, text), "timeout": "1s"})
    assert found.endswith("the command token did not end within 1 s, and was killed")
    pids = [int(one) for one in numbers.read_text().split()]
    assert len(pids) == 2
    eventually(lambda: not any(map(is_left, pids)), 5, "they are gone")
    assert pipes() == before


@pytest.mark.parametrize("side", ["async_pool"], indirect=True)
def test_a_child_that_keeps_the_output_open_holds_nothing_up(
    opened: Callable[..., Client], tmp_path: Path, database: TemporaryDatabase
) -> None:
    """What counts is the end of the program itself."""
    text = f"sleep 20 & echo {database.password}"
    client = opened(password={"from_command": program(tmp_path, text)})
    with takes(2):
        assert client.ask() == 1


@pytest.mark.slow
@pytest.mark.parametrize("side", ["async_pool"], indirect=True)
def test_connect_timeout_ends_the_wait_for_a_source(
    opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """The call goes on, and what it gives is used when it comes."""
    go_on = threading.Event()

    def resolver(_key: str) -> str:
        go_on.wait(20)
        return database.password

    client = opened(resolver, connect_timeout=2)
    answer = client.ask_soon(timeout=20)
    eventually(
        lambda: client.handle.status().connect_failures["credentials"] == 1, 10, "it gave up"
    )
    assert "gave nothing within 2 s" in str(client.handle.status().last_failure)
    go_on.set()
    assert answer.result(20) == 1


@pytest.mark.parametrize(
    "returned, words",
    [
        (None, "returned NoneType, not str or Credentials"),
        (b"tea", "returned bytes, not str or Credentials"),
        ("", "returned a password that is empty"),
        ("a\0b", "returned a password that contains a NUL character"),
        ("\udcff", "returned a password that is not UTF-8 text"),
        (Credentials("tea", user=""), "returned a user that is empty"),
        (Credentials("tea"), "gave a password, but no user"),
    ],
)
def test_a_resolver_that_returns_no_credential_is_named(
    failure: Callable[..., str], returned: Any, words: str
) -> None:
    """With what is wrong, and never with what it returned."""
    found = failure(lambda _key: returned, user=FROM_RESOLVER)
    assert f"the resolver mint {words}" in found


@pytest.mark.slow
@pytest.mark.parametrize("side", ["pool"], indirect=True)
def test_a_call_that_hangs_for_ever_does_not_stop_the_others(
    opened: Callable[..., Client], database: TemporaryDatabase
) -> None:
    """Some time after its timeout the source is asked again, in another thread."""
    calls: list[str] = []
    go_on = threading.Event()

    def resolver(key: str) -> str:
        calls.append(key)
        if len(calls) == 1:
            go_on.wait(30)
        return database.password

    client = opened(resolver, password={**FROM_RESOLVER, "timeout": "200ms"})
    try:
        assert client.ask(timeout=20) == 1
    finally:
        go_on.set()
    assert len(calls) == 2


@pytest.mark.parametrize("side", ["pool"], indirect=True)
def test_an_error_of_a_resolver_is_quoted_without_secrets(
    opened: Callable[..., Client], canary: Canary
) -> None:
    """Whatever it raises; a failed source is asked once a second, however many ask."""
    calls: list[str] = []

    def resolver(key: str) -> str:
        calls.append(key)
        raise KeyError(f"vault is sealed, token={canary.secret()}")

    began = time.monotonic()
    client = opened(resolver)
    answers = [client.ask_soon(timeout=0.8) for _ in range(8)]
    errors = [answer.exception(20) for answer in answers]
    assert all("the resolver mint failed: KeyError: 'vault is sealed" in str(one) for one in errors)
    canary.check("".join(map(str, errors)))
    assert len(calls) <= 1 + (time.monotonic() - began)
