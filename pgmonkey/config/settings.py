"""A config: the validated, immutable settings of one database."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter, itemgetter
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

from pgmonkey.config.libpq import (
    FILES,
    PREPARE_THRESHOLD,
    defaults_for,
    isolation,
    session_options,
)
from pgmonkey.config.models import (
    KEYS,
    MAPPINGS,
    NOT_TO_CONNECT,
    POOL_KEYS,
    POOL_SECTIONS,
    PSYCOPG_KEYS,
    SECTIONS,
    ConnectionType,
    DatabaseFile,
    Effect,
    PoolSettings,
    effect_of,
    effective,
    inherited,
)
from pgmonkey.config.on_demand import Command, OnDemand, Resolver
from pgmonkey.config.overrides import OWN, Overrides
from pgmonkey.config.redaction import MASK, Secret, is_sensitive, mask_urls, may_be_secret, scrub
from pgmonkey.config.sources import Sources, keyed_digest
from pgmonkey.config.yaml_reader import Defaults


class Text(NamedTuple):
    """Hold the text of a database file, and the defaults that were merged under it."""

    content: Secret  # a password may be in it
    defaults: Defaults | None


class Portable(NamedTuple):
    """Hold what other programs can be told of one database.

    Args:
        name: The database.
        settings: libpq's keywords with their values.
        hidden: The keys that are left out because they are secret.
        through_pgbouncer: Whether it leads to PgBouncer already.
    """

    name: str
    settings: Mapping[str, str]
    hidden: tuple[str, ...] = ()
    through_pgbouncer: bool = False


_NONE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({})


def host_and_port(hosts: str, ports: str) -> str:
    """Return the address of one or of several hosts for people; one of IPv6 is in brackets.

    Example:
        >>> host_and_port("a,b", "5432"), host_and_port("::1,/tmp", "5432,5433"), host_and_port("db", "")
        ('a:5432,b:5432', '[::1]:5432,/tmp:5433', 'db')
    """
    several, each = hosts.split(","), ports.split(",")
    if len(each) != len(several):
        each = each[:1] * len(several)
    named = (
        f"[{host}]" if ":" in host and host[0] not in "/@" else host for host in several
    )  # a path may have a colon, too
    return ",".join(
        f"{host}:{port}" if port else host for host, port in zip(named, each, strict=True)
    )


@dataclass(frozen=True, slots=True, init=False, repr=False, eq=False)
class DatabaseConfig(DatabaseFile):
    """Hold the validated, immutable settings of one database.

    It has an attribute for each key of a file. Only the loader makes one. It prints without its
    settings; `redacted` shows them.
    """

    name: str
    path: str
    connect_digest: bytes
    digest: bytes
    #: What makes its password, or its user and password, for new connections.
    on_demand: OnDemand | None
    _single: PoolSettings
    _files_digest: bytes  # of the contents of its TLS files
    _isolate: bool  # libpq's environment variables are kept out
    _sources: Sources
    _text: Text | None
    #: Where its files have the connection settings that are not under their own key.
    _elsewhere: Mapping[str, tuple[str, ...]]

    def __init__(
        self,
        file: DatabaseFile,
        *,
        name: str,
        path: str,
        isolate: bool,
        sources: Sources,
        files: bytes = b"",
        text: Text | None = None,
        elsewhere: Mapping[str, tuple[str, ...]] = _NONE,
        on_demand: OnDemand | None = None,
    ) -> None:
        put = object.__setattr__
        for key in KEYS:
            put(self, key, getattr(file, key))
        put(self, "name", name)
        put(self, "path", path)
        put(self, "_single", effective(_SINGLE, ("min_size", "max_size"), inherited(file)))
        put(self, "_isolate", isolate)
        put(self, "on_demand", on_demand)
        put(self, "_sources", sources)
        put(self, "_text", text)
        put(self, "_elsewhere", elsewhere)
        put(self, "_files_digest", files)
        put(self, "connect_digest", keyed_digest(self._connect_parts().encode(), after=files))
        pools = [written(getattr(self, section)) for section in POOL_SECTIONS]
        rest = "\0".join((repr(_rest(self)), written(self._single), *pools))
        put(self, "digest", keyed_digest(rest.encode(), after=self.connect_digest))

    def __copy__(self) -> Self:
        return self  # it never changes

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.connection_type} from {self.path}>"

    def pool(self, connection_type: ConnectionType) -> PoolSettings:
        """Return the effective pool settings of a connection type.

        `normal` and `async` hold one connection, opened when it is needed.
        """
        if connection_type == "pool":
            return self.pool_settings
        return self.async_pool_settings if connection_type == "async_pool" else self._single

    @property
    def autocommit(self) -> bool:
        """Whether each statement is its own transaction."""
        return bool(self.connection_settings.get("autocommit", False))

    @property
    def prepare_threshold(self) -> int | None:
        """After how many executions a statement is prepared on the server; `None` for never."""
        default = None if self.pooler == "pgbouncer" else PREPARE_THRESHOLD
        threshold: int | None = self.connection_settings.get("prepare_threshold", default)
        return threshold

    @property
    def psycopg_settings(self) -> dict[str, Any]:
        """The settings of psycopg that `psycopg.connect` does not take: they are set afterwards."""
        connection = self.connection_settings
        return {key: connection[key] for key in NOT_TO_CONNECT if key in connection}

    @property
    def account(self) -> bytes:
        """A digest that identifies the account of its logins, in this process."""
        parts = (self.connection_settings.get(key, "") for key in _ACCOUNT)
        return keyed_digest("\0".join(_clear(part) for part in parts).encode())

    @property
    def server(self) -> str:
        """The name of its server: host and port, or the service."""
        connection = self.connection_settings
        host = connection.get("host") or connection.get("hostaddr")
        if not host and (service := connection.get("service")):
            return f"service {service}"
        return host_and_port(f"{host or 'localhost'}", f"{connection.get('port') or 5432}")

    @property
    def place(self) -> tuple[str, ...]:
        """Where its connections lead; other settings make other connections to the same place."""
        return tuple(str(_clear(self.connection_settings.get(key, ""))) for key in PLACE)

    @property
    def wants_primary(self) -> bool:
        """Whether it needs a primary."""
        return self.needs_writes or self._target == "primary"

    @property
    def needs_writes(self) -> bool:
        """Whether it needs a server whose transactions may write by default."""
        return self._target == "read-write"

    @property
    def _target(self) -> object:
        return self.connection_settings.get("target_session_attrs")

    def overridden(self, given: Overrides) -> DatabaseConfig:
        """Return the configuration with other connection settings, and all else as it is.

        Args:
            given: The settings; `None` leaves one to its default. Another `host` takes the place
                of a `hostaddr`, too; another user or password, that of what is made on demand.
        """
        settings = dict(self.connection_settings)
        if "host" in given.settings:
            settings.pop("hostaddr", None)
        settings.update(given.settings)
        kept = {key: value for key, value in settings.items() if value is not None or key in OWN}
        file = DatabaseFile(
            **{key: getattr(self, key) for key in KEYS if key != "connection_settings"},
            connection_settings=kept,
        )
        return DatabaseConfig(
            file,
            name=self.name,
            path=self.path,
            isolate=self._isolate,
            sources=self._sources,
            files=self._files_digest,
            elsewhere={
                key: place for key, place in self._elsewhere.items() if key not in given.settings
            },
            on_demand=None if given.settings.keys() & {"user", "password"} else self.on_demand,
        )

    def connect_kwargs(self, connection_type: ConnectionType) -> dict[str, Any]:
        """Return everything for `psycopg.connect(**kwargs)`, with the secrets in clear.

        Drop it at once: nothing keeps a password. Without what is made on demand, and without
        `psycopg_settings`.
        """
        connection = self.connection_settings
        kwargs: dict[str, Any] = {}
        if self._isolate and "service" not in connection:
            kwargs.update(isolation())
        kwargs.update(
            (key, _clear(value)) for key, value in connection.items() if key not in NOT_TO_CONNECT
        )
        kwargs.update(self._defaults())
        side = connection_type in ("normal", "pool")
        session = self.sync_settings if side else self.async_settings
        if session:
            inherited, options = "", kwargs.get("options")
            if options is None and not self._isolate:
                inherited = os.environ.get("PGOPTIONS", "")  # ours would replace them
            added = session_options((name, _clear(value)) for name, value in session.items())
            # The last value of a setting counts: of an override, if there is one.
            kwargs["options"] = " ".join(filter(None, (inherited, added, options)))
        kwargs["autocommit"] = self.autocommit
        kwargs["prepare_threshold"] = self.prepare_threshold
        return kwargs

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """The secrets, for scrubbing foreign text; without the paths of TLS files."""
        return tuple(
            value
            for section in MAPPINGS
            for key, value in getattr(self, section).items()
            if isinstance(value, Secret) and key not in FILES
        )

    @property
    def unquotable(self) -> tuple[Secret, ...]:
        """The secrets, and the settings that look like one: a server quotes a wrong setting."""
        return self.secrets + tuple(
            Secret(value)
            for section in MAPPINGS
            for key, value in getattr(self, section).items()
            if isinstance(value, str)
            and key not in _NOT_SETTINGS
            and not value.startswith("/")
            and may_be_secret(value)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of user, database and hosts, longest first, as errors of a connect show them."""
        connection = self.connection_settings
        user, dbname, hosts = (
            str(_clear(connection.get(key, ""))) for key in ("user", "dbname", "host")
        )
        return tuple(sorted({user, dbname, *hosts.split(",")} - {""}, key=len, reverse=True))

    @property
    def public_hash(self) -> int:
        """48 bits of everything that is not secret, the revision included.

        Equal in every process that runs the same configuration, so that a fleet can be compared.
        """
        known = self.secrets
        text = "\0".join(
            f"{key}={_masked(key.rpartition('.')[2], value, known)}"
            for key, value in sorted(self._leaves(), key=itemgetter(0))
        )
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")

    @property
    def watched_directories(self) -> frozenset[str]:
        """The directories of all secret files and TLS files."""
        return self._sources.directories

    @property
    def secret_modified(self) -> float | None:
        """When its secret files were modified last, in unix seconds; `None` without any."""
        return self._sources.modified

    @property
    def text(self) -> Text | None:
        """What it was made from, if that was kept to resolve its references again."""
        return self._text

    @property
    def sources(self) -> Sources:
        """The files and variables that its values come from."""
        return self._sources

    def written_as(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Return the key that its files have for the key of an effective value."""
        if len(path) != 2 or path[0] != "connection_settings":
            return path
        return self._elsewhere.get(path[1], path)

    def is_current(self) -> bool:
        """Tell whether the files and variables that it was made from are unchanged.

        Costs one `stat` of each file. A database file that is gone counts as unchanged.
        """
        return self._sources.is_current()

    def redacted(self) -> dict[str, Any]:
        """Return the effective configuration with secrets masked, for events, pages and JSON."""
        known = self.secrets
        shown: dict[str, Any] = {
            key: {name: _masked(name, item, known) for name, item in value.items()}
            if key in SECTIONS
            else _masked(key, value, known)
            for key, value in self._values()
        }
        shown["connection_settings"].update(self._defaults())
        return shown

    def portable(self) -> Portable:
        """Return the settings for other programs: those of libpq, in clear, without any secret.

        Session settings are in `options`. What only pgmonkey and psycopg know, and pgmonkey's own
        defaults, are left out.
        """
        known = self.secrets
        settings: dict[str, str] = {}
        hidden = set(self._made)
        for key, value in _in_order(self.connection_settings).items():
            if key in PSYCOPG_KEYS or key in hidden or value == "":
                continue
            text = str(_clear(value)) if key in FILES or not isinstance(value, Secret) else MASK
            if _masked("path" if key in FILES else key, text, known) == text != MASK:
                settings[key] = text
            else:
                hidden.add(key)
        side = self.connection_type in ("normal", "pool")
        section = "sync_settings" if side else "async_settings"
        session: dict[str, str] = getattr(self, section)
        shown = {
            name: value for name, value in session.items() if _masked(name, value, known) == value
        }
        hidden |= {f"{section}.{name}" for name in session.keys() - shown.keys()}
        if shown:
            given = filter(None, (session_options(shown.items()), settings.get("options")))
            settings["options"] = " ".join(given)
        through_pgbouncer = self.pooler == "pgbouncer"
        return Portable(self.name, settings, tuple(sorted(hidden)), through_pgbouncer)

    def changed_keys(self, other: DatabaseConfig) -> dict[str, Effect]:
        """Return the dotted keys whose values differ in another config, and what a change does."""
        ours, theirs = dict(self._leaves()), dict(other._leaves())
        changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        if self._files_digest != other._files_digest:
            files = FILES & self.connection_settings.keys() & other.connection_settings.keys()
            changed |= {f"connection_settings.{key}" for key in files}
        return {key: effect_of(key) for key in sorted(changed)}

    def _defaults(self) -> dict[str, str]:
        """Return the defaults of the connection settings that the file leaves open."""
        found = defaults_for(self.connection_settings)
        if not self._isolate and "PGCONNECT_TIMEOUT" in os.environ:
            found.pop("connect_timeout", None)
        return found

    def _values(self) -> Iterator[tuple[str, Any]]:
        """Yield every key at the top with its effective value; sections as dictionaries."""
        for key in KEYS:
            value = getattr(self, key)
            if isinstance(value, PoolSettings):
                value = {name: getattr(value, name) for name in POOL_KEYS}
            elif key == "connection_settings":
                value = _in_order(
                    {
                        **value,
                        **dict.fromkeys(self._made, self.on_demand and self.on_demand.source),
                        "autocommit": self.autocommit,
                        "prepare_threshold": self.prepare_threshold,
                    }
                )
            yield key, value

    @property
    def _made(self) -> tuple[str, ...]:
        """The connection settings that are made on demand."""
        if self.on_demand is None:
            return ()
        return ("user", "password") if self.on_demand.gives_user else ("password",)

    def _leaves(self) -> Iterator[tuple[str, Any]]:
        """Yield every effective value with its dotted key; secrets as `Secret`."""
        for key, value in self._values():
            if key in SECTIONS:
                for name, item in value.items():
                    yield f"{key}.{name}", item
            else:
                yield key, value

    def _connect_parts(self) -> str:
        """Return, as text, what connections depend on."""
        source = self.on_demand and self.on_demand.source
        # Equal sources are one object, which lives as long as this.
        parts = [
            repr((self._isolate, self.prepare_threshold, _connect(self), id(source), self._made))
        ]
        for section in MAPPINGS:
            values = getattr(self, section)
            parts.append("\1")  # a new section; no key looks like this, no value holds a NUL
            for key in sorted(values):
                parts += key, str(_clear(values[key]))
        return "\0".join(parts)


_TOP: Final = [key for key in KEYS if key not in SECTIONS]
_connect: Final = attrgetter(*(key for key in _TOP if effect_of(key) != "nothing"))
_rest: Final = attrgetter(*(key for key in _TOP if effect_of(key) == "nothing"))
# The pool of `normal` and `async`: one connection, opened when it is needed.
_SINGLE: Final = PoolSettings(min_size=0, max_size=1)
#: The settings that people look for first, in their order.
_FIRST: Final = ("service", "host", "hostaddr", "port", "dbname", "user", "password")
#: The settings that say where connections lead.
PLACE: Final = ("host", "hostaddr", "port", "dbname", "service", "target_session_attrs")
#: The settings that identify the account of a login.
_ACCOUNT: Final = ("host", "hostaddr", "port", "service", "user")
#: Connection settings that errors must show.
_NOT_SETTINGS: Final = FILES.union(PLACE, _ACCOUNT)


@lru_cache(maxsize=1024)
def written(settings: PoolSettings) -> str:
    """Return the settings as text, for digests."""
    return repr(settings)


def _in_order(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return connection settings in the order in which people say where a database is."""
    return {**{key: settings[key] for key in _FIRST if key in settings}, **settings}


def _clear(value: Any) -> Any:
    return value.reveal() if isinstance(value, Secret) else value


def _masked(key: str, value: Any, known: tuple[Secret, ...]) -> Any:
    """Return one value as it may be shown."""
    if isinstance(value, Secret):
        return MASK
    if isinstance(value, (Command, Resolver)):
        return MASK if is_sensitive(key) else "made on demand"
    if value == "" or not isinstance(value, str):
        return value
    if is_sensitive(key):
        return MASK
    if any(secret.reveal() in value for secret in known):
        return scrub(value, known)  # a password was referred to in the wrong place
    return mask_urls(value)
