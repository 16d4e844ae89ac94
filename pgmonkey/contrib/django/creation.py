"""Test databases of Django: on the server of the declared database, made and dropped by its user.

While there is one, the registry leads to it as well, so that code which asks the registry for a
connection gets to the data of the test.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import creation

from pgmonkey.contrib.django import get_registry

#: Ends that the registry leads to a test database, by the name in the registry.
_led: Final[dict[str, ExitStack]] = {}


class DatabaseCreation(creation.DatabaseCreation):
    """Create, clone and drop test databases, and never the declared one."""

    connection: Any

    def create_test_db(self, *args: Any, **kwargs: Any) -> str:
        """Create the test database, beside the one that the file declares."""
        _lead_back(self.connection.registry_name)
        return super().create_test_db(*args, **kwargs)

    def _create_test_db(self, *args: Any, **kwargs: Any) -> str:
        """Create the test database; from now on the registry leads to it, in migrations, too."""
        name: str = super()._create_test_db(*args, **kwargs)  # type: ignore[misc]  # the stubs lack it
        self._lead_to(name)
        return name

    def _clone_test_db(self, *args: Any, **kwargs: Any) -> None:
        """Clone the test database, which no one may be connected to."""
        _lead_back(self.connection.registry_name)
        super()._clone_test_db(*args, **kwargs)  # type: ignore[misc]  # the stubs lack it
        self._lead_to(self.connection.settings_dict["NAME"])

    def setup_worker_connection(self, _worker_id: int) -> None:
        """Use a clone in a process of the parallel runner."""
        super().setup_worker_connection(_worker_id)
        self._lead_to(self.connection.settings_dict["NAME"])

    def set_as_test_mirror(self, primary_settings_dict: dict[str, Any]) -> None:
        """Use the test database of another alias."""
        super().set_as_test_mirror(primary_settings_dict)
        self._lead_to(self.connection.settings_dict["NAME"])

    def destroy_test_db(self, *args: Any, **kwargs: Any) -> None:
        """Drop the test database, or keep it; the registry leads to the declared ones again."""
        for name in list(_led):  # a mirror, which is not destroyed, leads to this one, too
            _lead_back(name)
        super().destroy_test_db(*args, **kwargs)

    def _lead_to(self, dbname: str) -> None:
        """Let the registry lead to a test database, in the place of another one."""
        name = self.connection.registry_name
        _lead_back(name)
        stack = _led[name] = ExitStack()
        stack.enter_context(get_registry().override(name, dbname=dbname))

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


def _lead_back(name: str) -> None:
    _led.pop(name, ExitStack()).close()
