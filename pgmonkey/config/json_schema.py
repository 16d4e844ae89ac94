"""The JSON Schema (draft 7) of a database file, for editors and validators.

It is made from the models. No key is required, because `_defaults.yaml` may hold any part of a
database. `pgmonkey check` checks the rules between values, and the files on this machine.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from psycopg import pq
from pydantic import TypeAdapter

from pgmonkey.config.libpq import SETTING_NAME
from pgmonkey.config.models import (
    INHERITED,
    KWARGS,
    OWN,
    POOL_SECTIONS,
    PSYCOPG_KEYS,
    SECTIONS,
    DatabaseFile,
)
from pgmonkey.config.types import FALSE, OFF, TRUE

Schema = dict[str, Any]

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
#: Its identity, wherever it is published. The documentation has it as `pgmonkey.schema.json`.
IDENTITY: Final = "urn:pgmonkey:schema:database"

_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
# Every "${" is an escaped one, or begins a reference of a form that there is.
_TEXT: Final = rf"^(?:[^$\x00]|\$(?!\{{)|\$\$\{{|\$\{{{_NAME}(?:\}}|:-|-|:\?))*$"
_NO_DEFAULT: Final = rf"^(?:[^$\x00]|\$(?!\{{)|\$\$\{{|\$\{{{_NAME}(?:\}}|:\?))*$"
_REFERENCE: Final = rf"\$\{{{_NAME}(?:\}}|:-|-|:\?)"
_FORMS: Final = "${NAME}, ${NAME:-default}, ${NAME-default} or ${NAME:?message}"
_REFERENCES: Final = {
    "from_env": "The name of an environment variable.",
    "from_file": "The path of a file, relative to this one.",
    "json_key": "The member of the JSON document in this file; with dots, of members of members.",
}
_ARGUMENT: Final = {"type": ["string", "number", "boolean"]}
_ON_DEMAND: Final[Mapping[str, Mapping[str, Any]]] = {
    "from_command": {
        "$comment": "A program whose output is the password, run when a connection is made: "
        "{from_command: [PROGRAM, ARGUMENT]}.",
        "properties": {
            "from_command": {
                "description": "The program and its arguments; there is no shell.",
                "type": "array",
                "items": _ARGUMENT,
                "minItems": 1,
            }
        },
    },
    "from_resolver": {
        "$comment": "A function of the application, called when a connection is made: "
        "{from_resolver: NAME, key: KEY}.",
        "properties": {
            "from_resolver": {"description": "Its name.", "type": "string", "minLength": 1},
            "key": {"description": "What it is called with.", **_ARGUMENT},
        },
    },
}
_INTEGER: Final = "^(?:[+-]?[1-9][0-9]{0,11}|[+-]?0)$"
_NUMBER: Final = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_ZERO: Final = r"[0.]+"
_UNITS: Final = "ms|s|min|h|d"
_UNIT: Final = f"(?:[ ]*(?:{_UNITS}))?"
_DURATION: Final = "a duration, such as 500ms, 30s, 5min, 2h or 1d"
_URL: Final = "^(?!postgres(?:ql)?://)"
_ANY_URL: Final = "^(?![^$]*://)"
_HIDDEN: Final = r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff]"
_NO_WHITE_SPACE: Final = rf"^(?!{_HIDDEN})(?![\s\S]*{_HIDDEN}$)"
_NO_PORT: Final = r"^(?![^$:/@,]*:[0-9]*(?:,|$))(?![^$/@]*[\s\[\]])"
_TRIMMED: Final = {_NO_WHITE_SPACE: "no white space before or after it"}
# The patterns of a kind of text, with what they expect.
_ONLY: Final[Mapping[str, Mapping[str, str]]] = {
    "user": _TRIMMED,
    "dbname": {_URL: "the name of a database, not a URL", **_TRIMMED},
    "host": {
        _ANY_URL: "a host, not a URL",
        **_TRIMMED,
        _NO_PORT: "a host alone: the port has a key of its own, and an address no brackets",
    },
    "url": {
        r"^\s*(?:postgres(?:ql)?://|\$\{|[a-z_]+\s*=)": "postgresql://... or key=value pairs",
    },
}
_SECTION: Final = "keys with their values"
_LONGEST: Final = 10 * 365 * 86400  # seconds


def libpq() -> str:
    """Return the line that names the libpq whose parameters the schema has."""
    return f"Every parameter of libpq {pq.version() // 10000}, and some of psycopg."


def schema() -> Schema:
    """Return the schema, as a new dictionary.

    Example:
        >>> schema()["properties"]["connection_type"]["default"]
        'normal'
    """
    made = TypeAdapter(DatabaseFile).json_schema()
    definitions = made["$defs"]
    properties = {
        key: _section(found, definitions) if key in SECTIONS else _value(found)
        for key, found in made["properties"].items()
    }
    connection = properties["connection_settings"]["properties"]
    connection["password"]["anyOf"] += [{"$ref": f"#/definitions/{kind}"} for kind in _ON_DEMAND]
    connection["user"]["anyOf"].append({"$ref": "#/definitions/from_resolver"})
    kwargs = {
        "title": "settings of psycopg",
        "description": "For files of pgmonkey 4.0: write its keys under connection_settings.",
        "type": ["object", "null"],
        "properties": {key: connection[key] for key in PSYCOPG_KEYS},
        "additionalProperties": False,
    }
    for section in POOL_SECTIONS:
        properties[section]["properties"][KWARGS] = kwargs
    return {
        "$schema": DRAFT,
        "$id": IDENTITY,
        "$comment": libpq(),
        "title": "A database of pgmonkey",
        "description": inspect.getdoc(DatabaseFile),  # pydantic has it from 2.13 on
        "type": "object",
        "properties": properties,
        "patternProperties": {f"^{OWN}": {"description": "Your own: pgmonkey ignores it."}},
        "additionalProperties": False,
        "definitions": {
            "interpolation": {
                "$comment": f"A text with {_FORMS}.",
                "type": "string",
                **_pattern(_REFERENCE, "a reference such as ${NAME}"),
            },
            "reference": {
                # An editor shows the description of the key, not one of the form of its value.
                "$comment": "A variable, or a file, as the whole value: {from_env: NAME}, "
                "{from_file: PATH} or {from_file: PATH, json_key: NAME}.",
                "type": "object",
                "properties": {
                    kind: {"description": description, "type": "string", "minLength": 1}
                    for kind, description in _REFERENCES.items()
                },
                "additionalProperties": False,
                "oneOf": [{"required": ["from_env"]}, {"required": ["from_file"]}],
                "dependencies": {"json_key": ["from_file"]},
            },
            **{kind: _on_demand(kind, found) for kind, found in _ON_DEMAND.items()},
        },
    }


def _on_demand(kind: str, found: Mapping[str, Any]) -> Schema:
    """Return the schema of a reference that is read when a connection is made."""
    times = {
        key: {"description": description, **_untitled(_duration(zero=False, off=False))}
        for key, description in (
            ("refresh", "How long what it gives is used."),
            ("timeout", "How long it may take."),
        )
    }
    return {
        "$comment": found["$comment"],
        "type": "object",
        "properties": {**found["properties"], **times},
        "required": [kind],
        "additionalProperties": False,
    }


def _section(found: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """Return the schema of a section; an empty one is null in YAML."""
    section: Schema = {"title": _SECTION, "type": ["object", "null"]}
    section |= {key: found[key] for key in ("description", "examples") if key in found}
    reference = found.get("$ref", "").rpartition("/")[2]
    if reference:
        fields = definitions[reference]["properties"]
        section["properties"] = {key: _value(value) for key, value in fields.items()}
        for key in fields.keys() & set(INHERITED):
            del section["properties"][key]["default"]  # it is that of the database
        section["additionalProperties"] = False
    else:
        section["propertyNames"] = _pattern(f"^{SETTING_NAME}$", "the name of a session setting")
        section["additionalProperties"] = _value(found["additionalProperties"])
    return section


def _value(found: Mapping[str, Any]) -> Schema:
    """Return the schema of a value: as it is written, null, or a reference."""
    shown = ("description", "default", "examples")
    value: Schema = {key: found[key] for key in shown if found.get(key) is not None}
    hint = found["anyOf"][0] if "anyOf" in found else found
    if "examples" in value:
        value["examples"] = [_typed(one, hint) for one in value["examples"]]
    written = _written(hint)
    value["title"] = written.pop("title")
    if "pattern" in written and "patternErrorMessage" not in written:
        written |= _pattern(written["pattern"], value["title"])
    alternatives = [written, {"type": "null"}, {"$ref": "#/definitions/reference"}]
    if written.get("pattern") not in (_TEXT, _NO_DEFAULT):
        alternatives.append({"$ref": "#/definitions/interpolation"})
    value["anyOf"] = alternatives
    return value


def _typed(example: Any, hint: Mapping[str, Any]) -> Any:
    """Return an example as YAML reads it: an editor would put quotes around the text of a number."""
    match hint.get("kind"):
        case "flag":
            return {"true": True, "false": False, "1": True, "0": False}[example]
        case "integer" | "ports" | "integer_or_duration" | "duration" if example.isdigit():
            return int(example)
        case _:
            return example


def _pattern(pattern: str, expected: str) -> Schema:
    """Return a pattern with what an editor says of a text that does not match."""
    return {"pattern": pattern, "patternErrorMessage": f"expected {expected}"}


def _untitled(schema: Schema) -> Schema:
    """Return the schema of a part of a value: the title is that of its key."""
    title = schema.pop("title")
    if "pattern" in schema and "patternErrorMessage" not in schema:
        schema |= _pattern(schema["pattern"], title)
    return schema


def _written(hint: Mapping[str, Any]) -> Schema:
    """Return the schema of a kind of value; its title describes it in words."""
    kind = hint.get("kind", "choice")
    match kind:
        case "choice":
            values = hint["enum"]
            return {"title": "one of " + ", ".join(values), "enum": values}
        case "integer":
            low, high = hint["minimum"], hint["maximum"]
            return {
                "title": f"an integer from {low} to {high}",
                "type": ["integer", "string"],
                "minimum": low,
                "maximum": high,
                "pattern": _INTEGER,
            }
        case "integer_or_duration":
            bounds = {key: hint[key] for key in ("minimum", "maximum")}
            pattern = f"{_INTEGER}|^[ ]*{_NUMBER}[ ]*(?:{_UNITS})[ ]*$"
            return {
                "title": _DURATION,
                "type": ["integer", "string"],
                "pattern": pattern,
                **bounds,
            }
        case "flag":
            return {
                "title": "true or false",
                "type": ["boolean", "string", "integer"],
                "minimum": 0,
                "maximum": 1,
                "pattern": f"^(?:{_words(TRUE + FALSE)})$",
            }
        case "duration" | "duration_or_off":
            return _duration(zero=hint.get("zero", False), off=kind == "duration_or_off")
        case "ports":
            return _ports()
        case "texts":
            text = _text(hint)
            return {
                **text,
                "title": "text, or a list of texts",
                "type": [*text["type"], "array"],
                "items": {"anyOf": [_untitled({**text}), {"$ref": "#/definitions/reference"}]},
                "minItems": 1,
            }
        case _:
            return _text(hint)


def _text(hint: Mapping[str, Any]) -> Schema:
    """Return the schema of text, which may be a number or a boolean to YAML."""
    text: Schema = {
        "title": "the path of a file" if hint["kind"] == "file" else "text",
        "type": ["string", "number", "boolean"],
        **(
            _pattern(_NO_DEFAULT, "${NAME} or ${NAME:?message}; a secret has no default")
            if hint.get("sensitive")
            else _pattern(_TEXT, f"{_FORMS}; $${{ is a ${{ that stands for itself")
        ),
    }
    if hint["kind"] == "file":
        text["not"] = {"pattern": r"\n|-----BEGIN"}
    if patterns := _ONLY.get(hint.get("only", "")):
        text["minLength"] = 1
        text["allOf"] = [_pattern(pattern, expected) for pattern, expected in patterns.items()]
    return text


def _duration(*, zero: bool, off: bool) -> Schema:
    pattern = f"{_NUMBER}{_UNIT}" if zero else f"(?!{_ZERO}{_UNIT}[ ]*$){_NUMBER}{_UNIT}"
    schema: Schema = {
        "title": _DURATION,
        "type": ["string", "number"],
        ("minimum" if zero else "exclusiveMinimum"): 0,
        "maximum": _LONGEST,
        "pattern": rf"^[ ]*{pattern}[ ]*$",
    }
    if off:
        schema["title"] += ", or off"
        schema["type"] = ["string", "number", "boolean"]
        schema["not"] = {"const": True}
        schema["pattern"] = rf"^(?:[ ]*{pattern}[ ]*|{_words(OFF)})$"
    return schema


def _ports() -> Schema:
    return {
        "title": "an integer from 1 to 65535; several for several hosts",
        "type": ["integer", "string", "array"],
        "minimum": 1,
        "maximum": 65535,
        "pattern": r"^\+?[1-9][0-9]{0,4}$|^[^,]*(?:,[^,]*)+$",
        "items": {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 65535},
                {"type": "string"},
                {"$ref": "#/definitions/reference"},
            ]
        },
        "minItems": 1,
    }


def _words(words: tuple[str, ...]) -> str:
    """Return a pattern of words in any case; JSON Schema has no flag for that."""
    return "|".join(
        "".join(f"[{c.upper()}{c}]" if c.isalpha() else c for c in word) for word in words
    )
