"""The keys of a database file, as pydantic models: types, defaults, descriptions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    Strict,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from typing_extensions import TypedDict

from pgmonkey.config.libpq import (
    CONNECT_TIMEOUT,
    PREPARE_THRESHOLD,
    Keyword,
    keywords,
)
from pgmonkey.config.redaction import Secret, is_sensitive
from pgmonkey.config.types import (
    Flag,
    Integer,
    Seconds,
    SecondsOrOff,
    SecondsOrZero,
    SessionSettings,
    Text,
    invalid,
    kind,
    one_of,
    to_flag,
    to_integer,
    to_seconds,
    to_text,
)

ConnectionType = Literal["normal", "pool", "async", "async_pool"]
CONNECTION_TYPES: Final[tuple[ConnectionType, ...]] = ("normal", "pool", "async", "async_pool")

#: The keys of a file whose values are mappings.
SECTIONS: Final = frozenset(
    {
        "connection_settings",
        "pool_settings",
        "async_pool_settings",
        "sync_settings",
        "async_settings",
    }
)

#: Where null is a value, not the absence of one.
NULLABLE: Final = ("connection_settings", "prepare_threshold")

#: What is merged under every database of a directory.
DEFAULTS_FILE: Final = "_defaults.yaml"

#: Keys and indexes that lead to one part of a file, from the top.
KeyPath = tuple["str | int", ...]


def dotted(path: Iterable[str | int]) -> str | None:
    """Return a path as people write it: `a.b[0]`; `None` for the top."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            shown = step if step.isprintable() else json.dumps(step)[1:-1]
            text += f".{shown}" if text else shown
    return text or None


class PoolSettings(NamedTuple):
    """Hold the effective settings of the pool of one connection type. Times are in seconds.

    Args:
        min_size: How many connections are kept open.
        max_size: How many are opened at most.
        timeout: How long a checkout may wait.
        max_waiting: How many clients may wait; 0 is no limit.
        max_idle: How long a connection above `min_size` stays unused.
        max_lifetime: How old a connection may become.
        reconnect_timeout: How long the pool tries to replace a connection.
        num_workers: How many workers open connections.
        check_on_checkout: Whether each checkout asks the server for a sign of life.
    """

    min_size: int
    max_size: int
    timeout: float
    max_waiting: int
    max_idle: float
    max_lifetime: float
    reconnect_timeout: float
    num_workers: int
    check_on_checkout: bool


# A thousand databases mostly have the same few pools.


@lru_cache(maxsize=1024)
def shared(settings: PoolSettings) -> PoolSettings:
    """Return one object for equal settings."""
    return settings


@lru_cache(maxsize=1024)
def written(settings: PoolSettings) -> str:
    """Return the settings as text, for digests."""
    return repr(settings)


_LOWEST: Final = -(2**31)  # libpq's integers
_HIGHEST: Final = 2**31 - 1
_MOST_HOSTS: Final = 1000


def _number_of_libpq(value: Any) -> str:
    return str(to_integer(value, _LOWEST, _HIGHEST))


def _flag_of_libpq(value: Any) -> str:
    return "1" if to_flag(value) else "0"


def _ports(value: Any) -> str:
    if isinstance(value, str) and "," not in value:
        return str(to_integer(value.strip(" "), 1, 65535))
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list):
        raise invalid("config.type", "expected an integer from 1 to 65535")
    if len(items) > _MOST_HOSTS:
        raise invalid("config.range", f"expected at most {_MOST_HOSTS} ports")
    return ",".join(
        "" if item == "" and len(items) > 1 else str(to_integer(_stripped(item), 1, 65535))
        for item in items
    )


def _stripped(value: Any) -> Any:
    return value.strip(" ") if isinstance(value, str) else value


def _several(value: Any) -> str:
    """Accept a list of hosts, which libpq takes as one text."""
    if isinstance(value, list):
        if not value or not all(isinstance(item, str) and item for item in value):
            raise invalid("config.type", "expected text, or a list of texts")
        value = ",".join(value)
    text = to_text(value)
    if "://" in text:
        raise invalid(
            "config.url",
            "expected a host name, got a URL (not shown)",
            "write host, port, dbname, user and password as keys of their own",
        )
    return text


