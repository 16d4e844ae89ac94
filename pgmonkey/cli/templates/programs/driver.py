"""Ask a database for its version, with psycopg alone; pgmonkey reads the file."""

from typing import Any, Final

import psycopg

from pgmonkey import load_config

CONFIG: Final = "config.yaml"
RESOLVE_ENV: Final = False
ALLOW_SENSITIVE_DEFAULTS: Final = False


def apply_session_settings(conn: psycopg.Connection[Any], settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        text = ", ".join(value) if isinstance(value, list) else str(value)
        conn.execute("SELECT set_config(%s, %s, false)", [name, text])
    conn.commit()  # a rollback would undo them


def main() -> None:
    config = load_config(
        CONFIG, resolve_env=RESOLVE_ENV, allow_sensitive_defaults=ALLOW_SENSITIVE_DEFAULTS
    )
    with psycopg.connect(**config["connection_settings"]) as conn:
        apply_session_settings(conn, config.get("sync_settings") or {})
        print(conn.execute("SELECT version()").fetchone())


if __name__ == "__main__":
    main()
