"""The section connection_settings: every parameter of libpq, with the type of its value."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator, ConfigDict, Field, InstanceOf, Strict, WithJsonSchema
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
    invalid,
    kind,
    one_of,
    to_flag,
    to_integer,
    to_seconds,
    to_text,
)

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
