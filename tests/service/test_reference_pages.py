"""The pages of events and metrics say what the code does, no less and no more."""

from __future__ import annotations

import re
from pathlib import Path

import prometheus_client

from pgmonkey import Registry
from pgmonkey.telemetry.events import CATALOGUE
from tests.kit import RegistryDirectory, TemporaryDatabase

DOCS = Path(__file__).parents[2] / "docs"


def rows(page: str) -> dict[str, list[str]]:
    """Return the rows of a page's tables whose first cell is code, by that."""
    found = {}
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `"):
            found[cells[0].strip("`")] = cells[1:]
    return found


def test_every_event_is_on_the_page() -> None:
    """The table of events has those of the catalogue, each with its level."""
    table = {name: cells[0] for name, cells in rows("events.md").items()}
    assert table == {name: level for name, (level, _) in CATALOGUE.items()}


def test_every_metric_is_on_the_page(
    registry_dir: RegistryDirectory, database: TemporaryDatabase
) -> None:
    """The tables of metrics have those that a used and probed registry exports, by kind."""
    registry_dir.declare("orders", database)
    metrics = prometheus_client.CollectorRegistry()
    with Registry(registry_dir, metrics=metrics) as registry:
        registry.probe("orders")
        with registry.get("orders") as conn:
            conn.execute("SELECT 1")
        exported = {
            family.name + ("_total" if family.type == "counter" else ""): family.type
            for family in metrics.collect()
        }
    table = {name: cells[0] for name, cells in rows("metrics.md").items()}
    assert table == exported


def test_the_default_of_every_key_is_on_the_page() -> None:
    """The page of the configuration has every key that a file may have, outside libpq's."""
    from pgmonkey.config.models import hints_of

    page = rows("configuration.md")
    expected = {
        *hints_of(()), *hints_of(("pool_settings",)), "autocommit", "prepare_threshold",
    }  # fmt: skip
    assert expected <= page.keys()


def test_the_service_page_has_every_option() -> None:
    """The table of the service's options has those that the command has."""
    from pgmonkey.cli.serve import command

    options = {
        option
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    page = {re.match(r"\S+", name)[0] for name in rows("service.md")}  # type: ignore[index]  # every row has a name
    assert options <= page
