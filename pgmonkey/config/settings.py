"""A config: the validated, immutable settings of one database."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from pgmonkey.config.libpq import (
    CONNECT_TIMEOUT,
    FILES,
    PREPARE_THRESHOLD,
    isolation,
    session_options,
)
from pgmonkey.config.models import CONNECTION_TYPES, ConnectionType, PoolSettings, written
from pgmonkey.config.redaction import MASK, Secret, is_sensitive, mask_urls, scrub
from pgmonkey.config.sources import keyed_digest

if TYPE_CHECKING:
    from pgmonkey.config.models import DatabaseFile

__all__ = ["CONNECTION_TYPES", "ConnectionType", "DatabaseConfig", "PoolSettings"]

Settings = dict[str, "str | Secret"]


class Provenance(Protocol):
    """Know what a config was made from; the loader's part, which reads files."""

    @property
    def directories(self) -> frozenset[str]:
        """The directories of the secret files and TLS files."""

    @property
    def modified(self) -> float | None:
        """The newest modification of the secret files, in unix seconds."""

    def is_current(self) -> bool:
        """Tell whether making the config again would give the same one."""


@dataclass(frozen=True, slots=True, init=False, repr=False, eq=False)
class DatabaseConfig:
    """Hold the validated, immutable settings of one database.

    Only the loader makes one. It prints without its settings; `redacted` shows them.

    Args:
        model: What the file says.
        name: The name of the database.
        path: The file.
        isolate: Whether libpq's environment variables are kept out.
        sources: What it was made from.
        files: A digest of the contents of its TLS files.
    """

    name: str
    path: str
    connection_type: ConnectionType
    description: str
    required: bool
    pooler: str
    reset_on_return: bool
    leak_detection: float | None
    leak_stack: bool
    drain_timeout: float
    revision: str | None
    max_connections: int | None
    autocommit: bool
    prepare_threshold: int | None
    connect_digest: bytes
    digest: bytes
    _connection: Settings
    _sessions: tuple[Settings | None, Settings | None]
    _pools: tuple[PoolSettings, PoolSettings, PoolSettings]
    _files_digest: bytes
    _isolate: bool
    _sources: Provenance

    def __init__(
        self,
        model: DatabaseFile,
        *,
        name: str,
        path: str,
        isolate: bool,
        sources: Provenance,
        files: bytes = b"",
    ) -> None:
        put = object.__setattr__
        connection: dict[str, Any] = dict(model.connection_settings)
        put(self, "name", name)
        put(self, "path", path)
        put(self, "connection_type", model.connection_type)
        put(self, "description", mask_urls(model.description))
        put(self, "required", model.required)
        put(self, "pooler", model.pooler)
        put(self, "reset_on_return", model.reset_on_return)
        put(self, "leak_detection", model.leak_detection)
        put(self, "leak_stack", model.leak_stack)
        put(self, "drain_timeout", model.drain_timeout)
        put(self, "revision", model.revision and mask_urls(model.revision))
        put(self, "max_connections", model.max_connections)
        put(self, "autocommit", connection.pop("autocommit", False))
        default = None if model.pooler == "pgbouncer" else PREPARE_THRESHOLD
        put(self, "prepare_threshold", connection.pop("prepare_threshold", default))
        put(self, "_connection", connection)
        put(self, "_sessions", (model.sync_settings or None, model.async_settings or None))
        pools = model.pools()
        put(self, "_pools", pools)
        put(self, "_isolate", isolate)
        put(self, "_sources", sources)
        put(self, "_files_digest", files)
        put(
            self,
            "connect_digest",
            keyed_digest(self._connect_parts(map(written, pools)).encode(), after=files),
        )
        put(self, "digest", keyed_digest(self._other_parts().encode(), after=self.connect_digest))

    def __copy__(self) -> Self:
        return self  # nothing of it ever changes

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.connection_type} from {self.path}>"

    def pool(self, connection_type: ConnectionType) -> PoolSettings:
        """Return the effective pool settings of a connection type.

        `normal` and `async` hold one connection, opened when it is needed.
        """
        if connection_type == "pool":
            return self._pools[0]
        return self._pools[1] if connection_type == "async_pool" else self._pools[2]

    @property
    def account(self) -> bytes:
        """What tells the account that it logs in with from others, in this process."""
        parts = (self._connection.get(key, "") for key in _ACCOUNT)
        return keyed_digest("\0".join(_clear(part) for part in parts).encode())

    @property
    def server(self) -> str:
        """What tells its server from others: host and port, or the service."""
        connection = self._connection
        host = connection.get("host") or connection.get("hostaddr")
        if not host and (service := connection.get("service")):
            return f"service {service}"
        return f"{host or 'localhost'}:{connection.get('port') or 5432}"

    @property
    def wants_primary(self) -> bool:
        """Whether a standby is of no use to it."""
        return self._connection.get("target_session_attrs") in ("read-write", "primary")

    def connect_kwargs(self, connection_type: ConnectionType) -> dict[str, Any]:
        """Return everything for `psycopg.connect(**kwargs)`, with the secrets in clear.

        Built anew for each call and to be dropped at once: nothing keeps a password.

        Args:
            connection_type: Decides between `sync_settings` and `async_settings`.
        """
        connection = self._connection
        kwargs: dict[str, Any] = {}
        if self._isolate and "service" not in connection:
            kwargs.update(isolation())
        kwargs.update((key, _clear(value)) for key, value in connection.items())
        if "connect_timeout" not in connection and (
            self._isolate or "PGCONNECT_TIMEOUT" not in os.environ
        ):
            kwargs["connect_timeout"] = str(CONNECT_TIMEOUT)
        session = self._session(connection_type)
        if session:
            options = kwargs.get("options")
            if options is None and not self._isolate:
                options = os.environ.get("PGOPTIONS")  # ours would replace them
            added = session_options((name, _clear(value)) for name, value in session.items())
            kwargs["options"] = f"{options} {added}" if options else added
        kwargs["autocommit"] = self.autocommit
        kwargs["prepare_threshold"] = self.prepare_threshold
        return kwargs

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """The secrets, for scrubbing foreign text; without the paths of TLS files."""
        found = [
            value
            for key, value in self._connection.items()
            if isinstance(value, Secret) and key not in FILES
        ]
        for session in self._sessions:
            found += [value for value in (session or {}).values() if isinstance(value, Secret)]
        return tuple(found)

    @property
    def public_hash(self) -> int:
        """48 bits of everything that is not secret, the revision included.

        Equal in every process that runs the same configuration, so that a fleet can be compared.
        """
        text = "\0".join(f"{key}={value}" for key, value in sorted(self._public()))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")

    @property
    def watched_directories(self) -> frozenset[str]:
        """The directories of all secret files and TLS files."""
        return self._sources.directories

    @property
    def secret_modified(self) -> float | None:
        """When its secret files were modified last, in unix seconds; `None` without any."""
        return self._sources.modified

    def is_current(self) -> bool:
        """Tell whether the files and variables it was made from still say the same.

        Costs one look (`stat`) at each file. A config file that has gone changes nothing.
        """
        return self._sources.is_current()

    def redacted(self) -> dict[str, Any]:
        """Return the effective configuration with secrets masked, for events, pages and JSON."""
        known = self.secrets
        connection: dict[str, Any] = {
            key: _masked(key, value, known) for key, value in self._connection.items()
        }
        connection.setdefault("connect_timeout", str(CONNECT_TIMEOUT))
        connection["autocommit"] = self.autocommit
        connection["prepare_threshold"] = self.prepare_threshold
        shown: dict[str, Any] = {
            "connection_type": self.connection_type,
            "description": self.description,
            "connection_settings": connection,
        }
        for section, settings in zip(_POOL_SECTIONS, self._pools, strict=False):
            shown[section] = settings._asdict()
        for section, session in zip(_SESSION_SECTIONS, self._sessions, strict=True):
            shown[section] = {
                key: _masked(key, value, known) for key, value in (session or {}).items()
            }
        shown["timeout"] = self._pools[2].timeout
        shown["check_on_checkout"] = self._pools[2].check_on_checkout
        for key in _PLAIN:
            shown[key] = getattr(self, key)
        return shown

    def changed_keys(self, other: DatabaseConfig) -> tuple[str, ...]:
        """Return the dotted keys whose values differ in another config; never the values."""
        ours, theirs = dict(self._leaves()), dict(other._leaves())
        changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        if self._files_digest != other._files_digest:
            files = FILES & self._connection.keys() & other._connection.keys()
            changed |= {f"connection_settings.{key}" for key in files}
        return tuple(sorted(changed))

    def _session(self, connection_type: ConnectionType) -> Settings | None:
        return self._sessions[0 if connection_type in ("normal", "pool") else 1]

    def _leaves(self) -> Iterator[tuple[str, Any]]:
        """Yield every effective value with its dotted key; secrets as `Secret`."""
        for key, value in self._connection.items():
            yield f"connection_settings.{key}", value
        yield "connection_settings.autocommit", self.autocommit
        yield "connection_settings.prepare_threshold", self.prepare_threshold
        for section, settings in zip(_POOL_SECTIONS, self._pools, strict=False):
            for key, number in settings._asdict().items():
                yield f"{section}.{key}", number
        for section, session in zip(_SESSION_SECTIONS, self._sessions, strict=True):
            for key, value in (session or {}).items():
                yield f"{section}.{key}", value
        yield "timeout", self._pools[2].timeout
        yield "check_on_checkout", self._pools[2].check_on_checkout
        for key in ("connection_type", "description", *_PLAIN):
            yield key, getattr(self, key)

    def _public(self) -> Iterator[tuple[str, Any]]:
        known = self.secrets
        for key, value in self._leaves():
            if isinstance(value, (str, Secret)):
                yield key, _masked(key.rpartition(".")[2], value, known)
            else:
                yield key, value

    def _connect_parts(self, pools: Iterable[str]) -> str:
        """Return what a connection or its pool depends on. No value holds a NUL character."""
        parts = [
            f"{self.autocommit}\0{self.prepare_threshold}\0{self.pooler}",
            f"{self._isolate}\0{self.reset_on_return}",
            *pools,
        ]
        for group in (self._connection, *self._sessions):
            parts.append("\1")  # a new group; no key looks like this
            for key, value in sorted(group.items()) if group else ():
                parts += key, _clear(value)
        return "\0".join(parts)

    def _other_parts(self) -> str:
        revision = "-" if self.revision is None else f"={self.revision}"
        return (
            f"{self.connection_type}\0{self.description}\0{self.required}\0"
            f"{self.leak_detection}\0{self.leak_stack}\0{self.drain_timeout}\0"
            f"{self.max_connections}\0{revision}"
        )


_ACCOUNT: Final = ("host", "hostaddr", "port", "service", "user")
_POOL_SECTIONS: Final = ("pool_settings", "async_pool_settings")
_SESSION_SECTIONS: Final = ("sync_settings", "async_settings")
_PLAIN: Final = (
    "pooler",
    "reset_on_return",
    "required",
    "leak_detection",
    "leak_stack",
    "drain_timeout",
    "max_connections",
    "revision",
)


def _clear(value: str | Secret) -> str:
    return value.reveal() if isinstance(value, Secret) else value


def _masked(key: str, value: str | Secret, known: tuple[Secret, ...]) -> str:
    if value == "":
        return ""
    if isinstance(value, Secret) or is_sensitive(key):
        return MASK
    if any(secret.reveal() in value for secret in known):
        return scrub(value, known)  # a password was referred to in the wrong place
    return mask_urls(value)
