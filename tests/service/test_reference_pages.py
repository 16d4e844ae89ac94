"""The pages of keys and options say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def rows(page: str) -> dict[str, list[str]]:
    """Return the rows of a page's tables whose first cell is code, by that."""
    found = {}
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `"):
            found[cells[0].strip("`")] = cells[1:]
    return found


def test_the_default_of_every_key_is_on_the_page() -> None:
    """The page of the configuration has every key that a file may have, outside libpq's."""
    from pgmonkey.config.models import PSYCOPG_KEYS, hints_of

    page = rows("configuration.md")
    expected = {*hints_of(()), *hints_of(("pool_settings",)), *PSYCOPG_KEYS}
    assert expected <= page.keys()


def test_the_service_page_has_every_option() -> None:
    """The table of the service's options has those that the command has, and their variables."""
    from pgmonkey.cli.serve import command

    options = {
        option
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    table = rows("service.md")
    page = {re.match(r"\S+", name)[0] for name in table}  # type: ignore[index]  # every row has a name
    assert options <= page
    defaults = "\n".join(cells[0] for cells in table.values())
    variables = {parameter.envvar for parameter in command.params if parameter.envvar}
    assert {name for name in variables if f"`${name}`" not in defaults} == set()
