"""The keys of a database file: type, default, meaning, and what a change of each does.

A key is declared here, and nowhere else: validation, digests, changed keys, redaction, the JSON
schema and the reference page walk these declarations. Secrets are wrapped before validation, so
no error of pydantic holds one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cache, lru_cache, partial
from math import ceil
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    InstanceOf,
    Strict,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict, is_typeddict

from pgmonkey.config.libpq import PREPARE_THRESHOLD, PREPARED_MAX, Keyword, keywords
from pgmonkey.config.mistakes import Mistake, in_dbname, in_host, in_name, in_port
from pgmonkey.config.redaction import Secret, is_sensitive, mask_urls
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
    to_integer,
    to_seconds,
    to_text,
)
from pgmonkey.config.yaml_reader import KeyPath

ConnectionType = Literal["normal", "pool", "async", "async_pool"]
CONNECTION_TYPES: Final[tuple[ConnectionType, ...]] = get_args(ConnectionType)
Pooler = Literal["none", "pgbouncer"]

#: What a change of a key does to a pool that is open. `reconnect`: its connections are replaced.
#: `new_pool`: psycopg_pool takes the value when a pool is made, so another pool takes its place.
#: `resize`: the pool is resized. `nothing`: no connection is touched; the value is read when it
#: is needed.
Effect = Literal["reconnect", "new_pool", "resize", "nothing"]


@dataclass(frozen=True, slots=True)
class Key:
    """Annotate the field of one key, for the schema, the reference page and reloads."""

    description: str
    example: Any = None  # as it is written in a file
    effect: Effect | None = None  # of a change; `None` for a section whose own keys say it
    default: Any = None  # where the field has none of its own

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core_schema)
        schema["description"] = self.description
        if self.example is not None:
            schema["examples"] = [self.example]
        if self.default is not None:
            schema["default"] = self.default
        return schema


_CONFIG: Final = ConfigDict(extra="forbid", hide_input_in_errors=True)

# ---- connection_settings: every parameter of libpq, and some of psycopg

#: As PostgreSQL writes them; the names of psycopg have capitals and underscores.
ISOLATION_LEVELS: Final = ("read uncommitted", "read committed", "repeatable read", "serializable")
ROW_FACTORIES: Final = ("tuple_row", "dict_row", "namedtuple_row", "scalar_row")
CURSOR_FACTORIES: Final = ("Cursor", "ClientCursor", "RawCursor")

_LOWEST: Final = -(2**31)  # libpq's integers
_HIGHEST: Final = 2**31 - 1
_MOST_HOSTS: Final = 1000


def _refuse(mistake: Mistake | None) -> None:
    if mistake is not None:
        raise invalid(*mistake)


def _port(value: Any) -> str:
    return str(to_integer(value.strip(" ") if isinstance(value, str) else value, 1, 65535))


def _ports(value: Any) -> str:
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            _refuse(in_port(text))
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list):
        raise invalid("config.type", "expected an integer from 1 to 65535")
    if len(items) > _MOST_HOSTS:
        raise invalid("config.range", f"expected at most {_MOST_HOSTS} ports")
    if len(items) == 1:
        return _port(items[0])
    return ",".join("" if item == "" else _port(item) for item in items)


def _hosts(value: Any) -> str:
    """Accept a list of hosts, which libpq takes as one text."""
    if isinstance(value, list):
        if not value or not all(isinstance(item, str) and item for item in value):
            raise invalid("config.type", "expected text, or a list of texts")
        value = ",".join(value)
    text = to_text(value)
    for host in text.split(","):
        _refuse(in_host(host))
    return text


def _user(value: Any) -> str:
    text = to_text(value)
    _refuse(in_name(text))
    return text


def _dbname(value: Any) -> str:
    text = to_text(value)
    _refuse(in_dbname(text))
    return text


def _connect_timeout(value: Any) -> str:
    seconds = to_seconds(value, zero=True)
    # 0 means "wait for ever" to libpq; 1 is raised to 2 by libpq anyway.
    return str(max(2, ceil(seconds)) if seconds else 0)


def _time_of_tcp(value: Any, unit: float) -> str:
    """Accept an integer, as libpq does, or a duration, which is rounded up to units of seconds."""
    if isinstance(value, str) and value.strip(" ")[-1:].isalpha():
        value = str(ceil(round(to_seconds(value, zero=True) / unit, 3)))
    return str(to_integer(value, _LOWEST, _HIGHEST))


_NumberOrNull = Annotated[
    int | None,
    BeforeValidator(lambda value: None if value is None else to_integer(value, 0, 1_000_000)),
    kind("integer", minimum=0, maximum=1_000_000),
]


def _keyword_type(keyword: Keyword) -> Any:
    """Return the annotation of one parameter of libpq, whose values are text to it."""
    name = keyword.name
    key = Key(keyword.description, keyword.example or None, default=keyword.default)
    validator: Any = Strict()
    match keyword.kind:
        case "choice":
            validator = one_of(keyword.choices)
            schema = kind("choice", enum=[choice for choice in keyword.choices if choice])
        case "integer":
            validator = BeforeValidator(lambda value: str(to_integer(value, _LOWEST, _HIGHEST)))
            schema = kind("integer", minimum=_LOWEST, maximum=_HIGHEST)
        case "flag":
            return Annotated[Flag, AfterValidator(lambda value: "1" if value else "0"), key]
        case "port":
            validator, schema = BeforeValidator(_ports), kind("ports")
        case "seconds" if name == "connect_timeout":
            validator, schema = BeforeValidator(_connect_timeout), kind("duration", zero=True)
        case "seconds" | "milliseconds":
            unit = 1.0 if keyword.kind == "seconds" else 0.001
            validator = BeforeValidator(partial(_time_of_tcp, unit=unit))
            schema = kind("integer_or_duration", minimum=_LOWEST, maximum=_HIGHEST)
        case "host":
            validator, schema = BeforeValidator(_hosts), kind("texts", only="host")
        case "database":
            validator, schema = BeforeValidator(_dbname), kind("text", only="dbname")
        case "user":
            validator, schema = BeforeValidator(_user), kind("text", only="user")
        case "file":
            schema = kind("file")
        case _:
            schema = kind("text", sensitive=is_sensitive(name))
    if is_sensitive(name):
        return Annotated[InstanceOf[Secret], schema, key]
    return Annotated[str, validator, schema, key]


def _psycopg_fields() -> dict[str, Any]:
    """Return the annotations of what psycopg itself has a setting for, not libpq."""
    return {
        "autocommit": Annotated[
            Flag, Key("Whether each statement is its own transaction.", "true", default=False)
        ],
        "isolation_level": Annotated[
            str,
            one_of(ISOLATION_LEVELS),
            kind("choice", enum=list(ISOLATION_LEVELS)),
            Key(
                "The isolation level of each transaction; by default the server's.", "serializable"
            ),
        ],
        "read_only": Annotated[
            Flag,
            Key("Whether each transaction only reads; by default the server decides.", "true"),
        ],
        "deferrable": Annotated[
            Flag,
            Key(
                "Whether a transaction that is serializable and read-only waits until it cannot "
                "fail; by default the server decides.",
                "true",
            ),
        ],
        "row_factory": Annotated[
            str,
            one_of(ROW_FACTORIES),
            kind("choice", enum=list(ROW_FACTORIES)),
            Key(
                "What makes the rows: a function of psycopg.rows.", "dict_row", default="tuple_row"
            ),
        ],
        "cursor_factory": Annotated[
            str,
            one_of(CURSOR_FACTORIES),
            kind("choice", enum=list(CURSOR_FACTORIES)),
            Key(
                "The class of cursors, for async types with `Async` before it: ClientCursor puts "
                "parameters into the statement, RawCursor takes $1 for them.",
                "ClientCursor",
                default="Cursor",
            ),
        ],
        "prepare_threshold": Annotated[
            _NumberOrNull,
            Key(
                "After how many executions a statement is prepared on the server; null for never.",
                "10",
                default=PREPARE_THRESHOLD,
            ),
        ],
        "prepared_max": Annotated[
            _NumberOrNull,
            Key(
                "How many prepared statements a connection keeps; null for any number.",
                "500",
                default=PREPARED_MAX,
            ),
        ],
    }


#: In pool sections of pgmonkey 4.0: what psycopg_pool passed on to psycopg (see pool_kwargs.py).
KWARGS: Final = "kwargs"
#: The keys of `connection_settings` that are settings of psycopg.
PSYCOPG_KEYS: Final = tuple(_psycopg_fields())
#: Those that `psycopg.connect` does not take: they are set on a connection.
NOT_TO_CONNECT: Final = frozenset(PSYCOPG_KEYS) - {"autocommit", "prepare_threshold"}


def _connection_section() -> Any:
    fields = {name: _keyword_type(keyword) for name, keyword in keywords().items()}
    # The loader takes it apart: behind it there are only the keys that it stands for.
    fields["url"] = Annotated[
        InstanceOf[Secret],
        kind("text", sensitive=True, only="url"),
        Key(
            "A URI of libpq, or a connection string; other keys override its parts.",
            "${DATABASE_URL}",
        ),
    ]
    fields |= _psycopg_fields()
    make: Any = TypedDict  # the keywords are those of the libpq that is installed
    section = make("ConnectionSection", fields, total=False)
    section.__pydantic_config__ = _CONFIG
    return section


if TYPE_CHECKING:
    ConnectionSection = dict[str, Any]
else:
    ConnectionSection = _connection_section()


# ---- pool_settings and async_pool_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Hold the settings of the pool of one connection type. Times are in seconds."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    min_size: Annotated[
        int,
        Integer(0, 1000),
        Key("How many connections the pool keeps open; at most max_size.", "2", "resize"),
    ] = 1
    max_size: Annotated[
        int,
        Integer(1, 1000),
        Key(
            "How many connections the pool opens at most; default: 10, or min_size if it is larger.",
            "10",
            "resize",
        ),
    ] = 10
    timeout: Annotated[
        Seconds,
        Key("How long a checkout may wait; by default the database's timeout.", "5s", "nothing"),
    ] = 30.0
    check_on_checkout: Annotated[
        Flag,
        Key(
            "Whether each checkout pings the server; default: that of the database.",
            "true",
            "nothing",
        ),
    ] = False
    max_waiting: Annotated[
        int,
        Integer(0, 1_000_000),
        Key("How many clients may wait; the next one fails at once. 0: no limit.", "50", "nothing"),
    ] = 0
    max_idle: Annotated[
        Seconds,
        Key("How long a connection above min_size may stay unused.", "10min", "new_pool"),
    ] = 600.0
    max_lifetime: Annotated[
        Seconds, Key("How old a connection may become before it is replaced.", "1h", "new_pool")
    ] = 3600.0
    reconnect_timeout: Annotated[
        SecondsOrZero,
        Key(
            "No effect; for files of pgmonkey 4.0. Connects are tried at least once a second.",
            "5s",
            "nothing",
        ),
    ] = 5.0
    num_workers: Annotated[
        int,
        Integer(1, 100),
        Key("How many workers open connections in the background.", "1", "new_pool"),
    ] = 1


# ---- the file


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class DatabaseFile:
    """Declare one PostgreSQL database."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    connection_type: Annotated[
        Annotated[ConnectionType, one_of(CONNECTION_TYPES)],
        Key("The type that `get(name)` returns by default.", "pool", "nothing"),
    ] = "normal"
    description: Annotated[
        Text,
        AfterValidator(mask_urls),
        Key("What the database is for; on the status page.", "orders", "nothing"),
    ] = ""
    connection_settings: Annotated[
        ConnectionSection, Key("Where the database is and how to log in.", effect="reconnect")
    ]
    pool_settings: Annotated[PoolSettings, Key("The pool of type pool.")] = PoolSettings()
    async_pool_settings: Annotated[PoolSettings, Key("The pool of type async_pool.")] = (
        PoolSettings()
    )
    sync_settings: Annotated[
        SessionSettings,
        Key("Session settings of normal and pool.", {"statement_timeout": "30s"}, "reconnect"),
    ] = field(default_factory=dict)
    async_settings: Annotated[
        SessionSettings,
        Key("Session settings of async and async_pool.", {"statement_timeout": "30s"}, "reconnect"),
    ] = field(default_factory=dict)
    timeout: Annotated[
        Seconds, Key("How long a checkout may wait, for all types.", "5s", "nothing")
    ] = 30.0
    check_on_checkout: Annotated[
        Flag, Key("Whether each checkout pings the server, for all types.", "true", "nothing")
    ] = False
    pooler: Annotated[
        Annotated[Pooler, one_of(get_args(Pooler))],
        Key(
            "What is between this process and the server: nothing, or PgBouncer with transaction "
            "pooling (no session settings, no options; no prepared statements unless "
            "prepare_threshold is set).",
            "pgbouncer",
            "reconnect",
        ),
    ] = "none"
    reset_on_return: Annotated[
        Flag,
        Key(
            "Whether the session of a connection that comes back is reset (`DISCARD ALL`, but "
            "prepared statements stay). Costs one round trip for each checkout.",
            "true",
            "reconnect",
        ),
    ] = False
    required: Annotated[
        Flag,
        Key("Whether the service is ready only once it reached this database.", "false", "nothing"),
    ] = True
    leak_detection: Annotated[
        SecondsOrOff,
        Key("After how long a checkout is reported as leaked; by default never.", "30s", "nothing"),
    ] = None
    leak_stack: Annotated[
        Flag,
        Key(
            "Whether the report of a leak has the stack of its borrower; costs some microseconds "
            "for each checkout.",
            "true",
            "nothing",
        ),
    ] = False
    drain_timeout: Annotated[
        Seconds,
        Key(
            "After how long the holders of replaced connections are reported; nothing is cut.",
            "60s",
            "nothing",
        ),
    ] = 60.0
    max_connections: Annotated[
        Annotated[int, Integer(1, 1_000_000)] | None,
        Key(
            "How many connections this process may have to the server (host and port), for all "
            "databases together; by default any number. Write it in _defaults.yaml.",
            "80",
            "nothing",
        ),
    ] = None
    revision: Annotated[
        Annotated[Text, AfterValidator(mask_urls)] | None,
        Key("The version of the secrets, to compare a fleet; not secret.", "v7", "nothing"),
    ] = None


