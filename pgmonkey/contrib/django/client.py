"""`manage.py dbshell`: psql, with what the registry says of a database."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import client

from pgmonkey.config.libpq import isolation, keywords, libpq_variables
from pgmonkey.config.redaction import Secret
from pgmonkey.contrib.django import config_of
from pgmonkey.pool.credentials import obtained
from pgmonkey.pool.failures import ConnectFailure


class DatabaseClient(client.DatabaseClient):
    """Run psql. The password goes through a file that only this user can read, and that is removed."""

    @classmethod
    def settings_to_cmd_args_env(
        cls, settings_dict: dict[str, Any], parameters: Iterable[str]
    ) -> tuple[list[str], dict[str, str]]:
        """Return the command and its environment, without the password."""
        settings, _ = _login(settings_dict)
        name = settings_dict["NAME"]
        if name != settings_dict["REGISTRY_NAME"]:  # a test database
            settings["dbname"] = name
        env = {
            variable: str(value)
            for key, value in settings.items()
            if (known := keywords().get(key)) and (variable := known.variable)
        }
        return [cls.executable_name, *parameters], env

    def runshell(self, parameters: Iterable[str]) -> None:
        """Run psql to its end; Ctrl-C is for psql, and libpq's variables of this process are not."""
        args, env = self.settings_to_cmd_args_env(self.connection.settings_dict, parameters)
        _, password = _login(self.connection.settings_dict)
        outside = libpq_variables(os.environ)
        inherited = {name: value for name, value in os.environ.items() if name not in outside}
        handler = signal.getsignal(signal.SIGINT)
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            with _password_file(password) as passfile:
                subprocess.run(args, env=inherited | env | passfile, check=True)
        finally:
            signal.signal(signal.SIGINT, handler)


def _login(settings: dict[str, Any]) -> tuple[dict[str, Any], Secret | None]:
    """Return what psql connects with, and the password, which is not in it.

    Raises:
        ImproperlyConfigured: the registry cannot tell.
    """
    config = config_of(settings["REGISTRY_NAME"])
    kwargs = config.connect_kwargs("pool")
    written = kwargs.pop("password", None)
    password = Secret(written) if written else None
    del written
    # What only keeps the environment out is not for psql: its libpq may be older, and not know it.
    found = {
        key: value
        for key, value in kwargs.items()
        if key == "passfile" or value != isolation().get(key)
    }
    if config.on_demand is not None:
        given = obtained(config)
        if isinstance(given, ConnectFailure):
            raise ImproperlyConfigured(str(given.error(config.name)))
        password = given.password
        if given.user is not None:
            found["user"] = given.user
    return found, password


@contextmanager
def _password_file(password: Secret | None) -> Iterator[dict[str, str]]:
    """Yield the variable that names a file with the password, as libpq reads it; none if not needed."""
    if password is None:
        yield {}
        return
    with tempfile.NamedTemporaryFile("w", prefix="pgmonkey-", encoding="utf-8") as file:
        file.write(f"*:*:*:*:{_escaped(password)}\n")
        file.flush()
        yield {"PGPASSFILE": file.name}


def _escaped(password: Secret) -> str:
    return password.reveal().replace("\\", "\\\\").replace(":", "\\:")
