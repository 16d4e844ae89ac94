"""Options of `pgmonkey serve` that decide on its registry, on the command line and as variables."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import prometheus_client
import pytest
from prometheus_client import generate_latest

from pgmonkey import Registry, RegistryConfigError
from tests.kit import Canary, ChaosProxy, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.command import invoke
from tests.service.serving import Serve

Open = Callable[[prometheus_client.CollectorRegistry], Registry]


def opened(canary: Canary, directory: object, *options: object, **variables: str) -> Open:
    """Return how `pgmonkey serve` opens its registry, without answering any request."""
    given: list[Open] = []
    with (
        patch("pgmonkey.service.runner.serve", lambda opens, *_: given.append(opens)),
        patch("pgmonkey.telemetry.logging.configure_logs"),  # those of this process stay
    ):
        words = ("serve", directory, "--listen", "127.0.0.1:0", "--trust", "off", *options)
        done = invoke(*words, canary=canary, env=variables)
    assert (done.code, done.err) == (0, "")
    return given[0]


@pytest.mark.parametrize("way", ["options", "variables"])
def test_the_registry_is_opened_as_the_options_say(
    way: str, registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Names, the limit of connections and the kind of timings; a variable does what an option does."""
    for name in ("orders", "events"):
        registry_dir.declare(name, database, pool_settings={"min_size": 0, "max_size": 2})
    registry_dir.write("broken", "nothing: valid\n")  # not read: it is not one of the names
    given = {
        "--names": "orders, events",
        "--probe-interval": "10min",
        "--max-connections": "1",
        "--no-histograms": "1",
    }
    if way == "variables":
        variables = {f"PGMONKEY_{key[2:].upper().replace('-', '_')}": given[key] for key in given}
        opens = opened(canary, registry_dir, **variables)
    else:
        words = [word for pair in given.items() for word in pair]
        opens = opened(canary, registry_dir, *words[:-1])  # --no-histograms takes no value
    metrics = prometheus_client.CollectorRegistry()
    with opens(metrics) as registry:
        assert sorted(registry.names) == ["events", "orders"]
        eventually(lambda: all(one.probe for one in registry.status().databases))
        with (
            registry.get("orders"),
            pytest.raises(Exception, match="max_connections"),
            registry.get("events").connection(timeout=0.2),
        ):
            pytest.fail("there was room for two connections")
        text = generate_latest(metrics).decode()
    assert "# TYPE pgmonkey_pool_wait_seconds summary" in text
    assert "# TYPE pgmonkey_reload_duration_seconds summary" in text
    assert "_seconds_bucket" not in text


def test_without_the_options_everything_is_served(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """All databases, no limit, histograms; an empty variable is as good as none."""
    registry_dir.declare("orders", database)
    empty = dict.fromkeys(
        ("PGMONKEY_NAMES", "PGMONKEY_MAX_CONNECTIONS", "PGMONKEY_NO_HISTOGRAMS"), ""
    )
    metrics = prometheus_client.CollectorRegistry()
    with opened(canary, registry_dir, **empty)(metrics) as registry:
        assert list(registry.names) == ["orders"]
        with registry.get("orders"):
            pass
        assert "pgmonkey_pool_wait_seconds_bucket" in generate_latest(metrics).decode()


@pytest.mark.parametrize(
    "words",
    [
        ["--probe-interval", "0"],
        ["--probe-interval", "soon"],
        ["--probe-interval", "nan"],
        ["--probe-interval", "inf"],
        ["--probe-interval", "5m"],
        ["--grace", "-1s"],
        ["--max-connections", "0"],
        ["--names", " ,"],
    ],
    ids=" ".join,
)
def test_a_value_that_cannot_work_is_wrong_usage(words: list[str], canary: Canary) -> None:
    """It is named with its option, and the code is 2."""
    done = invoke("serve", "--listen", "127.0.0.1:0", *words, canary=canary)
    assert done.code == 2
    assert words[0] in done.err


def test_a_name_that_no_file_declares_is_a_problem(
    registry_dir: RegistryDirectory, orders: TemporaryDatabase, canary: Canary
) -> None:
    """A misspelt name ends the service at its start, with the nearest one that there is."""
    opens = opened(canary, registry_dir, "--names", "ordesr")
    with pytest.raises(
        RegistryConfigError, match='no file declares the database "ordesr"'
    ) as caught:
        opens(prometheus_client.CollectorRegistry())
    assert [one.hint for one in caught.value.problems] == ['did you mean "orders"?']


def test_an_outage_is_seen_as_soon_as_is_asked_for(
    serve: Serve, registry_dir: RegistryDirectory, database: TemporaryDatabase, proxy: ChaosProxy
) -> None:
    """With an interval of 0.2 s in the environment the next probe is no quarter of a minute away."""
    registry_dir.declare("orders", database, connection={"port": proxy.port})
    service = serve(PGMONKEY_PROBE_INTERVAL="0.2")
    eventually(lambda: service.sample("pgmonkey_up") == 1.0, 20)
    proxy.set("refuse")
    eventually(lambda: service.sample("pgmonkey_up") == 0.0, 10)


def test_help_names_the_variables(canary: Canary) -> None:
    """The help of the command says which variable does the same as an option."""
    text = " ".join(invoke("serve", "--help", canary=canary).out.split())
    for variable in ("NAMES", "PROBE_INTERVAL", "MAX_CONNECTIONS", "NO_HISTOGRAMS"):
        assert f"[env var: PGMONKEY_{variable}" in text
