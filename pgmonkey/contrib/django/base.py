"""Django's engine for PostgreSQL, on connections of a registry.

Each alias has a pool of its own, whose connections are set up for Django once. A request borrows one
at its first query, which costs as much as from a pool of psycopg_pool, and gives it back when it
ends. Test databases are reached by `Registry.connect`: a connection for each thread, as in Django.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import psycopg
from django.core import checks, signals
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.postgresql import base as postgresql
from psycopg import IsolationLevel
from psycopg.rows import tuple_row

from pgmonkey.contrib.django import config_of, get_registry
from pgmonkey.contrib.django.checks import check_files, check_settings, misplaced
from pgmonkey.contrib.django.client import DatabaseClient
from pgmonkey.contrib.django.creation import DatabaseCreation
from pgmonkey.errors import PgmonkeyError
from pgmonkey.pool._sync.changes import SyncWatchedClientCursor, SyncWatchedCursor
from pgmonkey.pool._sync.connection import SyncPooledConnection
from pgmonkey.pool.handle import Database

#: What the modules are called that borrow for others.
_INSIDE: Final = ("django.", "pgmonkey.")
#: Seconds to wait for the sign of life that CONN_HEALTH_CHECKS asks for.
_LONGEST_PING: Final = 2.0
#: The handle that Django borrows from, by alias, after the one that it is a copy of.
_handles: Final[dict[str, tuple[Database, Any]]] = {}


class Cursor(postgresql.Cursor, SyncWatchedClientCursor[Any]):
    """Django's cursor, which also tells the pool of what must not be left behind."""


class ServerBindingCursor(postgresql.ServerBindingCursor, SyncWatchedCursor[Any]):
    """The one of the option `server_side_binding`."""


_CURSORS: Final = {
    postgresql.Cursor: Cursor,
    postgresql.ServerBindingCursor: ServerBindingCursor,
}


