"""A real Prometheus server and promtool, from the distribution's package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.kit.components import need
from tests.kit.ports import free_port
from tests.kit.process import Process


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
