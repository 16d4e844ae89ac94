"""The reference page: every key of a database file, made from the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pgmonkey.config.json_schema import libpq, schema
from pgmonkey.config.models import SECTIONS

_INTRODUCTION = """\
# Every key

This page has every key of a database file. [Configuration](configuration.md) explains how the keys work together.

Every value may be a [reference](configuration.md#references): `${NAME}` and its forms inside of text, or
`{from_env: NAME}`, `{from_file: PATH}` and `{from_file: PATH, json_key: NAME}`. `password` and `user` may be
[made on demand](configuration.md#credentials-made-on-demand). A key whose value is `null` or empty counts as absent.

`pgmonkey schema` prints the same as a JSON Schema (draft 7), for editors and validators:

```shell
pgmonkey schema > pgmonkey.schema.json
```

```yaml
# yaml-language-server: $schema=pgmonkey.schema.json
connection_settings: {host: localhost, dbname: orders, user: app}
```
"""


def page() -> str:
    """Return the page."""
    return "\n".join(_lines(schema()))


def _lines(whole: Mapping[str, Any]) -> Iterator[str]:
    yield _INTRODUCTION
    yield "## Top level"
    yield ""
    properties = whole["properties"]
    yield from _table({key: found for key, found in properties.items() if key not in SECTIONS})
    for key, found in properties.items():
        if key not in SECTIONS:
            continue
        yield f"## {key}"
        yield ""
        yield found["description"]
        yield ""
        if key == "connection_settings":
            yield libpq()
            yield ""
            yield (
                "Where the meaning is only the name, the"
                " [documentation of libpq](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS)"
                " explains the parameter."
            )
            yield ""
        if key == "async_pool_settings":
            yield "The keys of [pool_settings](#pool_settings)."
            yield ""
        elif "properties" in found:
            yield from _table(found["properties"])
        else:
            yield "Any setting of the server under its own name; text, or a list of texts."
            for example in found.get("examples", ()):
                for name, value in example.items():
                    yield f"For example `{name}: {value}`."
            yield ""


def _table(properties: Mapping[str, Any]) -> Iterator[str]:
    yield "| key | value | default | meaning | example |"
    yield "| --- | --- | --- | --- | --- |"
    for key, found in properties.items():
        default = _shown(found["default"]) if "default" in found else ""
        example = ", ".join(_shown(one) for one in found.get("examples", ()))
        cells = (f"`{key}`", found["title"], default, found["description"], example)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _shown(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:g}s"  # all are durations
    if value == "":
        return "empty"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
