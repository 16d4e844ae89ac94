"""Test databases of Django: on the server of the declared database, made and dropped by its user."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import creation


class DatabaseCreation(creation.DatabaseCreation):
    """Create, clone and drop test databases, and never the declared one."""

    connection: Any

    def test_db_signature(self) -> tuple[Any, ...]:
        """Return what tells test databases apart: the server that the registry names, and the name."""
        host, port, engine, name = super().test_db_signature()
        return self.connection.config().server, host, port, engine, name

    def _get_test_db_name(self) -> str:
        """Return the name of the test database.

        Raises:
            ImproperlyConfigured: tests would empty and drop the declared database.
        """
        name: str = super()._get_test_db_name()  # type: ignore[misc]  # the stubs lack it
        declared = self.connection.config().connection_settings.get("dbname")
        if name in (declared, self.connection.registry_name):
            alias = self.connection.alias
            raise ImproperlyConfigured(
                f'The test database of the alias "{alias}" would be the database that the registry'
                f' declares as "{self.connection.registry_name}". Write another name into'
                f' DATABASES["{alias}"]["TEST"]["NAME"].'
            )
        return name