def _name_not_url(value: Any) -> str:
    text = to_text(value)
    if text.startswith(("postgresql://", "postgres://")):
        raise invalid(
            "config.url",
            "expected the name of a database, got a URL (not shown)",
            "write host, port, dbname, user and password as keys of their own",
        )
    return text


def _connect_timeout(value: Any) -> str:
    seconds = to_seconds(value, zero=True)
    # 0 means "wait for ever" to libpq; 1 is raised to 2 by libpq anyway.
    return str(max(2, ceil(seconds)) if seconds else 0)


def _threshold(value: Any) -> int | None:
    return None if value is None else to_integer(value, 0, 1_000_000)


def _keyword_type(keyword: Keyword) -> Any:
    validators = {
        "integer": _number_of_libpq,
        "flag": _flag_of_libpq,
        "port": _ports,
        "seconds": _connect_timeout,
    }
    before: BeforeValidator
    field = Field(
        description=keyword.description,
        examples=[keyword.example] if keyword.example else None,
        json_schema_extra=(
            {"default": CONNECT_TIMEOUT} if keyword.name == "connect_timeout" else None
        ),
    )
    if is_sensitive(keyword.name):
        return Annotated[InstanceOf[Secret], field, _keyword_schema(keyword)]
    if keyword.choices:
        before = one_of(keyword.choices)
    elif keyword.name in ("host", "hostaddr"):
        before = BeforeValidator(_several)
    elif keyword.name == "dbname":
        before = BeforeValidator(_name_not_url)
    elif keyword.kind in validators:
        before = BeforeValidator(validators[keyword.kind])
    else:
        return Annotated[str, Strict(), field, _keyword_schema(keyword)]
    return Annotated[str, before, field, _keyword_schema(keyword)]


def _keyword_schema(keyword: Keyword) -> WithJsonSchema:
    if keyword.choices:
        return kind("choice", enum=[choice for choice in keyword.choices if choice])
    match keyword.kind:
        case "integer":
            return kind("integer", minimum=_LOWEST, maximum=_HIGHEST)
        case "flag":
            return kind("flag")
        case "seconds":
            return kind("duration", zero=True)
        case "port":
            return kind("ports")
        case _ if keyword.name in ("host", "hostaddr"):
            return kind("texts", url=False)
        case _ if keyword.name == "dbname":
            return kind("text", url=False)
        case "file":
            return kind("file")
        case _:
            return kind("text", sensitive=is_sensitive(keyword.name))


def _connection_section() -> Any:
    fields = {name: _keyword_type(keyword) for name, keyword in keywords().items()}
    fields["autocommit"] = Annotated[
        Flag,
        Field(
            description="Whether each statement is its own transaction; false by default.",
            examples=["true"],
            json_schema_extra={"default": False},
        ),
    ]
    fields["prepare_threshold"] = Annotated[
        int | None,
        BeforeValidator(_threshold),
        kind("integer", minimum=0, maximum=1_000_000),
        Field(
            description=f"After how many executions a statement is prepared on the server; "
            f"{PREPARE_THRESHOLD} by default, null for never.",
            examples=["5"],
            json_schema_extra={"default": PREPARE_THRESHOLD},
        ),
    ]
    make: Any = TypedDict  # the keywords are those of the libpq that is installed
    section = make("ConnectionSection", fields, total=False)
    section.__pydantic_config__ = ConfigDict(extra="forbid", hide_input_in_errors=True)
    section.__doc__ = (
        "Say where the database is and how to log in: every parameter of libpq, and two of "
        f"psycopg. The default of connect_timeout is {CONNECT_TIMEOUT} s."
    )
    return section


if TYPE_CHECKING:
    ConnectionSection = dict[str, Any]
else:
    ConnectionSection = _connection_section()


Pooler = Literal["none", "pgbouncer"]

_MIN_SIZE: Final = 1
_MAX_SIZE: Final = 10


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=False
    )


