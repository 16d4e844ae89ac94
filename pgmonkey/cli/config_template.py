"""The template of a config file: what `pgmonkey pgconfig create` writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

TEMPLATE: Final = """\
# One PostgreSQL database. Try it: pgmonkey pgconfig test --connconfig FILE
connection_type: normal          # normal, pool, async or async_pool
connection_settings:             # every parameter of libpq
  host: localhost
  port: 5432
  dbname: mydatabase
  user: postgres
  # Better than here: password: ${PGPASSWORD}, or a file of its own as below; both with --resolve-env.
  #   password:
  #     from_file: /run/secrets/mydatabase/password
  password: change-me
  sslmode: prefer                # verify-full, with sslrootcert, is the safe one
  connect_timeout: 10
  application_name: myapp
  keepalives: 1
  keepalives_idle: 60
  keepalives_interval: 15
  keepalives_count: 5
pool_settings:                   # for pool
  min_size: 2
  max_size: 10
  timeout: 30s                   # how long a checkout may wait
  max_idle: 5min
  max_lifetime: 1h
  check_on_checkout: false
async_pool_settings:             # for async_pool
  min_size: 2
  max_size: 10
  timeout: 30s
  max_idle: 5min
  max_lifetime: 1h
  check_on_checkout: false
sync_settings:                   # session settings for normal and pool
  statement_timeout: 30s
async_settings:                  # session settings for async and async_pool
  statement_timeout: 30s
  idle_in_transaction_session_timeout: 5s
"""


def create_config(path: Path) -> None:
    """Write a new config file that only its owner can read; make its directory if need be.

    Args:
        path: Where to.

    Raises:
        FileExistsError: There is something already; it is left as it is.
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except OSError:
        path.unlink(missing_ok=True)  # a full disk leaves no half of a file
        raise
