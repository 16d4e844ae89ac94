"""OpenTelemetry's instrumentation of psycopg, on connections of every kind that pgmonkey makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.canary import Canary
from tests.kit.database import TemporaryDatabase
from tests.kit.registry_dir import RegistryDirectory
from tests.recipes.recipe import recipe, run

BEFORE = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""
AFTER = """
import asyncio
import json

import django
from django.conf import settings
from sqlalchemy import text

from pgmonkey.contrib.sqlalchemy import create_engine

async def main():
    async with registry.get("orders", "async_pool") as conn:
        await conn.execute("SELECT 'async'")
    await registry.get("orders", "async_pool").close()

asyncio.run(main())
with registry.connect("orders") as conn:
    conn.execute("SELECT 'outside'")
with registry.get("orders") as conn:
    conn.execute("LISTEN news")
with registry.get("orders") as conn:
    (listens,) = conn.execute("SELECT count(*) FROM pg_listening_channels()").fetchone()
engine = create_engine(registry["orders"])
with engine.connect() as conn:
    conn.execute(text("SELECT 'SQLAlchemy'"))
engine.dispose()

settings.configure(
    DATABASES={"default": {"ENGINE": "pgmonkey.contrib.django", "NAME": "orders"}},
    PGMONKEY={"REGISTRY": registry},
)
django.setup()
from django.db import connection
for _ in range(2):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'Django', %s", ["tea"])
    connection.close()
registry.close()
spans = [dict(span.attributes) for span in exporter.get_finished_spans()]
print(json.dumps({"listens": listens, "spans": spans}))
"""


@pytest.mark.slow
def test_each_statement_is_a_span(
    tmp_path: Path, registry_dir: RegistryDirectory, database: TemporaryDatabase, canary: Canary
) -> None:
    """Plain blocks and engines make spans without secrets, and blocks still get clean connections."""
    registry_dir.declare("orders", database, pool_settings={"min_size": 0, "max_size": 2})
    program = recipe("opentelemetry", "Traces").replace("registry.d", str(registry_dir))

    ended = run(BEFORE + program + AFTER, tmp_path, arguments=("-X", "dev"))

    assert ended.code == 0, ended.errors
    canary.check("\n".join([*ended.output, ended.errors]))
    said: dict[str, Any] = json.loads(ended.output[-1])
    statements = [span["db.statement"] for span in said["spans"]]
    for expected in ("SELECT %s", "SELECT 'async'", "SELECT 'outside'", "SELECT 'SQLAlchemy'"):
        assert statements.count(expected) == 1, statements
    assert statements.count("SELECT 'Django', %s") == 2
    assert said["listens"] == 0
    assert "tea" not in ended.output[-1]
    assert {span["db.name"] for span in said["spans"]} == {database.name}
