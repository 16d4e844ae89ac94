"""`pgmonkey serve` as an operator meets it: a process, its answers, its signals, its codes."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.kit import Canary, ChaosProxy, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.command import Running, run
from tests.kit.ports import free_port
from tests.service.serving import Serve, Serving

#: Seconds until a service that has just started has probed its databases, on a machine under load.
PATIENCE = 20


def test_metrics_are_plain_text_or_openmetrics(service: Serving) -> None:
    """/metrics answers in the format that the client asks for."""
    plain = service.get("/metrics")
    assert plain.status == 200
    assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'pgmonkey_config_version{database="orders"} 1.0' in plain.text
    assert "process_open_fds" in plain.text
    modern = service.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert modern.headers["Content-Type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")


def test_a_probe_is_exported(service: Serving) -> None:
    """Whether the last background probe reached a database, and how long it took, are metrics."""
    eventually(lambda: service.sample("pgmonkey_up") == 1.0, PATIENCE)
    duration = service.sample("pgmonkey_probe_duration_seconds")
    assert duration is not None
    assert duration > 0


def test_variables_come_from_an_env_file(
    serve: Serve, registry_dir: RegistryDirectory, database: TemporaryDatabase, tmp_path: Path
) -> None:
    """A URL in a `.env` file: the database is reached, and the page's data has no secret."""
    address = f"{database.user}:{database.password}@{database.host}:{database.port}"
    path = tmp_path / ".env"
    path.write_text(f"ORDERS_URL=postgresql://{address}/{database.name}\n")
    registry_dir.write("orders", "connection_settings: {url: '${ORDERS_URL}'}\n")
    service = serve("--env-file", path)
    eventually(lambda: service.sample("pgmonkey_up") == 1.0, PATIENCE)
    settings = service.get("/api/v1/databases/orders").json["settings"]
    shown = {one["key"]: one["value"] for one in settings}
    assert shown["connection_settings.dbname"] == database.name
    assert shown["connection_settings.password"] == "***REDACTED***"


