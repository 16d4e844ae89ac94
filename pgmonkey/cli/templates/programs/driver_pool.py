"""Ask a database for its version, with psycopg_pool alone; pgmonkey reads the file."""

from typing import Any, Final

import psycopg
from psycopg_pool import ConnectionPool

from pgmonkey import load_config

CONFIG: Final = "config.yaml"
RESOLVE_ENV: Final = False
ALLOW_SENSITIVE_DEFAULTS: Final = False


def make_pool(config: dict[str, Any]) -> ConnectionPool:
    session = config.get("sync_settings") or {}
    settings = {"min_size": 1, **(config.get("pool_settings") or {})}
    settings.setdefault("max_size", max(10, settings["min_size"]))
    check = settings.pop("check_on_checkout", config.get("check_on_checkout", False))
    kwargs = {**config["connection_settings"], **(settings.pop("kwargs", None) or {})}

    def apply_session_settings(conn: psycopg.Connection[Any]) -> None:
        for name, value in session.items():
            text = ", ".join(value) if isinstance(value, list) else str(value)
            conn.execute("SELECT set_config(%s, %s, false)", [name, text])
        conn.commit()  # a rollback would undo them

    return ConnectionPool(
        kwargs=kwargs,
        configure=apply_session_settings,
        check=ConnectionPool.check_connection if check else None,
        open=False,
        **settings,
    )


def main() -> None:
    config = load_config(
        CONFIG, resolve_env=RESOLVE_ENV, allow_sensitive_defaults=ALLOW_SENSITIVE_DEFAULTS
    )
    with make_pool(config) as pool, pool.connection(timeout=10) as conn:
        print(conn.execute("SELECT version()").fetchone())


if __name__ == "__main__":
    main()