class PoolSection(_Section):
    """Say how large a pool is and how it treats its connections."""

    min_size: Annotated[
        Annotated[int, Integer(0, 1000)] | None,
        Field(
            description="How many connections the pool keeps open; 1 by default, never more than "
            "max_size.",
            examples=["2"],
            json_schema_extra={"default": _MIN_SIZE},
        ),
    ] = None
    max_size: Annotated[
        Annotated[int, Integer(1, 1000)] | None,
        Field(
            description="How many connections the pool opens at most; 10 by default, or min_size "
            "if that is larger.",
            examples=["10"],
            json_schema_extra={"default": _MAX_SIZE},
        ),
    ] = None
    timeout: Annotated[
        Seconds | None,
        Field(
            description="How long a checkout may wait; by default the timeout of the database.",
            examples=["5s"],
        ),
    ] = None
    check_on_checkout: Annotated[
        Flag | None,
        Field(
            description="Whether the server is asked for a sign of life at each checkout; by "
            "default what the database says.",
            examples=["true"],
        ),
    ] = None
    max_waiting: Annotated[
        Annotated[int, Integer(0, 1_000_000)],
        Field(
            description="How many clients may wait for a connection; the next one fails at once. "
            "0 is no limit.",
            examples=["50"],
        ),
    ] = 0
    max_idle: Annotated[
        Seconds,
        Field(
            description="How long a connection above min_size stays unused before it is closed.",
            examples=["10min"],
        ),
    ] = 600.0
    max_lifetime: Annotated[
        Seconds,
        Field(
            description="How old a connection may become; an older one is replaced.",
            examples=["1h"],
        ),
    ] = 3600.0
    reconnect_timeout: Annotated[
        SecondsOrZero,
        Field(
            description="How long the pool goes on trying to replace a connection before it "
            "starts anew with short pauses.",
            examples=["5s"],
        ),
    ] = 5.0
    num_workers: Annotated[
        Annotated[int, Integer(1, 100)],
        Field(description="How many workers open connections in the background.", examples=["1"]),
    ] = 1


class DatabaseFile(_Section):
    """Declare one PostgreSQL database."""

    connection_type: Annotated[
        Annotated[ConnectionType, one_of(CONNECTION_TYPES)],
        Field(
            description="What a handle is if the code does not say: one connection (normal, "
            "async) or a pool of them (pool, async_pool).",
            examples=["pool"],
        ),
    ] = "normal"
    description: Annotated[
        Text,
        Field(description="What the database is for; on the status page.", examples=["orders"]),
    ] = ""
    connection_settings: Annotated[
        ConnectionSection,
        Field(description="Where the database is and how to log in."),
    ]
    pool_settings: Annotated[
        PoolSection, Field(description="The pool of connection type pool.")
    ] = PoolSection()
    async_pool_settings: Annotated[
        PoolSection, Field(description="The pool of connection type async_pool.")
    ] = PoolSection()
    sync_settings: Annotated[
        SessionSettings,
        Field(
            description="Session settings of normal and pool, sent when a connection is made.",
            examples=[{"statement_timeout": "30s"}],
        ),
    ] = {}
    async_settings: Annotated[
        SessionSettings,
        Field(
            description="Session settings of async and async_pool, sent when a connection is made.",
            examples=[{"statement_timeout": "30s"}],
        ),
    ] = {}
    timeout: Annotated[
        Seconds,
        Field(description="How long a checkout may wait, for all types.", examples=["5s"]),
    ] = 30.0
    check_on_checkout: Annotated[
        Flag,
        Field(
            description="Whether the server is asked for a sign of life at each checkout, for "
            "all types.",
            examples=["true"],
        ),
    ] = False
    reset_on_return: Annotated[
        Flag,
        Field(
            description="Whether a connection that comes back is reset (`DISCARD ALL`), so that "
            "the next borrower gets a clean session. Costs one round trip for each checkout.",
            examples=["true"],
        ),
    ] = False
    pooler: Annotated[
        Annotated[Pooler, one_of(("none", "pgbouncer"))],
        Field(
            description="What stands between here and the server: nothing, or PgBouncer with "
            "transaction pooling (no prepared statements, no session settings, no options).",
            examples=["pgbouncer"],
        ),
    ] = "none"
    required: Annotated[
        Flag,
        Field(
            description="Whether the service is ready only once this database was reached.",
            examples=["false"],
        ),
    ] = True
    leak_detection: Annotated[
        SecondsOrOff,
        Field(
            description="After how long a checkout is reported as leaked; off by default.",
            examples=["30s"],
        ),
    ] = None
    leak_stack: Annotated[
        Flag,
        Field(
            description="Whether each checkout keeps the stack of its borrower, so that a leak "
            "is reported with it; costs some microseconds each time.",
            examples=["true"],
        ),
    ] = False
    max_connections: Annotated[
        Annotated[int, Integer(1, 1_000_000)] | None,
        Field(
            description="How many connections this process has to the server (host and port) at "
            "most when this database opens another one, over all databases; no limit by default. "
            "Best written once, in _defaults.yaml.",
            examples=["80"],
        ),
    ] = None
    revision: Annotated[
        Text | None,
        Field(
            description="The version of the secrets, so that the fleet can be compared; not "
            "secret.",
            examples=["2024-05-01"],
        ),
    ] = None
    drain_timeout: Annotated[
        Seconds,
        Field(
            description="How long a replaced pool may take to drain before its holders are "
            "reported; nothing is cut.",
            examples=["60s"],
        ),
    ] = 60.0

    def pools(self) -> tuple[PoolSettings, PoolSettings, PoolSettings]:
        """Return the effective settings of `pool`, of `async_pool`, and of a single connection.

        A pool's own settings go over those of the database, and both over the defaults.
        """
        return (
            self._pool(self.pool_settings),
            self._pool(self.async_pool_settings),
            self._pool(_SINGLE),
        )

    def _pool(self, section: PoolSection) -> PoolSettings:
        low, high, checks = section.min_size, section.max_size, section.check_on_checkout
        if high is None:
            high = max(_MAX_SIZE, low or 0)
        if low is None:
            low = min(_MIN_SIZE, high)
        return shared(
            PoolSettings(
                min_size=low,
                max_size=high,
                timeout=self.timeout if section.timeout is None else section.timeout,
                max_waiting=section.max_waiting,
                max_idle=section.max_idle,
                max_lifetime=section.max_lifetime,
                reconnect_timeout=section.reconnect_timeout,
                num_workers=section.num_workers,
                check_on_checkout=self.check_on_checkout if checks is None else checks,
            )
        )


