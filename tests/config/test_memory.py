"""What a declared database costs while it is not used."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from pgmonkey.config.directory import DirectoryLoader

TEXT = """\
connection_type: pool
description: order intake of shop {n}
connection_settings:
  host: db-{n}.example
  port: 5432
  dbname: orders{n}
  user: app{n}
  password: tea-{n}
  sslmode: prefer
  application_name: shop{n}
  connect_timeout: 10
  keepalives: 1
pool_settings:
  min_size: 2
  max_size: 10
  timeout: 5
  max_waiting: 50
  check_on_checkout: true
sync_settings:
  statement_timeout: 30s
required: true
drain_timeout: 60s
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A directory of 300 files of 22 lines."""
    directory = tmp_path_factory.mktemp("registry.d")
    for n in range(300):
        (directory / f"db{n}.yaml").write_text(TEXT.format(n=n))
    DirectoryLoader(directory).scan().raise_for_problems()  # imports, caches
    return directory


def test_a_declared_database_is_small(many):
    """What loader and config keep of one file: well under the 8 KiB of a declared database."""
    DirectoryLoader(many).scan()
    tracemalloc.start()
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    loader = DirectoryLoader(many)
    scan = loader.scan()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / len(scan.configs) < 4096