def test_ready_when_every_required_database_was_reached(
    serve: Serve, registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """Not ready until the required database is reached; an outage later changes nothing."""
    registry_dir.declare("orders", database, connection={"port": proxy.port, "connect_timeout": 2})
    proxy.set("refuse")
    service = serve()
    eventually(
        lambda: service.get("/readyz").json["databases"]["orders"]["reason"] == "refused", PATIENCE
    )
    answer = service.get("/readyz")
    assert answer.status == 503
    assert answer.json == {
        "ready": False,
        "stopping": False,
        "waiting_for": ["orders"],
        "databases": {
            "orders": {"required": True, "reached": False, "state": "down", "reason": "refused"}
        },
    }
    proxy.set("pass")
    eventually(lambda: service.get("/readyz").status == 200, 10)
    proxy.set("refuse")
    proxy.kill()
    assert service.get("/readyz").status == 200


def test_an_optional_database_is_named_but_not_waited_for(
    serve: Serve, registry_dir: RegistryDirectory, orders: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """With `required: false` a database that is down leaves the service ready, and is named."""
    registry_dir.declare("reports", orders, connection={"port": proxy.port}, required=False)
    proxy.set("refuse")
    service = serve()
    eventually(lambda: service.get("/readyz").status == 200, PATIENCE)
    eventually(
        lambda: service.get("/readyz").json["databases"]["reports"]["reason"] != "not_probed",
        PATIENCE,
    )
    reports = service.get("/readyz").json["databases"]["reports"]
    assert reports == {
        "required": False, "reached": False, "state": "down", "reason": "refused",
    }  # fmt: skip


def test_a_database_that_came_later_is_not_waited_for(
    serve: Serve, registry_dir: RegistryDirectory, orders: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """A required database that is declared while the service runs does not make it unready."""
    service = serve()
    eventually(lambda: service.get("/readyz").status == 200, PATIENCE)
    proxy.set("refuse")
    registry_dir.declare("late", orders, connection={"port": proxy.port})
    eventually(lambda: "late" in service.get("/readyz").json["databases"])
    assert service.get("/readyz").status == 200


@pytest.mark.parametrize("mode", ["refuse", "blackhole"])
def test_healthy_whatever_the_database_does(
    mode: Any,
    serve: Serve,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    proxy: ChaosProxy,
) -> None:
    """/healthz and /metrics answer while a probe is refused, or hangs in a silent network."""
    registry_dir.declare("orders", database, connection={"port": proxy.port})
    proxy.set(mode)
    service = serve()
    eventually(lambda: mode == "refuse" or proxy.connections > 0, PATIENCE)
    answer = service.get("/healthz")
    assert (answer.status, answer.json) == (200, {"healthy": True, "watching": True})
    assert service.get("/metrics").status == 200
    assert service.get("/readyz").status == 503


def test_a_saved_file_is_applied(
    serve: Serve, registry_dir: RegistryDirectory, orders: TemporaryDatabase
) -> None:
    """The service sees a changed file by itself: the version goes up."""
    service = serve()
    assert service.sample("pgmonkey_config_version") == 1.0
    registry_dir.declare("orders", orders, pool_settings={"max_size": 3})
    eventually(lambda: service.sample("pgmonkey_config_version") == 2.0)


def test_a_broken_file_is_stale_and_said(
    serve: Serve, registry_dir: RegistryDirectory, orders: TemporaryDatabase
) -> None:
    """A broken file sets `pgmonkey_config_stale` and is logged with file, line and key."""
    service = serve("--log-format", "json")
    assert service.sample("pgmonkey_config_stale") == 0.0
    registry_dir.declare("orders", orders, pool_settings={"max_sise": 3})
    eventually(lambda: service.sample("pgmonkey_config_stale") == 1.0)
    service.wait_for("config.rejected")
    rejected = [
        json.loads(line) for line in service.text.splitlines() if "config.rejected" in line
    ][-1]
    assert rejected["file"] == str(registry_dir.file("orders"))
    assert rejected["key"] == "pool_settings.max_sise"
    assert rejected["line"] > 1
    registry_dir.declare("orders", orders)
    eventually(lambda: service.sample("pgmonkey_config_stale") == 0.0)


def test_sighup_looks_at_the_files(serve: Serve, orders: TemporaryDatabase) -> None:
    """SIGHUP reloads and logs the result; a second one during the reload is fine."""
    service = serve()
    assert service.get("/healthz").status == 200
    service.send(signal.SIGHUP)
    service.wait_for("reloaded: 0 applied, 0 rejected, 1 unchanged, 0 removed")
    service.send(signal.SIGHUP)
    service.send(signal.SIGHUP)
    assert service.get("/healthz").status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(
    number: signal.Signals, serve: Serve, orders: TemporaryDatabase
) -> None:
    """At SIGTERM or SIGINT /readyz says 503 while requests are answered, then the code is 0."""
    service = serve("--grace", "1")
    eventually(lambda: service.get("/readyz").status == 200, PATIENCE)
    service.send(number)
    service.wait_for("stopping")
    answer = service.get("/readyz")
    assert (answer.status, answer.json["stopping"]) == (503, True)
    assert service.code(10) == 0
    assert "stopped" in service.text


def test_it_ends_while_a_probe_hangs_and_a_client_is_slow(
    serve: Serve, registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """A probe in a silent network and a half-sent request hold nothing up: 10 s and it is over."""
    registry_dir.declare("orders", database, connection={"port": proxy.port})
    proxy.set("blackhole")
    service = serve()
    eventually(lambda: proxy.connections > 0, PATIENCE)
    parts = urlsplit(service.url)
    with socket.create_connection((str(parts.hostname), parts.port or 0)) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        service.send(signal.SIGTERM)
        assert service.code(10) == 0


def test_a_second_signal_ends_it_at_once(serve: Serve, orders: TemporaryDatabase) -> None:
    """Who asks twice does not wait for the grace period; the code says by which signal."""
    service = serve("--grace", "30")
    assert service.get("/healthz").status == 200
    service.send(signal.SIGTERM)
    service.wait_for("stopping")
    service.send(signal.SIGTERM)
    assert service.code(2) == 128 + signal.SIGTERM


def test_other_hosts_are_refused(serve: Serve, orders: TemporaryDatabase) -> None:
    """A request for another host (DNS rebinding) gets 421; configured names and addresses pass."""
    service = serve("--allow-host", "pgmonkey.internal")
    expected = {
        "localhost": 200,
        "LOCALHOST:9749": 200,
        "127.0.0.1:1": 200,
        "[::1]:9749": 200,
        "10.1.2.3": 200,
        "pgmonkey.internal:9749": 200,
        "evil.example": 421,
        "localhost.evil.example": 421,
        "127.0.0.1.evil.example": 421,
        "[evil.example]": 421,
        "": 421,
    }
    assert {host: service.get("/healthz", Host=host).status for host in expected} == expected


def test_only_what_is_there_is_answered(service: Serving) -> None:
    """Unknown paths are 404, unknown methods 405 with what is allowed, all with safe headers."""
    expected = {
        ("GET", "/nope"): 404,
        ("GET", "/metrics/"): 404,
        ("GET", "//metrics"): 404,
        ("GET", "/../../etc/passwd"): 404,
        ("GET", "/%2e%2e/etc/passwd"): 404,
        ("POST", "/metrics"): 405,
        ("PUT", "/readyz"): 405,
        ("TRACE", "/healthz"): 405,
        ("HEAD", "/metrics"): 200,
    }
    for (method, path), status in expected.items():
        answer = service.get(path, method)
        assert (method, path, answer.status) == (method, path, status)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Server" not in answer.headers
        if status == 405:
            assert "GET" in answer.headers["Allow"]


def test_bad_files_are_all_said_at_once(
    registry_dir: RegistryDirectory, orders: TemporaryDatabase, canary: Canary
) -> None:
    """Every problem of every file is a line with a hint, the last line a summary, the code 1."""
    registry_dir.write("bad", "connection_settings: {hots: x, dbname: y, user: z}\n")
    registry_dir.write("worse", "pool_settings: 3\n")
    done = run("serve", registry_dir, "--listen", "127.0.0.1:0", canary=canary)
    assert done.code == 1
    assert done.out == ""
    lines = done.err.splitlines()
    assert any("bad.yaml:1:" in line and "hots" in line for line in lines)
    assert any("worse.yaml:" in line for line in lines)
    assert any("hint: " in line for line in lines)
    assert re.fullmatch(r"\d+ problems in 2 files", lines[-1])


def test_a_missing_directory_is_one_problem(
    registry_dir: RegistryDirectory, canary: Canary
) -> None:
    """A directory that is not there is a problem with a hint, and the code is 1."""
    done = run("serve", registry_dir.path / "nowhere", "--listen", "127.0.0.1:0", canary=canary)
    assert done.code == 1
    assert "nowhere" in done.err
    assert done.err.endswith("1 problem in 1 file\n")


def test_a_port_that_is_taken_is_said(
    registry_dir: RegistryDirectory, orders: TemporaryDatabase, canary: Canary
) -> None:
    """An address that cannot be had is named with the reason, and the code is 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", registry_dir, "--listen", address, canary=canary)
    assert done.code == 1
    assert done.err == (
        f"cannot listen on {address}: Address already in use\n"
        "  hint: --listen names another address or port; port 0 takes any free one\n"
    )


@pytest.mark.parametrize("way", ["argument", "variable", "default"])
def test_where_the_registry_is(
    way: str, registry_dir: RegistryDirectory, orders: TemporaryDatabase, canary: Canary
) -> None:
    """The directory is the argument, else $PGMONKEY_REGISTRY, else ./registry.d."""
    arguments = [registry_dir] if way == "argument" else []
    wrong = str(registry_dir.path / "nowhere")
    variable = {"argument": wrong, "variable": str(registry_dir), "default": ""}[way]
    with Serving(
        "serve", *arguments, "--listen", "127.0.0.1:0",
        canary=canary, env={"PGMONKEY_REGISTRY": variable}, cwd=registry_dir.path.parent,
    ) as service:  # fmt: skip
        assert service.get("/healthz").status == 200


def test_json_logs(serve: Serve, orders: TemporaryDatabase) -> None:
    """In JSON every line is an object with event, level and time; that is what a pipe gets."""
    service = serve()
    assert service.get("/healthz").status == 200
    service.send(signal.SIGTERM)
    assert service.code() == 0
    lines = [json.loads(line) for line in service.text.splitlines()]
    assert {"event", "level", "time"} <= set.intersection(*(set(line) for line in lines))
    assert "registry.loaded" in [line["event"] for line in lines]


def test_console_logs_and_levels(serve: Serve, orders: TemporaryDatabase) -> None:
    """On a console a line is for people; `--log-level` leaves out what is below it."""
    service = serve("--log-format", "console")
    assert service.get("/healthz").status == 200
    assert re.search(r"^\d\d:\d\d:\d\d \[info *\] registry\.loaded", service.text, re.MULTILINE)
    assert "\x1b" not in service.text


@pytest.mark.parametrize("delay", [0, 0.02, 0.1, 0.3])
def test_a_signal_right_after_it_listens(
    delay: float, registry_dir: RegistryDirectory, orders: TemporaryDatabase, canary: Canary
) -> None:
    """A SIGTERM ends it in order from the moment that it listens: code 0, and no warning."""
    port = free_port()
    with Running(
        "serve", registry_dir, "--listen", f"127.0.0.1:{port}", "--log-level", "warning",
        "--grace", "0", canary=canary,
    ) as service:  # fmt: skip
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:  # as closely as it can be seen
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
        time.sleep(delay)  # into the imports, the load, and the start
        service.send(signal.SIGTERM)
        assert service.code() == 0
        assert service.text == ""


def test_quiet_logs(
    registry_dir: RegistryDirectory, orders: TemporaryDatabase, canary: Canary
) -> None:
    """With `--log-level warning` a service that has nothing to warn of is silent."""
    port = free_port()
    with Running(
        "serve", registry_dir, "--listen", f"127.0.0.1:{port}", "--log-level", "warning",
        canary=canary,
    ) as service:  # fmt: skip

        def answers() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except ConnectionRefusedError:
                return False
            return True

        eventually(answers, 20)
        service.send(signal.SIGTERM)
        assert service.code() == 0
        assert service.text == ""
