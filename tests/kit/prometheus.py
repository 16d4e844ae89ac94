"""A real Prometheus server and promtool, from the distribution's package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.kit.components import need
from tests.kit.ports import free_port
from tests.kit.process import Process

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "pgmonkey.json").read_text())


def promtool(*arguments: str | os.PathLike[str], stdin: str = "", cwd: Path | None = None) -> str:
    """Run promtool and return its output.

    Raises:
        AssertionError: It found something.
    """
    program = need(shutil.which("promtool"), "promtool (.ci/install-servers)")
    done = subprocess.run(
        [program, *arguments],
        input=stdin,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def check_metrics(exposition: str) -> None:
    """Let promtool judge the output of a scrape, in Prometheus' text format."""
    said = promtool("check", "metrics", stdin=exposition)
    assert not said, said


def configuration(
    directory: Path, ports: Sequence[int], *, minute: str = "1m", at_once: bool = False
) -> Path:
    """Write our own configuration of Prometheus, for other targets, and return its path.

    Args:
        directory: Where to write it.
        ports: Of the targets on 127.0.0.1.
        minute: How long a minute of the rules is. It is scraped once a second, and once in each
            minute that is shorter than a second.
        at_once: Let an alert fire as soon as its condition holds, however long it has to last:
            on a busy machine a gap between two scrapes begins that time again. The tests of the
            rules by promtool have it.
    """
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    interval = minute if minute.endswith("ms") else "1s"
    config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    for name in config["rule_files"]:
        rules = (DOCKER / "prometheus" / name).read_text()
        if at_once:
            rules = re.sub(r"\n +for: .*", "", rules)
        (directory / name).write_text(re.sub(r"\b(\d+)m\b", partial(_scaled, minute), rules))
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def _scaled(minute: str, minutes: re.Match[str]) -> str:
    number, unit = re.split(r"(?<=\d)(?=\D)", minute)
    return f"{int(minutes[1]) * int(number)}{unit}"


class Prometheus(Process):
    """A Prometheus that scrapes, in a process and a directory of its own, on a port of 127.0.0.1.

    Args:
        directory: Where its data go.
        config: Its configuration file.
    """

    def __init__(self, directory: Path, config: Path) -> None:
        program = need(shutil.which("prometheus"), "prometheus (.ci/install-servers)")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        super().__init__(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            cwd=directory,
        )

    def __enter__(self) -> Self:
        self.wait_until(self._ready, 30, "Prometheus is ready")
        return self

    def _ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def api(self, path: str, **parameters: str | float) -> Any:
        """Ask its API and return the `data` of the answer.

        Raises:
            AssertionError: It refuses.
        """
        try:
            with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=20) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def query(
        self, expression: str, at: float | None = None
    ) -> dict[tuple[tuple[str, str], ...], float]:
        """Evaluate an expression at one moment; the values by their labels, without the name.

        Args:
            expression: PromQL.
            at: Unix time; default: now.
        """
        data = self.api("query", query=expression, time=time.time() if at is None else at)
        if data["resultType"] == "scalar":
            return {(): float(data["result"][1])}
        return {
            tuple(sorted((k, v) for k, v in row["metric"].items() if k != "__name__")): float(
                row["value"][1]
            )
            for row in data["result"]
        }

    def firing(self) -> set[str]:
        """Return the alerts that fire now."""
        return {
            one["labels"]["alertname"]
            for one in self.api("alerts")["alerts"]
            if one["state"] == "firing"
        }

    def check_rules(self) -> None:
        """Fail unless every rule could be evaluated on what was scraped."""
        (group,) = self.api("rules")["groups"]
        assert {rule["health"] for rule in group["rules"]} == {"ok"}, group

    def check_dashboard(self, began: float) -> None:
        """Fail unless each query of the dashboard has data since then.

        Args:
            began: Unix time.
        """
        now = time.time()
        queries = [
            (panel["title"], target["expr"])
            for panel in DASHBOARD["panels"]
            for target in panel.get("targets", ())
        ]
        queries += [(one["name"], one["expr"]) for one in DASHBOARD["annotations"]["list"]]
        assert len(queries) > 25
        for title, expression in queries:
            for variable, text in (
                ("$__rate_interval", "5s"),
                ("$job", ".*"),
                ("$instance", ".*"),
                ("$database", ".*"),
            ):
                expression = expression.replace(variable, text)  # noqa: PLW2901 - step by step
            assert "$" not in expression, expression
            data = self.api("query_range", query=expression, start=began, end=now, step=1)
            numbers = [float(value) for series in data["result"] for _, value in series["values"]]
            assert any(number == number for number in numbers), f"{title}: no data for {expression}"  # noqa: PLR0124 - NaN is none
        for variable in DASHBOARD["templating"]["list"]:
            if variable["type"] == "query":
                query = variable["definition"].removeprefix("label_values(").removesuffix(")")
                selector, _, label = query.rpartition(", ")
                selector = selector.replace("$job", ".*").replace("$instance", ".*")
                assert self.query(f"count by ({label}) ({selector})"), variable["name"]

    def scrapes(self, number: int) -> None:
        """Wait until that many scrapes that began from now on have been kept.

        Args:
            number: How many.
        """
        # One scrape may be under way, with numbers of before.
        wanted = self._kept() + number + 1
        self.wait_until(lambda: self._kept() >= wanted, 60, f"{number} scrapes")

    def _kept(self) -> float:
        return self.value("sum(count_over_time(up[1h]))") or 0.0

    def value(self, expression: str, at: float | None = None) -> float | None:
        """Return the only value of an expression, or `None` if there is none."""
        values: Iterable[float] = self.query(expression, at).values()
        found = list(values)
        assert len(found) <= 1, (expression, found)
        return found[0] if found else None
