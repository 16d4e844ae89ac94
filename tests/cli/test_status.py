"""`pgmonkey status` and `pgmonkey reload`: a running service, asked from the command line."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgmonkey.errors import Problem
from tests.cli.stand_in import stand_in
from tests.kit import Canary, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.command import Running, invoke
from tests.kit.ports import free_port
from tests.service.serving import Serving


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """The file of the token."""
    path = tmp_path / "token"
    path.write_text("the token of the operators\n")
    return path


@pytest.fixture
def service(
    registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary, token_file: Path
) -> Iterator[Serving]:
    """A service with one database that is there."""
    registry_dir.declare("orders", database)
    with Serving(
        "serve", registry_dir, "--listen", "127.0.0.1:0", "--grace", "0",
        "--reload-token-file", token_file, canary=canary,
    ) as service:  # fmt: skip
        assert service.get("/healthz").status == 200
        yield service


def test_a_table_of_the_databases(
    service: Serving, registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """One row for each database, with what is wrong; in JSON what the service says."""
    registry_dir.declare("orders", database, pool_settings={"max_sise": 3})
    eventually(lambda: service.sample("pgmonkey_config_stale") == 1.0)
    done = invoke("status", "--url", service.url, canary=canary)
    assert (done.code, done.err) == (0, "")
    title, row = done.out.splitlines()
    assert title.split("  ")[0] == "NAME"
    assert re.fullmatch(
        r"orders +stale +pool +- +- +1 +rejected \d+ m?s ago +\S+/orders\.yaml:\d+: unknown key.*",
        row,
    )
    as_json = invoke("status", "-o", "json", canary=canary, env={"PGMONKEY_URL": service.url})
    assert json.loads(as_json.out)["databases"][0]["state"] == "stale"


def test_watching_goes_on_without_the_service(service: Serving, canary: Canary) -> None:
    """--watch prints the table again, reports a lost service, and ends with 130 at Ctrl-C."""
    with Running("status", "--url", service.url, "--watch", canary=canary) as watching:
        watching.wait_for(r"(?s)NAME.*NAME")
        service.send(signal.SIGTERM)
        assert service.code() == 0
        watching.wait_for("no service at")
        watching.send(signal.SIGINT)
        assert watching.code() == 130
        assert watching.text.endswith("interrupted\n")


def test_a_service_that_is_not_there(canary: Canary) -> None:
    """Exit code 5 and a line that names the address, for both commands; a bad address is usage."""
    url = f"http://127.0.0.1:{free_port()}"
    for command in ("status", "reload"):
        done = invoke(command, "--url", url, canary=canary)
        assert (done.code, done.err) == (5, f"no service at {url}: Connection refused\n")
    for wrong in ("127.0.0.1:9749", "ftp://x", "http://x:99999", "http://user@x"):
        assert invoke("status", "--url", wrong, canary=canary).code == 2


def overview(path: str) -> Any:
    """Return what a service says whose databases have the states that its path names."""
    problem = Problem("r", "registry.empty", "it is empty").as_dict()
    states = path.removesuffix("/api/v1/databases").strip("/").split("/")
    common = {"connection_type": None, "version": None, "last_reload": None, "error": None}
    return {
        "at": 0.0,
        "registry": {"problems": [problem] if "empty" in states else []},
        "databases": [
            {"name": f"a_{state}_one", "state": state, "pools": [], "problems": [], **common}
            for state in states
            if state != "empty"
        ],
    }


def test_a_script_learns_of_bad_states(canary: Canary) -> None:
    """--fail-on gives exit code 1 for a state and for those that are worse, and names the databases."""
    with stand_in(overview) as url:

        def status(states: str, *arguments: str) -> tuple[int, str]:
            done = invoke("status", "--url", f"{url}/{states}", *arguments, canary=canary)
            assert done.out.startswith(("NAME", "{"))
            return done.code, done.err

        assert status("failed/down/stale/empty") == (0, "")
        for fail_on, states in (("down", "ready/idle/stale/empty"), ("stale", "ready/idle")):
            assert status(states, "--fail-on", fail_on) == (0, "")
        down = "failed: a_failed_one\ndown: a_down_one, a_down_one\n"
        assert status("down/failed/stale/down", "--fail-on", "down") == (1, down)
        stale = status("stale/ready", "--fail-on", "stale", "-o", "json")
        assert stale == (1, "stale: a_stale_one\n")
        empty = status("ready/empty", "--fail-on", "stale")
        assert empty == (1, "r: it is empty  [registry.empty]\n")
    assert invoke("status", "--fail-on", "down", "--watch", canary=canary).code == 2
    assert invoke("status", "--fail-on", "ready", canary=canary).code == 2


def test_something_else_answers(canary: Canary) -> None:
    """An answer that is not of a service is reported with its status, and the code is 1."""
    with stand_in(lambda _: None) as url:
        done = invoke("status", "--url", f"{url}/elsewhere", canary=canary)
    assert done.code == 1
    assert done.err == f"{url}/elsewhere/api/v1/databases answered 501\n"


def test_a_reload_reports_its_result(
    service: Serving,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    canary: Canary,
    token_file: Path,
) -> None:
    """Names by outcome on standard output, problems on standard error, and 1 if there are any."""
    arguments = ("reload", "--url", service.url, "--token-file", token_file)
    assert invoke(*arguments, canary=canary).out == "unchanged: orders\n"
    registry_dir.declare("orders", database, pool_settings={"max_sise": 3})
    done = invoke(*arguments, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert 'unknown key "max_sise"' in done.err
    assert 'hint: did you mean "max_size"?' in done.err
    as_json = invoke(*arguments, "-o", "json", canary=canary)
    assert as_json.code == 1
    assert json.loads(as_json.out)["rejected"][0]["database"] == "orders"


def test_a_reload_that_is_refused(service: Serving, canary: Canary, tmp_path: Path) -> None:
    """Without a token, with a wrong one or with an unreadable file: a line, a hint, code 1."""
    done = invoke("reload", "--url", service.url, canary=canary)
    assert (done.code, done.out) == (1, "")
    assert "/-/reload answered 401: a token is needed\n  hint: " in done.err
    wrong = tmp_path / "wrong"
    wrong.write_text("no")
    done = invoke("reload", "--url", service.url, "--token-file", wrong, canary=canary)
    assert done.code == 1
    assert "the token is wrong" in done.err
    nowhere = tmp_path / "nowhere"
    done = invoke("reload", "--url", service.url, "--token-file", nowhere, canary=canary)
    assert (done.code, done.err) == (1, f"the token file {nowhere} does not exist\n")