# ---- the declarations, walked

Hints = Mapping[str, Any]


@cache
def _hints(section: Any) -> Hints:
    """Return the annotation of each key of a class."""
    return {
        name: hint
        for name, hint in get_type_hints(section, include_extras=True).items()
        if any(isinstance(one, Key) for one in getattr(hint, "__metadata__", ()))
    }


def _key_of(hint: Any) -> Key:
    return next(one for one in hint.__metadata__ if isinstance(one, Key))


def _is_section(hint: Any) -> bool:
    kind = hint.__origin__
    return is_dataclass(kind) or is_typeddict(kind) or getattr(kind, "__origin__", None) is dict


#: Every key at the top of a file.
KEYS: Final = tuple(_hints(DatabaseFile))
#: What the keys at the top begin with that are the user's own, and ignored.
OWN: Final = "x-"
#: Those whose values are mappings.
SECTIONS: Final = frozenset(key for key in KEYS if _is_section(_hints(DatabaseFile)[key]))
POOL_KEYS: Final = tuple(_hints(PoolSettings))
POOL_SECTIONS: Final = tuple(
    key for key in KEYS if _hints(DatabaseFile)[key].__origin__ is PoolSettings
)
#: The sections whose values are dictionaries.
MAPPINGS: Final = tuple(key for key in KEYS if key in SECTIONS and key not in POOL_SECTIONS)
SESSION_SECTIONS: Final = tuple(key for key in MAPPINGS if key != "connection_settings")
#: The keys that a pool takes from its database if its own section does not give them.
INHERITED: Final = tuple(key for key in POOL_KEYS if key in KEYS)
#: Returns the values of those keys of a file.
inherited: Final = attrgetter(*INHERITED)


