"""The files for Prometheus and Grafana, as far as their own tools judge them without a server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from pgmonkey.contrib import pytest as fixtures
from pgmonkey.telemetry.metrics import TABLE
from tests.kit.prometheus import promtool

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "docker" / "prometheus"
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "pgmonkey.rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
TESTS = yaml.safe_load((PROMETHEUS / "pgmonkey.test.yml").read_text())["tests"]


@pytest.mark.prometheus
def test_promtool_accepts_configuration_and_rules() -> None:
    """The scrape configuration and the rules that it names are valid."""
    promtool("check", "config", "prometheus.yml", cwd=PROMETHEUS)
    promtool("check", "rules", "--lint=all", "--lint-fatal", "pgmonkey.rules.yml", cwd=PROMETHEUS)


@pytest.mark.prometheus
def test_alerts_fire_when_they_should_and_only_then() -> None:
    """The unit tests of the rules hold."""
    promtool("test", "rules", "pgmonkey.test.yml", cwd=PROMETHEUS)


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES])
def test_every_alert_is_tested_both_ways(alert: str) -> None:
    """There is a moment at which each alert fires, and one at which it does not."""
    outcomes = {
        bool(check.get("exp_alerts"))
        for test in TESTS
        for check in test["alert_rule_test"]
        if check["alertname"] == alert
    }
    assert outcomes == {True, False}


def test_the_page_describes_every_alert_and_no_other() -> None:
    """Each alert has a section with its meaning and what to do; the severity is the rule's."""
    page = (ROOT / "docs" / "alerts.md").read_text()
    described = dict(re.findall(r"^## (Pgmonkey\w+)\n\n(\w+)\.", page, re.MULTILINE))
    assert described == {rule["alert"]: rule["labels"]["severity"].title() for rule in RULES}


def test_only_metrics_that_exist_are_used() -> None:
    """Rules and dashboard name metrics of the documentation, with the suffixes of their kind."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    known = set()
    for name, kind in re.findall(r"^\| `(pgmonkey_\w+)` \| (\w+) \|", page, re.MULTILINE):
        suffixes = ("_sum", "_count", "_bucket") if kind in ("summary", "histogram") else ("",)
        known |= {f"{name}{suffix}" for suffix in suffixes}
    dashboard = (ROOT / "docker" / "grafana" / "dashboards" / "pgmonkey.json").read_text()
    used = set(re.findall(r"\bpgmonkey_\w+", json.dumps(RULES) + dashboard))
    assert used <= known
    # Everything that is exported is on the dashboard, too.
    bases = {re.sub(r"_(sum|count|bucket)$", "", name) for name in known}
    shown = {
        re.sub(r"_(sum|count|bucket)$", "", name)
        for name in re.findall(r"\bpgmonkey_\w+", dashboard)
    }
    assert bases - shown <= {"pgmonkey_pool_connections_min"}


def test_no_page_names_a_metric_that_does_not_exist() -> None:
    """Each metric of pgmonkey in the documentation is one of the table; fixtures of pytest are none."""
    known = {row.name for _, rows in TABLE for row in rows}
    known.update(name for name in dir(fixtures) if name.startswith("pgmonkey_"))
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "pgmonkey/demo/run.py"]
    for page in pages:
        for name in re.findall(r"\bpgmonkey_[a-z_]+[a-z]\b", page.read_text()):
            base = re.sub(r"_(sum|count|bucket)$", "", name)
            assert base in known or base.startswith("pgmonkey_demo_"), (page.name, name)


def test_the_dashboard_fits_together() -> None:
    """Panels have their own numbers and places, a title, a description, and the data source of the page."""
    dashboard = json.loads(
        (ROOT / "docker" / "grafana" / "dashboards" / "pgmonkey.json").read_text()
    )
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, f"{panel['title']} lies over another panel"
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["datasource"]["uid"] == "${datasource}"
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval", "__all"}
    assert used == variables
