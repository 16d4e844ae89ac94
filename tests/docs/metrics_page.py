"""The table of docs/metrics.md, made from the table that declares the metrics."""

from __future__ import annotations

from pgmonkey.telemetry.metrics import TABLE
from tests.docs.snippets import ROOT

BEGIN = "<!-- table: made from pgmonkey.telemetry.metrics by `make docs-reference` -->\n"
END = "<!-- end of the table -->\n"


def page() -> str:
    """Return the page with its table up to date."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{_table()}\n{END}{after}"


def _table() -> str:
    lines = ["| name | kind | labels | meaning | workers |", "| --- | --- | --- | --- | --- |"]
    for scope, rows in TABLE:
        for row in rows:
            own = () if row.label is None else (row.label,)
            labels = ", ".join(f"`{label}`" for label in (*scope, *own)) or "none"
            lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.help} | {row.workers} |")
    return "\n".join(lines) + "\n"
