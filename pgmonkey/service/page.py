"""The status page, as HTML that needs no JavaScript.

The same templates serve the first view and every update: the script requests the page again and
applies the differences.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pgmonkey.config.durations import format_duration
from pgmonkey.config.explain import Value, format_value

_HERE: Final = Path(__file__).parent

#: The content security policy: its own style and script, and requests to its own host.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

#: The files beside the templates, by name, with their type.
ASSETS: Final[Mapping[str, tuple[bytes, str]]] = {
    name: ((_HERE / "static" / name).read_bytes(), content_type)
    for name, content_type in (
        ("page.css", "text/css; charset=utf-8"),
        ("page.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    )
}

_EVENTS: Final = 12  # on the overview
#: Fields of an event that the page shows elsewhere.
_SHOWN: Final = frozenset({"database", "connection_type", "problems"})

_STATES: Final = {
    "failed": "its file was never valid",
    "down": "cannot connect",
    "stale": "its files cannot be used; the last good configuration keeps serving",
    "ready": "open in this process",
    "idle": "not opened in this process",
}
_TROUBLE: Final = ("failed", "down", "stale")
#: Databases that the overview shows unless it is asked for all: a thousand are 710 KB, every two
#: seconds.
_AT_ONCE: Final = 100
#: Databases up to which there is nothing to search, and room for large cards.
_FEW: Final = 12
#: The sections of a configuration that only some types use.
_SECTIONS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "normal": ("sync_settings",),
    "pool": ("pool_settings", "sync_settings"),
    "async": ("async_settings",),
    "async_pool": ("async_pool_settings", "async_settings"),
}
_OF_TYPES: Final = frozenset(section for some in _SECTIONS_OF.values() for section in some)


class Choice(NamedTuple):
    """Say which databases the overview shows.

    Args:
        state: Only those in this state; empty: in any.
        name: Only those with this text in their name.
        everything: However many they are.
    """

    state: str = ""
    name: str = ""
    everything: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Choice:
        """Return the choice of a query.

        Raises `ValueError` if there is no such state.
        """
        state = query.get("state", "")
        if state and state not in _STATES:
            raise ValueError(f"state is one of {', '.join(_STATES)}")
        return cls(state, query.get("name", "").strip().lower(), bool(query.get("all")))

    def address(self, root: str) -> str:
        """Return the path and query of the page that shows it."""
        query = {"state": self.state, "name": self.name, "all": "1" if self.everything else ""}
        given = urlencode({key: value for key, value in query.items() if value})
        return f"{root}/?{given}" if given else f"{root}/"


class StatusPage:
    """Render the pages."""

    def __init__(self) -> None:
        environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(
            clock=lambda at: datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            iso=lambda at: datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
            seconds=format_duration,
            ago=_ago,
            words=_words,
            number=lambda value: f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
            below=lambda text, directory: text.replace(f"{directory}/", ""),
        )
        environment.globals.update(states=_STATES)
        self._overview = environment.get_template("overview.html")
        self._database = environment.get_template("database.html")

    def overview(
        self, root: str, report: Mapping[str, Any], events: Mapping[str, Any], choice: Choice
    ) -> str:
        """Return the page of all databases, of the bodies of /api/v1/databases and /api/v1/events.

        What needs attention comes first, the worst before the rest. `root` is the path that the
        application is mounted at.
        """
        databases = report["databases"]
        named = [one for one in databases if choice.name in one["name"]]
        found = sorted(
            (one for one in named if choice.state in ("", one["state"])),
            key=lambda one: (_urgency(one["state"]), one["name"]),
        )
        shown = found if choice.everything else found[:_AT_ONCE]
        numbers = {state: sum(one["state"] == state for one in named) for state in _STATES}
        counts = [
            (state, number, choice._replace(state=state, everything=False).address(root))
            for state, number in {"": len(named), **numbers}.items()
            if number or state in ("", choice.state)
        ]
        return self._overview.render(
            root=root,
            report=report,
            databases=databases,
            trouble=sum(one["state"] in _TROUBLE for one in databases),
            choice=choice,
            counts=counts,
            found=found,
            shown=shown,
            urgent=[one for one in shown if one["state"] in _TROUBLE],
            others=[one for one in shown if one["state"] not in _TROUBLE],
            everything=choice._replace(everything=True).address(root),
            few=_FEW,
            events=events["events"][:_EVENTS],
        )

    def database(
        self, root: str, registry: str, report: Mapping[str, Any], values: Iterable[Value]
    ) -> str:
        """Return the page of one database, of the body of /api/v1/databases/NAME and its values.

        Paths below the registry's directory are shown without it. Sections of types that the
        database does not have are not shown.
        """
        types = {report["connection_type"], *(pool["connection_type"] for pool in report["pools"])}
        used = {section for one in types for section in _SECTIONS_OF.get(one, ())}
        sections: dict[str, list[tuple[str, str, str]]] = {}
        for value in values:
            above, dot, below = value.key.partition(".")
            section, key = (above, below) if dot else ("", above)
            if section in _OF_TYPES - used:
                continue
            sections.setdefault(section, []).append(
                (key, format_value(value.value), str(value.source))
            )
        return self._database.render(
            root=root, registry=registry, report=report, one=report, sections=sections
        )


def _urgency(state: str) -> int:
    """Return where a state comes in the list: those that are well have the same place."""
    return _TROUBLE.index(state) if state in _TROUBLE else len(_TROUBLE)


def _ago(at: float) -> str:
    passed = max(0.0, time.time() - at)
    return "just now" if passed < 2 else f"{format_duration(round(passed))} ago"


def _words(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the fields of an event as words."""
    shown = []
    for name, value in fields.items():
        if name in _SHOWN:
            continue
        if isinstance(value, float):
            text = format_duration(value)
        elif isinstance(value, list):
            text = "everything" if value == ["*"] else ", ".join(map(str, value)) or "-"
        else:
            text = str(value)
        shown.append((name.replace("_", " "), text))
    return shown
