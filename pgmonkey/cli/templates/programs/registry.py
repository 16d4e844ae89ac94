"""Ask a database for its version, through a registry."""

from typing import Final

from pgmonkey import Registry

REGISTRY: Final = "registry.d"  # a directory of files, one for each database
DATABASE: Final = "orders"  # the name of its file, without .yaml
CONNECTION_TYPE: Final = "pool"
ALLOW_SENSITIVE_DEFAULTS: Final = False


def main() -> None:
    # One registry serves a whole application. It follows its files: handles stay valid.
    registry = Registry(
        REGISTRY, names=[DATABASE], allow_sensitive_defaults=ALLOW_SENSITIVE_DEFAULTS
    )
    with registry:
        database = registry.get(DATABASE, CONNECTION_TYPE)
        # A block borrows a connection; commits when it succeeds, rolls back when it raises.
        with database as conn:
            print(conn.execute("SELECT version()").fetchone())


if __name__ == "__main__":
    main()