class DatabaseWrapper(postgresql.DatabaseWrapper):
    """One thread's view of a database: it borrows a connection, and gives it back.

    Args:
        settings_dict: The settings of the alias; `NAME` is the name in the registry.
        alias: The alias.
    """

    client_class = DatabaseClient
    creation_class = DatabaseCreation
    #: Django's own pool is not used.
    pool = None

    def __init__(self, settings_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        # Tests put the name of their database into NAME.
        settings_dict.setdefault("REGISTRY_NAME", settings_dict["NAME"])
        super().__init__(settings_dict, *args, **kwargs)
        # What the connection was borrowed from; `None` outside of the pool.
        self._handle: Any = None

    @property
    def registry_name(self) -> str:
        """The name of the database in the registry, also while tests use another one."""
        name: str = self.settings_dict["REGISTRY_NAME"]
        return name

    # Connecting

    def _refuse_rollback(self, handle: Any) -> None:
        """Raise if the application wants a rollback of what Django itself commits."""
        if handle.sharing is not None:
            raise ImproperlyConfigured(
                f"{self.registry_name}: override(rollback=True) does not roll back what Django does."
                " Use a TestCase of Django, or the fixture `db` of pytest-django: they do."
            )

    def get_connection_params(self) -> dict[str, Any]:
        """Return what Django wants of a connection beside what the file says."""
        if self.alias not in _handles:  # before: a password must get nowhere
            self._refuse_misplaced()
        params: dict[str, Any] = super().get_connection_params()
        factory = params["cursor_factory"]
        params["cursor_factory"] = _CURSORS.get(factory, factory)
        params["row_factory"] = tuple_row
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Borrow a connection of the registry, set up for Django."""
        level = self._wanted_level()
        connection: psycopg.Connection[Any]
        try:
            declared = conn_params["dbname"] == self.registry_name
            if declared and self.alias != NO_DB_ALIAS:
                connection = self._borrow(conn_params, level)
            else:
                if declared:
                    del conn_params["dbname"]
                connection = get_registry().connect(self.registry_name, **conn_params)
                if level is not None:
                    connection.isolation_level = level
        except psycopg.OperationalError as error:
            # Django would make its own of the first argument: without our hint.
            raise OperationalError(str(error)) from error
        except PgmonkeyError as error:
            raise ImproperlyConfigured(str(error)) from error
        self.isolation_level = connection.isolation_level or IsolationLevel.READ_COMMITTED
        return connection

    def _wanted_level(self) -> IsolationLevel | None:
        level = self.settings_dict["OPTIONS"].get("isolation_level")
        try:
            return None if level is None else IsolationLevel(level)
        except ValueError:
            raise ImproperlyConfigured(
                f"Invalid transaction isolation level {level} specified."
                " Use one of the psycopg.IsolationLevel values."
            ) from None

    def _borrow(self, wanted: dict[str, Any], level: IsolationLevel | None) -> SyncPooledConnection:
        handle = self._handle_of_alias(wanted["context"])
        self._refuse_rollback(handle)
        frame = _borrower()
        connection = _getconn(handle, frame)
        if self.settings_dict["CONN_HEALTH_CHECKS"]:
            while _is_set_up(connection, wanted) and not connection.ping(_LONGEST_PING):
                connection.close()  # which gives it back, too
                connection = _getconn(handle, frame)
        self._handle = handle
        _threads.mine.wrappers.add(self)
        if not _is_set_up(connection, wanted):
            connection.autocommit = True
            connection.cursor_factory = _derived(wanted["cursor_factory"], connection)
            connection.row_factory = wanted["row_factory"]
            connection.prepare_threshold = wanted["prepare_threshold"]
            if level is not None:
                connection.isolation_level = level
            connection.keep_settings()
        return connection

    def _handle_of_alias(self, context: Any) -> Any:
        """Return the handle that this alias borrows from. Django has threads: it is always a pool."""
        original = get_registry().get(self.registry_name, "pool")
        known = _handles.get(self.alias)
        if known is None or known[0] is not original:
            if known is not None:  # of another registry: the settings have changed
                _handles.pop(self.alias, None)
            # Of several threads, one puts its copy there; those of the others are not used.
            known = _handles.setdefault(self.alias, (original, original.with_own_pool(context)))
        return known[1]

    def _refuse_misplaced(self) -> None:
        """Raise what the system check would say: not every command runs it."""
        problems = misplaced(self.alias, self.settings_dict)
        if problems:
            raise ImproperlyConfigured("\n".join(f"{one.msg} {one.hint}" for one in problems))

    def _configure_connection(self, connection: Any) -> bool:
        """Set what the server is to know: encoding, time zone, role. Mostly it knows already."""
        changed: bool = super()._configure_connection(connection)  # type: ignore[misc]  # the stubs lack it
        if connection.info.parameter_status("client_encoding") != "UTF8":
            connection.execute("SET client_encoding TO 'UTF8'")
            changed = True
        return changed

    def _set_autocommit(self, autocommit: bool) -> None:
        # Of psycopg itself: what the pool notes, it takes back at the end of each request. Django
        # sets it whenever it connects.
        if self.connection.autocommit != autocommit:
            with self.wrap_database_errors:
                psycopg.Connection.set_autocommit(self.connection, autocommit)

    def chunked_cursor(self) -> Any:
        """Return a cursor of the server for large results, or an ordinary one behind a pooler."""
        if self.config().pooler != "none":  # its transactions may be on other connections
            return self.cursor()
        return super().chunked_cursor()

    def create_cursor(self, name: str | None = None) -> Any:
        """Return a cursor. Each query has one."""
        if self._handle is not None:  # borrowed before an override began, perhaps
            self._refuse_rollback(self._handle)
        return super().create_cursor(name)

    def config(self) -> Any:
        """Return the configuration of the database that is in force.

        Raises:
            ImproperlyConfigured: there is none.
        """
        return config_of(self.registry_name)

    # Giving back

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is None:
            super()._close()  # type: ignore[misc]  # the stubs lack it
            return
        # Before: whatever happens, this thread has no part in it any more.
        connection, self.connection = self.connection, None
        _threads.mine.wrappers.discard(self)
        if connection is not None:
            with self.wrap_database_errors:
                handle.putconn(connection)

    def drop(self) -> None:
        """Let go of the connection without giving it back: the pool closes it, and reports that."""
        self._handle = self.connection = None

    def close_if_unusable_or_obsolete(self) -> None:
        """Give the connection back if it is broken, too old, or retired."""
        super().close_if_unusable_or_obsolete()
        connection, handle = self.connection, self._handle
        if (
            connection is not None
            and handle is not None
            and not self.in_atomic_block
            and (connection.closed or handle.is_retired(connection))
        ):
            self.close()

    def end_request(self) -> None:
        """Give the connection back, whatever CONN_MAX_AGE: the pool keeps it for the next request."""
        if not self.in_atomic_block:
            self.close()

    def close_pool(self) -> None:
        """Close the connections of this alias, in all threads, when they are given back."""
        _, handle = _handles.pop(self.alias, (None, None))
        if handle is not None:
            handle.close()

    @contextmanager
    def _nodb_cursor(self) -> Iterator[Any]:
        """Yield a cursor in the declared database, for creating and dropping test databases.

        Django goes to the database `postgres` for that, which a server need not open to this user.
        """
        declared = {**self.settings_dict, "NAME": self.settings_dict["REGISTRY_NAME"]}
        connection = self.__class__(declared, alias=NO_DB_ALIAS)
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()


class _Thread:
    """What one thread has borrowed, dropped when the thread ends.

    Without that it would be dropped when the garbage collector finds its wrapper, which is part of a
    circle: until then, a few threads that forgot to close could hold every connection of a pool.
    """

    def __init__(self) -> None:
        self.wrappers = weakref.WeakSet[DatabaseWrapper]()

    def __del__(self) -> None:
        for one in list(self.wrappers):
            if not one.allow_thread_sharing:
                one.drop()


class _Threads(threading.local):
    def __init__(self) -> None:
        self.mine = _Thread()


_threads: Final = _Threads()


def _getconn(handle: Any, frame: FrameType) -> SyncPooledConnection:
    """Borrow as `getconn` does, in the name of other code."""
    checkout = handle.checkout_class.bound(handle, None, frame)
    connection: SyncPooledConnection = checkout.enter_by_hand()
    return connection


def _borrower() -> FrameType:
    """Return the frame of the code that has called Django, such as a view."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").startswith(_INSIDE) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_set_up(connection: SyncPooledConnection, wanted: dict[str, Any]) -> bool:
    """Tell whether a request has had it before: it is not new."""
    return issubclass(connection.cursor_factory, wanted["cursor_factory"])


def _derived(cursors: Any, connection: SyncPooledConnection) -> Any:
    """Return Django's class of cursors, instrumented as that of the connection is."""
    made = connection.cursor_factory
    if made.__bases__ != (SyncWatchedCursor,):
        return cursors
    return type(cursors.__name__, (made, cursors), {})


def _end_request(**_: Any) -> None:
    for one in list(_threads.mine.wrappers):
        one.end_request()


def _forget() -> None:
    """Let go of the connections of the parent, in a child process: they are not to be used here."""
    for one in list(_threads.mine.wrappers):
        one.drop()


os.register_at_fork(after_in_child=_forget)

signals.request_finished.connect(_end_request)
checks.register(check_settings)
checks.register(check_files, checks.Tags.database)
