"""A database file: the schema of what one file may say, as pydantic models.

The models are the one place of all defaults, and the source of the JSON schema and of the
reference page. Secrets are wrapped before they come here, so that no error of pydantic holds one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache, partial
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    InstanceOf,
    Strict,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_before_validator_function
from typing_extensions import TypedDict

from pgmonkey.connection_settings import (
    CONNECT_TIMEOUT,
    PREPARE_THRESHOLD,
    Keyword,
    is_setting_name,
    keywords,
)
from pgmonkey.duration import EXPECTED, DurationError, parse_duration
from pgmonkey.layout import CONNECTION_TYPES, SECTIONS, ConnectionType
from pgmonkey.redaction import Secret, is_sensitive

Pooler = Literal["none", "pgbouncer"]

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,12}")
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})
_MIN_SIZE: Final = 1
_MAX_SIZE: Final = 10
_LOWEST: Final = -(2**31)  # libpq's integers
_HIGHEST: Final = 2**31 - 1
_MOST_HOSTS: Final = 1000
_OFF: Final = frozenset({"off", "none", "no", "false"})


def _wrong(code: str, message: str, hint: str | None = None) -> PydanticCustomError:
    # The text travels in the context: a template would interpret braces.
    return PydanticCustomError("pgmonkey", "invalid", {"code": code, "say": message, "hint": hint})


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    kind = "a list" if isinstance(value, list) else "a mapping"
    raise _wrong("config.type", f"expected text, got {kind}")


def _flag(value: Any) -> bool:
    word = value.lower() if isinstance(value, str) else ""
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise _wrong("config.type", "expected true or false")


def _whole(value: Any, low: int, high: int) -> int:
    if isinstance(value, str):
        return _number(value, low, high)
    raise _wrong("config.type", f"expected an integer from {low} to {high}")


@lru_cache(maxsize=1024)  # a thousand databases mostly have the same few
def _number(text: str, low: int, high: int) -> int:
    expected = f"expected an integer from {low} to {high}"
    if not _INTEGER.fullmatch(text):
        raise _wrong("config.type", expected, "write digits only")
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits.startswith("0"):
        raise _wrong("config.type", f"{expected}, got one with a leading zero", "remove the zero")
    number = int(text)
    if not low <= number <= high:
        raise _wrong("config.range", expected)
    return number


class _Integer:
    """Annotate an integer with its bounds, for the validation and for the schema."""

    def __init__(self, low: int, high: int) -> None:
        self._low = low
        self._high = high

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_before_validator_function(
            partial(_whole, low=self._low, high=self._high), handler(source)
        )

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        return {"kind": "integer", "minimum": self._low, "maximum": self._high}


def _kind(kind: str, **more: Any) -> WithJsonSchema:
    """Name what a value looks like; `schema.py` says how that is written in JSON Schema."""
    return WithJsonSchema({"kind": kind, **more})


def _seconds(value: Any, *, zero: bool = False) -> float:
    if not isinstance(value, str):
        raise _wrong("config.type", EXPECTED)
    try:
        seconds = parse_duration(value)
    except DurationError as error:
        message, hint = str(error), error.hint
    else:
        if seconds > 0 or zero:
            return seconds
        message, hint = "expected a duration longer than zero", None
    raise _wrong("config.duration", message, hint)


def _seconds_or_off(value: Any) -> float | None:
    if isinstance(value, str) and value.lower() in _OFF:
        return None
    return _seconds(value)


def _threshold(value: Any) -> int | None:
    return None if value is None else _whole(value, 0, 1_000_000)


def _one_of(choices: tuple[str, ...]) -> BeforeValidator:
    known = frozenset(choices)

    def choice(value: Any) -> str:
        if isinstance(value, str) and value in known:
            return value
        listed = ", ".join(filter(None, choices))
        near = _near(value, choices) if isinstance(value, str) else None
        raise _wrong(
            "config.choice",
            f"expected one of {listed}",
            f'did you mean "{near}"?' if near else None,
        )

    return BeforeValidator(choice)


def _near(word: str, choices: tuple[str, ...]) -> str | None:
    from difflib import get_close_matches  # only when something is wrong

    return next(iter(get_close_matches(word.lower(), choices, 1, 0.6)), None)


def _number_of_libpq(value: Any) -> str:
    return str(_whole(value, _LOWEST, _HIGHEST))


def _flag_of_libpq(value: Any) -> str:
    return "1" if _flag(value) else "0"


def _ports(value: Any) -> str:
    if isinstance(value, str) and "," not in value:
        return str(_whole(value.strip(" "), 1, 65535))
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list):
        raise _wrong("config.type", "expected an integer from 1 to 65535")
    if len(items) > _MOST_HOSTS:
        raise _wrong("config.range", f"expected at most {_MOST_HOSTS} ports")
    return ",".join(
        "" if item == "" and len(items) > 1 else str(_whole(_stripped(item), 1, 65535))
        for item in items
    )


def _stripped(value: Any) -> Any:
    return value.strip(" ") if isinstance(value, str) else value


def _several(value: Any) -> str:
    """Accept a list of hosts, which libpq takes as one text."""
    if isinstance(value, list):
        if not value or not all(isinstance(item, str) and item for item in value):
            raise _wrong("config.type", "expected text, or a list of texts")
        value = ",".join(value)
    text = _text(value)
    if "://" in text:
        raise _wrong(
            "config.url",
            "expected a host name, got a URL (not shown)",
            "write host, port, dbname, user and password as keys of their own",
        )
    return text


def _name_not_url(value: Any) -> str:
    text = _text(value)
    if text.startswith(("postgresql://", "postgres://")):
        raise _wrong(
            "config.url",
            "expected the name of a database, got a URL (not shown)",
            "write host, port, dbname, user and password as keys of their own",
        )
    return text


def _connect_timeout(value: Any) -> str:
    seconds = _seconds(value, zero=True)
    # 0 means "wait for ever" to libpq; 1 is raised to 2 by libpq anyway.
    return str(max(2, ceil(seconds)) if seconds else 0)


def _setting(value: Any) -> str | Secret:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, Secret) else _text(value)


def _setting_name(value: Any) -> str:
    if isinstance(value, str) and is_setting_name(value):
        return value
    raise _wrong("config.setting_name", "this is no name of a session setting")


Text = Annotated[str, Strict(), _kind("text")]
Flag = Annotated[bool, BeforeValidator(_flag), _kind("flag")]
Seconds = Annotated[float, BeforeValidator(_seconds), _kind("duration")]
SecondsOrOff = Annotated[float | None, BeforeValidator(_seconds_or_off), _kind("duration_or_off")]
SessionSettings = dict[
    Annotated[str, BeforeValidator(_setting_name)],
    Annotated[Any, BeforeValidator(_setting), _kind("texts")],
]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=False
    )


class PoolSection(_Section):
    """Say how large a pool is and how it treats its connections."""

    min_size: Annotated[
        Annotated[int, _Integer(0, 1000)] | None,
        Field(
            description="How many connections the pool keeps open; 1 by default, never more than "
            "max_size.",
            examples=["2"],
            json_schema_extra={"default": _MIN_SIZE},
        ),
    ] = None
    max_size: Annotated[
        Annotated[int, _Integer(1, 1000)] | None,
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
        Annotated[int, _Integer(0, 1_000_000)],
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
        Annotated[
            float,
            BeforeValidator(lambda value: _seconds(value, zero=True)),
            _kind("duration", zero=True),
        ],
        Field(
            description="How long the pool goes on trying to replace a connection before it "
            "starts anew with short pauses.",
            examples=["5s"],
        ),
    ] = 5.0
    num_workers: Annotated[
        Annotated[int, _Integer(1, 100)],
        Field(description="How many workers open connections in the background.", examples=["1"]),
    ] = 1


# What PoolSettings of the config layer takes, in its order.
PoolArguments = tuple[int, int, float, int, float, float, float, int, bool]


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
        before = _one_of(keyword.choices)
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
        return _kind("choice", enum=[choice for choice in keyword.choices if choice])
    match keyword.kind:
        case "integer":
            return _kind("integer", minimum=_LOWEST, maximum=_HIGHEST)
        case "flag":
            return _kind("flag")
        case "seconds":
            return _kind("duration", zero=True)
        case "port":
            return _kind("ports")
        case _ if keyword.name in ("host", "hostaddr"):
            return _kind("texts", url=False)
        case _ if keyword.name == "dbname":
            return _kind("text", url=False)
        case "file":
            return _kind("file")
        case _:
            return _kind("text", sensitive=is_sensitive(keyword.name))


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
        _kind("integer", minimum=0, maximum=1_000_000),
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


class DatabaseFile(_Section):
    """Declare one PostgreSQL database."""

    connection_type: Annotated[
        Annotated[ConnectionType, _one_of(CONNECTION_TYPES)],
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
        Annotated[Pooler, _one_of(("none", "pgbouncer"))],
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
        Annotated[int, _Integer(1, 1_000_000)] | None,
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

    def pools(self) -> tuple[PoolArguments, PoolArguments, PoolArguments]:
        """Return the effective settings of `pool`, of `async_pool`, and of a single connection.

        A pool's own settings go over those of the database, and both over the defaults.
        """
        return (
            self._pool(self.pool_settings),
            self._pool(self.async_pool_settings),
            self._pool(_SINGLE),
        )

    def _pool(self, section: PoolSection) -> PoolArguments:
        low, high, checks = section.min_size, section.max_size, section.check_on_checkout
        if high is None:
            high = max(_MAX_SIZE, low or 0)
        if low is None:
            low = min(_MIN_SIZE, high)
        return (
            low,
            high,
            self.timeout if section.timeout is None else section.timeout,
            section.max_waiting,
            section.max_idle,
            section.max_lifetime,
            section.reconnect_timeout,
            section.num_workers,
            self.check_on_checkout if checks is None else checks,
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


def known_keys(path: tuple[str | int, ...]) -> tuple[str, ...]:
    """Return the keys that a section may have; none where any key is fine."""
    if not path:
        return tuple(DatabaseFile.model_fields)
    if path[0] in ("pool_settings", "async_pool_settings"):
        return tuple(PoolSection.model_fields)
    if path[0] == "connection_settings":
        return (*keywords(), "autocommit", "prepare_threshold")
    return ()


def typed_value(path: tuple[str | int, ...], value: Any) -> tuple[Any, Details | None]:
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
def _field_adapter(path: tuple[str | int, ...]) -> TypeAdapter[Any] | None:
    annotation: Any = None
    match path:
        case ("pool_settings" | "async_pool_settings", str(key)) if key in PoolSection.model_fields:
            annotation = get_type_hints(PoolSection, include_extras=True)[key]
        case ("connection_settings", str(key)) if not is_sensitive(key):
            annotation = get_type_hints(ConnectionSection, include_extras=True).get(key)
        case (str(key),) if key in DatabaseFile.model_fields and key not in SECTIONS:
            annotation = get_type_hints(DatabaseFile, include_extras=True)[key]
    return None if annotation is None else TypeAdapter(annotation)
