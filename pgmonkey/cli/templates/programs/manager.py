"""Ask a database for its version, with the API of pgmonkey 4.0."""

from typing import Final

from pgmonkey import PGConnectionManager

CONFIG: Final = "config.yaml"
CONNECTION_TYPE: Final = "pool"
RESOLVE_ENV: Final = False
ALLOW_SENSITIVE_DEFAULTS: Final = False


def main() -> None:
    manager = PGConnectionManager()
    database = manager.get_database_connection(
        CONFIG,
        CONNECTION_TYPE,
        resolve_env=RESOLVE_ENV,
        allow_sensitive_defaults=ALLOW_SENSITIVE_DEFAULTS,
    )
    # A block borrows a connection; commits when it succeeds, rolls back when it raises.
    with database as conn, conn.cursor() as cur:
        cur.execute("SELECT version()")
        print(cur.fetchone())


if __name__ == "__main__":
    main()
