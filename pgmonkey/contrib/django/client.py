"""`manage.py dbshell`: psql, with what the registry says of a database."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import client

from pgmonkey.config.overrides import Overrides
from pgmonkey.contrib.django import config_of
from pgmonkey.errors import PgmonkeyError
from pgmonkey.pool.psql import Login, psql_login


class DatabaseClient(client.DatabaseClient):
    """Run psql as `pgmonkey psql` does, with the password in no argument and no variable."""

    def runshell(self, parameters: Iterable[str]) -> None:
        """Run psql to its end; Ctrl-C is for psql.

        Raises:
            ImproperlyConfigured: the registry cannot tell what psql connects with.
        """
        settings = self.connection.settings_dict
        config = config_of(settings["REGISTRY_NAME"])
        if settings["NAME"] != settings["REGISTRY_NAME"]:  # a test database
            config = config.overridden(Overrides.taken_from({"dbname": settings["NAME"]}))
        try:
            with psql_login(config, "pool") as login:
                if login.note:
                    sys.stderr.write(f"{login.note}\n")
                self._run([self.executable_name, *parameters], login)
        except PgmonkeyError as error:
            raise ImproperlyConfigured(str(error)) from error

    @staticmethod
    def _run(arguments: list[str], login: Login) -> None:
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            subprocess.run(arguments, env=login.environment, pass_fds=login.descriptors, check=True)
        finally:
            signal.signal(signal.SIGINT, handler)
