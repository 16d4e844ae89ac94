"""The status page, as HTML that needs no JavaScript.

The same templates serve the first view and every update: the script requests the page again and
applies the differences.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pgmonkey.config.durations import format_duration
from pgmonkey.config.explain import Value, format_value

_HERE: Final = Path(__file__).parent

#: The content security policy: its own style and script, and requests to its own host.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
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
            clock=lambda at: datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S"),
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

    def overview(self, root: str, report: Mapping[str, Any], events: Mapping[str, Any]) -> str:
        """Return the page of all databases, of the bodies of /api/v1/databases and /api/v1/events.

        `root` is the path that the application is mounted at.
        """
        databases = report["databases"]
        counts = {state: sum(one["state"] == state for one in databases) for state in _STATES}
        return self._overview.render(
            root=root,
            report=report,
            databases=databases,
            counts={state: number for state, number in counts.items() if number},
            trouble=[one for one in databases if one["state"] in _TROUBLE],
            events=events["events"][:_EVENTS],
        )

    def database(
        self, root: str, registry: str, report: Mapping[str, Any], values: Iterable[Value]
    ) -> str:
        """Return the page of one database, of the body of /api/v1/databases/NAME and its values.

        Paths below the registry's directory are shown without it.
        """
        sections: dict[str, list[tuple[str, str, str]]] = {}
        for value in values:
            section, _, key = value.key.rpartition(".")
            sections.setdefault(section, []).append(
                (key, format_value(value.value), str(value.source))
            )
        return self._database.render(
            root=root, registry=registry, report=report, one=report, sections=sections
        )


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