# What `normal` and `async` are: a pool of one connection, opened when it is needed.
_SINGLE: Final = PoolSection.model_construct(min_size=0, max_size=1)

_VALIDATOR: Final = TypeAdapter(DatabaseFile).validator

# One error of pydantic, without the input: type, place (`loc`) and context.
Details = Mapping[str, Any]


def validate(tree: Mapping[str, Any]) -> DatabaseFile | Sequence[Details]:
    """Validate a resolved document whose secrets are wrapped.

    Returns:
        The file, or everything that is wrong with it.
    """
    try:
        model: DatabaseFile = _VALIDATOR.validate_python(tree)
    except ValidationError as error:
        return error.errors(include_url=False, include_input=False)
    return model


def known_keys(path: KeyPath) -> tuple[str, ...]:
    """Return the keys that a section may have; none where any key is fine."""
    if not path:
        return tuple(DatabaseFile.model_fields)
    if path[0] in ("pool_settings", "async_pool_settings"):
        return tuple(PoolSection.model_fields)
    if path[0] == "connection_settings":
        return (*keywords(), "autocommit", "prepare_threshold")
    return ()


def typed_value(path: KeyPath, value: Any) -> tuple[Any, Details | None]:
    """Return the value of one key with the type of that key; as it is where any text is fine.

    Args:
        path: The key, with its section.
        value: Text, or a list.

    Returns:
        The typed value, and what is wrong with it, if anything.
    """
    adapter = _field_adapter(path)
    if adapter is None:
        return value, None
    try:
        return adapter.validate_python(value), None
    except ValidationError as error:
        return None, error.errors(include_url=False, include_input=False)[0]


@cache
def _field_adapter(path: KeyPath) -> TypeAdapter[Any] | None:
    annotation: Any = None
    match path:
        case ("pool_settings" | "async_pool_settings", str(key)) if key in PoolSection.model_fields:
            annotation = get_type_hints(PoolSection, include_extras=True)[key]
        case ("connection_settings", str(key)) if not is_sensitive(key):
            annotation = get_type_hints(ConnectionSection, include_extras=True).get(key)
        case (str(key),) if key in DatabaseFile.model_fields and key not in SECTIONS:
            annotation = get_type_hints(DatabaseFile, include_extras=True)[key]
    return None if annotation is None else TypeAdapter(annotation)
