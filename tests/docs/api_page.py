"""The page of the Python API, made from the docstrings and signatures of what is public."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from typing import Any, Final

import pgmonkey
from pgmonkey import errors
from pgmonkey.pool.handle import Block, Database
from pgmonkey.registry.override import Override
from pgmonkey.telemetry.events import Event
from pgmonkey.telemetry.status import (
    CheckoutStatus,
    DatabaseStatus,
    PoolStatus,
    ProbeStatus,
    RegistryStatus,
)
from pgmonkey.telemetry.timings import Durations

_INTRODUCTION: Final = """\
# Python API

Everything that is public. `from pgmonkey import ...` gives the names of this page, except the records under
[Status](#status), which `registry.status()` makes, and those that are shown with their module.

In the examples `registry` is `Registry("registry.d")`, and `manager` is `PGConnectionManager()`. The tests run every example.
The page is made from the docstrings.

[Configuration](configuration.md) has the files, [Checkouts](checkouts.md) what a block promises, and
[Reload](reload.md) what happens when a file changes.
"""

#: What a chapter begins with.
_BEFORE: Final = {
    "Frameworks": "[Django](recipes/django.md) has engines, `pgmonkey.contrib.django` and `pgmonkey.contrib.django.postgis`, and"
    " one function to call. The guides to [FastAPI and Starlette](recipes/fastapi.md), [Flask](recipes/flask.md) and"
    " [SQLAlchemy](recipes/sqlalchemy.md) show the rest at work.",
    "Fixtures of pytest": "pytest finds them by itself. [Tests](recipes/testing.md#fixtures-for-pytest) has the setting"
    " `pgmonkey_registry`, which names the registry, and examples.",
}
#: Longer signatures have a line for each argument.
_WIDTH: Final = 84
#: Public names for types that are not public.
_TYPES: Final = {
    "Borrowed": "Block",
    "BorrowedByHand": "Connection",
    "BorrowedCursor": "Block",
    "Configure": "Callable[[Connection], object]",
    "ConnectionType": "str",
    "DatabaseState": "str",
    "Notes": "Iterator[Notify | Gap]",
    "Outcome": "str",
    "Reason": "str",
    "ResolverFunction": "Callable[[str], Any]",
    "Trust": "str",
}


@dataclass(frozen=True)
class Entry:
    """One thing of the page: how it is written, the object, and which of its names are documented."""

    title: str
    subject: Any
    members: tuple[str, ...] = ()
    kind: str = "function"


def _of(subject: type, *, members: Iterable[str] | None = None, called: bool = False) -> Entry:
    """Return the entry of a class; its members are those that have a docstring and no underscore.

    Args:
        subject: The class.
        members: Other names.
        called: Whether an application makes it by calling the class.
    """
    if members is None:
        members = [
            name
            for name, value in vars(subject).items()
            if not name.startswith("_")
            and (inspect.isfunction(value) or isinstance(value, property))
            and value.__doc__
        ]
    kind = "error" if issubclass(subject, Exception) else "function" if called else "class"
    if is_dataclass(subject) or hasattr(subject, "_fields"):
        kind = "record"
    return Entry(subject.__name__, subject, tuple(members), kind)


def _functions(module: str, *names: str) -> list[Entry]:
    home = import_module(module)
    return [Entry(f"{module}.{name}", getattr(home, name)) for name in names]


def _errors() -> Iterator[type]:
    """Yield the public errors, each after what it derives from."""
    found = [getattr(pgmonkey, name) for name in pgmonkey.__all__]
    public = [one for one in found if isinstance(one, type) and issubclass(one, Exception)]

    def below(parent: type) -> Iterator[type]:
        yield parent
        for one in public:
            if parent in one.__bases__:
                yield from below(one)

    yield from below(pgmonkey.PgmonkeyError)


def chapters() -> Mapping[str, list[Entry]]:
    """Return what the page has, by chapter."""
    from pgmonkey.pool.handle import _PUBLIC

    handle = [name for name in _PUBLIC if name not in ("name", "connection_type")]
    return {
        "The registry": [
            _of(pgmonkey.Registry, called=True),
            _of(pgmonkey.ReloadReport),
            _of(pgmonkey.Change),
            _of(Override, members=()),
        ],
        "Handles": [
            _of(Database, members=handle),
            _of(Block, members=()),
            _of(pgmonkey.Listener),
            _of(pgmonkey.Gap),
        ],
        "Errors": [*map(_of, _errors()), _of(pgmonkey.Problem)],
        "Credentials and variables": [
            _of(pgmonkey.Credentials),
            Entry("read_env_file", pgmonkey.read_env_file),
        ],
        "Status": [
            *map(_of, (RegistryStatus, DatabaseStatus, PoolStatus, CheckoutStatus, ProbeStatus)),
            _of(Durations),
        ],
        "Events": [*_functions("pgmonkey.events", "recent", "dropped"), _of(Event)],
        "The API of 4.0": [
            _of(pgmonkey.PGConnectionManager, called=True),
            Entry("load_config", pgmonkey.load_config),
            Entry("redact_config", pgmonkey.redact_config),
        ],
        "Frameworks": [
            *_functions("pgmonkey.contrib.fastapi", "Connection"),
            *_functions("pgmonkey.contrib.starlette", "lifespan"),
            *_functions("pgmonkey.contrib.flask", "init_app", "connection"),
            *_functions("pgmonkey.contrib.sqlalchemy", "create_engine", "create_async_engine"),
            *_functions("pgmonkey.contrib.django", "get_registry"),
            *_functions("pgmonkey.service", "status_app"),
        ],
        "Fixtures of pytest": [
            Entry(name, getattr(import_module("pgmonkey.contrib.pytest"), name), kind="fixture")
            for name in ("pgmonkey", "pgmonkey_registry", "pgmonkey_server", "pgmonkey_databases")
        ],
    }


def page() -> str:
    """Return the page."""
    found = chapters()
    anchors = {
        name: _anchor(title)
        for entries in found.values()
        for entry in entries
        if entry.kind != "fixture"  # one has the name of the package
        for name, title in _titles(entry)
    }
    lines = [_INTRODUCTION]
    for chapter, entries in found.items():
        lines += [f"## {chapter}", ""]
        if chapter in _BEFORE:
            lines += [_BEFORE[chapter], ""]
        if chapter == "Errors":
            _, tree = (errors.__doc__ or "").split("\n\n", 1)
            lines += ["What to catch:", "", "```text", tree.strip(), "```", ""]
        for entry in entries:
            lines += _entry(entry)
    return _linked("\n".join(lines).rstrip() + "\n", anchors)


def _titles(entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield the names under which a text may refer to an entry or a member, each with its heading."""
    yield entry.title, entry.title
    for member in entry.members:
        yield f"{entry.title}.{member}", f"{entry.title}.{member}"


def _anchor(title: str) -> str:
    return re.sub(r"[^\w-]", "", title.lower())


def _linked(text: str, anchors: Mapping[str, str]) -> str:
    """Make a link of every name in backticks that has a heading, outside of code and headings."""
    parts = re.split(r"(^```.*?^```$|^#.*?$)", text, flags=re.DOTALL | re.MULTILINE)

    def link(match: re.Match[str]) -> str:
        name = match[1]
        return f"[`{name}`](#{anchors[name]})" if name in anchors else match[0]

    parts[::2] = [re.sub(r"(?<!\[)`([\w.]+)`", link, part) for part in parts[::2]]
    return "".join(parts)


def _entry(entry: Entry) -> Iterator[str]:
    yield f"### {entry.title}"
    yield ""
    subject = entry.subject
    if entry.kind == "error":
        bases = [base for base in subject.__bases__ if base is not Exception]
        if bases:
            yield "Derives from " + ", ".join(f"`{_name(base)}`" for base in bases) + "."
            yield ""
    if entry.kind == "function":
        yield from _signature(entry.title.rpartition(".")[2], inspect.signature(subject))
    yield from _described(subject, entry)
    for member in entry.members:
        yield from _member(entry, member)


def _name(base: type) -> str:
    if base.__module__.startswith("pgmonkey") or base.__module__ == "builtins":
        return base.__name__
    return f"{base.__module__.partition('.')[0]}.{base.__name__}"


def _member(entry: Entry, name: str) -> Iterator[str]:
    value = inspect.getattr_static(entry.subject, name)
    yield f"#### {entry.title}.{name}"
    yield ""
    if isinstance(value, property):
        yield from _described(value.fget, Entry(f"{entry.title}.{name}", value, kind="property"))
        return
    signature = inspect.signature(value)
    without_self = [one for one in signature.parameters.values() if one.name != "self"]
    prefix = "async " if inspect.iscoroutinefunction(value) else ""
    yield from _signature(prefix + name, signature.replace(parameters=without_self))
    yield from _described(value, Entry(f"{entry.title}.{name}", value))


def _signature(name: str, signature: inspect.Signature) -> Iterator[str]:
    """Yield a signature without its types, which the list of the arguments has."""
    shown = [
        one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()
    ]
    bare = str(inspect.Signature(shown))
    if bare.count("prometheus_client.registry"):
        bare = re.sub(r"<prometheus_client[^>]*>", "prometheus_client.REGISTRY", bare)
    line = f"{name}{bare}"
    if len(line) > _WIDTH:
        inner = re.sub(r", (?=[\w*/])", ",\n    ", bare[1:-1])
        line = f"{name}(\n    {inner},\n)"
    result = signature.return_annotation
    if result not in (inspect.Signature.empty, None, "None") and not name[0].isupper():
        line += f" -> {_plain(str(result))}"
    yield from ("```python3", line, "```", "")


def _described(subject: Any, entry: Entry) -> Iterator[str]:
    """Yield what a docstring says; whatever has a name in the code must have an explanation."""
    text, sections = _parsed(inspect.getdoc(subject) or "")
    if not text:
        raise ValueError(f"{entry.title} has no docstring")
    yield text
    yield ""
    given = dict(_items(sections.get("Args", "")))
    attributes = dict(_items(sections.get("Attributes", "")))
    if entry.kind == "record":
        yield from _list(_fields(subject), {**given, **attributes}, entry.title)
    elif entry.kind == "error":
        own = vars(subject).get("__init__")
        if own is not None:
            parameters = inspect.signature(own).parameters
            yield from ("Attributes:", "")
            names = [(one, _types(two)) for one, two in parameters.items() if one != "self"]
            yield from _list(names, {**given, **attributes}, entry.title)
    elif entry.kind == "function":
        parameters = inspect.signature(subject).parameters
        names = [(name, _types(one)) for name, one in parameters.items() if name != "self"]
        yield from _list(names, given, entry.title)
    if attributes and entry.kind == "class":
        yield from ("Attributes:", "")
        yield from _list([(name, "") for name in attributes], attributes, entry.title)
    if "Returns" in sections:
        yield from (f"**Returns:** {_flat(sections['Returns'])}", "")
    if "Raises" in sections:
        yield from ("**Raises:**", "")
        for names, why in _items(sections["Raises"]):
            shown = ", ".join(f"`{name.strip()}`" for name in names.split(","))
            yield f"- {shown}: {why}"
        yield ""
    if "Example" in sections:
        yield from _example(sections["Example"])


def _parsed(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text and its sections."""
    parts = re.split(r"^(Args|Attributes|Returns|Raises|Example):$", text, flags=re.MULTILINE)
    sections = {
        name: inspect.cleandoc("\n" + body)
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }
    return parts[0].strip(), sections


def _items(section: str) -> Iterator[tuple[str, str]]:
    """Yield the names of a section, each with its explanation in one line."""
    for item in re.split(r"\n(?=\S)", section.strip()):
        name, colon, text = item.partition(":")
        if colon:
            yield name, _flat(text)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _types(parameter: inspect.Parameter) -> str:
    shown = "" if parameter.annotation is inspect.Parameter.empty else str(parameter.annotation)
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        shown = "by name"
    return shown


def _plain(annotation: str) -> str:
    """Return a type in public names."""
    return re.sub(r"(?<![\w.])\w+", lambda match: _TYPES.get(match[0], match[0]), annotation)


def _fields(subject: Any) -> list[tuple[str, str]]:
    """Return the public fields of a record, with their types."""
    if is_dataclass(subject):
        found = [(one.name, str(one.type)) for one in fields(subject)]
    else:
        annotations = inspect.get_annotations(subject)
        found = [
            (name, getattr(kind, "__forward_arg__", str(kind)))
            for name, kind in annotations.items()
        ]
    return [(name, kind) for name, kind in found if name != "redacted"]


def _list(
    names: Iterable[tuple[str, str]], explained: Mapping[str, str], title: str
) -> Iterator[str]:
    names = list(names)
    for name, kind in names:
        if name not in explained:
            raise ValueError(f"{title}: {name} has no explanation")
        what = {"by name": " (by name)", "": ""}.get(kind, f" (`{_plain(kind)}`)")
        yield f"- `{name}`{what}: {explained[name]}"
    if names:
        yield ""


def _example(section: str) -> Iterator[str]:
    """Yield an example; its sentences stay sentences."""
    for part in section.strip().split("\n\n"):
        if part.startswith(">>>"):
            yield from ("```pycon", part, "```", "")
        else:
            yield from (part, "")
