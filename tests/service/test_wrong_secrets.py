"""A wrong secret, as those see it who watch the service: its metrics and its alerts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.kit import RegistryDirectory, TemporaryDatabase, eventually
from tests.kit.prometheus import promtool
from tests.kit.secret_volume import SecretVolume
from tests.service.serving import Serve, Serving

RULES = Path(__file__).parents[2] / "docker" / "prometheus" / "pgmonkey.rules.yml"


@pytest.mark.prometheus
def test_the_alerts_fire_for_a_wrong_secret(
    serve: Serve,
    registry_dir: RegistryDirectory,
    database: TemporaryDatabase,
    volume: SecretVolume,
    tmp_path: Path,
) -> None:
    """What a service without a pool exports then is what our rules look for, and not before."""
    registry_dir.declare("orders", database, volume=volume)
    service = serve()
    eventually(lambda: service.sample("pgmonkey_up") == 1, 20)
    before = samples(service)
    volume.write({"username": database.user, "password": "wrong"})
    eventually(lambda: service.sample("pgmonkey_config_stale") == 1)
    expect_alerts(before, (), tmp_path)
    expect_alerts(
        samples(service),
        ("PgmonkeyConfigStale", "PgmonkeyReloadRejected", "PgmonkeySecretNotInForce"),
        tmp_path,
    )


def samples(service: Serving) -> dict[str, float]:
    """Return the values of one scrape by series, with the labels of a target."""
    series = {}
    for family in text_string_to_metric_families(service.get("/metrics").text):
        for sample in family.samples:
            labels = sample.labels | {"job": "pgmonkey", "instance": "a:9749"}
            pairs = ", ".join(f'{key}="{value}"' for key, value in labels.items())
            series[f"{sample.name}{{{pairs}}}"] = sample.value
    return series


def expect_alerts(series: Mapping[str, float], alerts: Iterable[str], directory: Path) -> None:
    """Let promtool judge which alerts fire if a target says the same for a quarter of an hour."""
    test = {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": f"{value!r}x15"}
            for name, value in series.items()
            if name.startswith("pgmonkey_")
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "15m",
                "exp_samples": [
                    {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts
                ],
            }
        ],
    }
    path = directory / "test.yml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]})
    )
    promtool("test", "rules", path)