def hints_of(path: KeyPath) -> Hints:
    """Return the annotations of the keys at the top or in a section; none where any key is fine."""
    if not path:
        return _hints(DatabaseFile)
    if len(path) == 1 and path[0] in SECTIONS:
        section = _hints(DatabaseFile)[str(path[0])].__origin__
        return _hints(section) if is_dataclass(section) or is_typeddict(section) else {}
    if len(path) == 2 and path[0] in POOL_SECTIONS and path[1] == KWARGS:
        return {key: hints_of(("connection_settings",))[key] for key in PSYCOPG_KEYS}
    return {}


#: Where null is a value, not the absence of one.
NULLABLE: Final[frozenset[KeyPath]] = frozenset(
    (*section, key)
    for section in [(one,) for one in SECTIONS] + [(one, KWARGS) for one in POOL_SECTIONS]
    for key, hint in hints_of(section).items()
    if type(None) in get_args(hint.__origin__)
)


@cache
def effect_of(key: str) -> Effect:
    """Return what a change of a dotted key does, such as `pool_settings.max_size`."""
    section, _, name = key.partition(".")
    effect = _key_of(_hints(DatabaseFile)[section]).effect
    if effect is None:
        effect = _key_of(hints_of((section,))[name]).effect
    if effect is None:
        raise TypeError(f"the declaration of {key} has no effect")
    return effect


