"""The state of a database is the same on every surface."""

from __future__ import annotations

import re

from tests.kit import Canary, ChaosProxy, RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.command import run
from tests.service.serving import Serve


def test_every_surface_shows_the_same_state(
    serve: Serve,
    registry_dir: RegistryDirectory,
    orders: TemporaryDatabase,
    proxy: ChaosProxy,
    canary: Canary,
) -> None:
    """A database that cannot be reached is `down` on page, API, /readyz, metrics and command line."""
    registry_dir.declare("ledger", orders, connection={"port": proxy.port}, required=False)
    proxy.set("refuse")
    service = serve()

    def shown() -> dict[str, set[str]]:
        table = run("status", "--url", service.url, canary=canary).out.splitlines()[1:]
        page = service.get("/").text
        series = re.compile(r'pgmonkey_database_state\{database="(\w+)",state="(\w+)"\} 1\.0')
        return {
            "page": {
                f"{name} {state}"
                for name, state in re.findall(r'data-name="(\w+)" data-state="(\w+)"', page)
            },
            "api": {
                f"{one['name']} {one['state']}"
                for one in service.get("/api/v1/databases").json["databases"]
            },
            "readyz": {
                f"{name} {one['state']}"
                for name, one in service.get("/readyz").json["databases"].items()
            },
            "metrics": {" ".join(found) for found in series.findall(service.get("/metrics").text)},
            "command line": {" ".join(line.split()[:2]) for line in table},
        }

    expected = {"ledger down", "orders idle"}
    surfaces = ("page", "api", "readyz", "metrics", "command line")
    eventually(lambda: shown() == dict.fromkeys(surfaces, expected), 20)
