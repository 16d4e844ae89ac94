"""The types of values: how the text of a file becomes a number, a flag or a duration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, GetCoreSchemaHandler, Strict, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_before_validator_function

from pgmonkey.config.durations import EXPECTED, DurationError, parse_duration
from pgmonkey.config.libpq import SETTING_NAME
from pgmonkey.config.redaction import Secret
from pgmonkey.errors import did_you_mean

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,12}")
# A parser of YAML 1.2 leaves `yes` and `off` as text, one of 1.1 makes them booleans.
TRUE: Final = ("true", "yes", "on", "1")
FALSE: Final = ("false", "no", "off", "0")
OFF: Final = ("off", "none", "no", "false")


def invalid(code: str, message: str, hint: str | None = None) -> PydanticCustomError:
    """Return the error that a validator raises, with the code, message and hint of a problem."""
    # The text travels in the context: a template would interpret braces.
    context = {"code": code, "message": message, "hint": hint}
    return PydanticCustomError("pgmonkey", "invalid", context)


def kind(name: str, **more: Any) -> WithJsonSchema:
    """Name the kind of a value; json_schema.py translates it to JSON Schema."""
    return WithJsonSchema({"kind": name, **more})


def to_text(value: Any) -> str:
    """Return a value that must be text."""
    if isinstance(value, str):
        return value
    found = "a list" if isinstance(value, list) else "a mapping"
    raise invalid("config.type", f"expected text, got {found}")


def to_flag(value: Any) -> bool:
    """Return the flag that a value must be."""
    word = value.lower() if isinstance(value, str) else ""
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise invalid("config.type", "expected true or false")


def to_integer(value: Any, low: int, high: int) -> int:
    """Return the number that a value must be, within these bounds."""
    if isinstance(value, str):
        return _number(value, low, high)
    raise invalid("config.type", f"expected an integer from {low} to {high}")


@lru_cache(maxsize=1024)  # a thousand databases mostly have the same few
def _number(text: str, low: int, high: int) -> int:
    expected = f"expected an integer from {low} to {high}"
    if not _INTEGER.fullmatch(text):
        raise invalid("config.type", expected, "write digits only")
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits.startswith("0"):
        raise invalid("config.type", f"{expected}, got one with a leading zero", "remove the zero")
    number = int(text)
    if not low <= number <= high:
        raise invalid("config.range", expected)
    return number


def to_seconds(value: Any, *, zero: bool = False) -> float:
    """Return the seconds of a value that must be a duration; zero only where it is allowed."""
    if not isinstance(value, str):
        raise invalid("config.type", EXPECTED)
    try:
        seconds = parse_duration(value)
    except DurationError as error:
        message, hint = str(error), error.hint
    else:
        if seconds > 0 or zero:
            return seconds
        message, hint = "expected a duration longer than zero", None
    raise invalid("config.duration", message, hint)


def _to_seconds_or_off(value: Any) -> float | None:
    if isinstance(value, str) and value.lower() in OFF:
        return None
    return to_seconds(value)


def _to_setting(value: Any) -> str | Secret:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, Secret) else to_text(value)


def _to_setting_name(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(SETTING_NAME, value):
        return value
    raise invalid("config.setting_name", "this is not a name of a session setting")


def one_of(choices: tuple[str, ...]) -> BeforeValidator:
    """Return the validator of a value that must be one of a few words."""
    known = frozenset(choices)

    def choice(value: Any) -> str:
        if isinstance(value, str) and value in known:
            return value
        hint = did_you_mean(value.lower() if isinstance(value, str) else "", choices)
        raise invalid("config.choice", f"expected one of {', '.join(filter(None, choices))}", hint)

    return BeforeValidator(choice)


@dataclass(frozen=True, slots=True)
class Integer:
    """Annotate an integer with its bounds, for the validation and for the schema."""

    low: int
    high: int

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_before_validator_function(
            partial(to_integer, low=self.low, high=self.high), handler(source)
        )

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        return {"kind": "integer", "minimum": self.low, "maximum": self.high}


Text = Annotated[str, Strict(), kind("text")]
Flag = Annotated[bool, BeforeValidator(to_flag), kind("flag")]
Seconds = Annotated[float, BeforeValidator(to_seconds), kind("duration")]
SecondsOrZero = Annotated[
    float, BeforeValidator(partial(to_seconds, zero=True)), kind("duration", zero=True)
]
SecondsOrOff = Annotated[float | None, BeforeValidator(_to_seconds_or_off), kind("duration_or_off")]
SessionSettings = dict[
    Annotated[str, BeforeValidator(_to_setting_name)],
    Annotated[Any, BeforeValidator(_to_setting), kind("texts")],
]