# ---- validation

# One error of pydantic, without the input: type, place (`loc`) and context.
Details = Mapping[str, Any]


@cache
def _validator() -> Any:
    """Make the validator at its first use: `import pgmonkey` must not wait for it."""
    return TypeAdapter(DatabaseFile).validator


def validate(tree: Mapping[str, Any]) -> DatabaseFile | Sequence[Details]:
    """Return a resolved document as a file with effective pool settings, or all errors of it."""
    try:
        file: DatabaseFile = _validator().validate_python(tree)
    except ValidationError as error:
        return error.errors(include_url=False, include_input=False)
    below = inherited(file)
    for name in POOL_SECTIONS:
        pool = effective(getattr(file, name), tuple(tree.get(name) or ()), below)
        object.__setattr__(file, name, pool)  # frozen, but still ours alone
    return file


@lru_cache(maxsize=1024)  # a thousand databases mostly have the same few pools
def effective(
    section: PoolSettings, given: tuple[str, ...], below: tuple[Any, ...]
) -> PoolSettings:
    """Return the settings of a pool with the keys filled in that its section does not give.

    `below` are the values of the database for the keys of `INHERITED`.
    """
    filled = dict(zip(INHERITED, below, strict=True))
    if "max_size" not in given:
        filled["max_size"] = max(section.max_size, section.min_size)
    elif "min_size" not in given:
        filled["min_size"] = min(section.min_size, section.max_size)
    return replace(section, **{key: filled[key] for key in filled.keys() - set(given)})


def typed_value(path: KeyPath, value: Any) -> tuple[Any, Details | None]:
    """Return the value of one key with the type of that key, or an error of pydantic."""
    adapter = _adapter(path)
    if adapter is None:
        return value, None
    try:
        return adapter.validate_python(value), None
    except ValidationError as error:
        return None, error.errors(include_url=False, include_input=False)[0]


@cache
def _adapter(path: KeyPath) -> TypeAdapter[Any] | None:
    key = path[-1]
    hint = hints_of(path[:-1]).get(str(key))
    if hint is None or _is_section(hint) or is_sensitive(str(key)):
        return None
    return TypeAdapter(hint)
