"""How a CSV file is written, by options of `pgimport` and `pgexport` and the file beside the CSV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import click

from pgmonkey.cli.output import tell
from pgmonkey.errors import ConfigError, PgmonkeyError, Problem, count, did_you_mean

#: Stands for standard input and standard output.
STANDARD: Final = Path("-")
#: What people write for a delimiter that is hard to type.
_NAMED: Final = {r"\t": "\t", "tab": "\t"}
#: The quote character that the server gets for a file without quotes. `CsvSource` refuses a file that
#: contains it.
_NO_QUOTE: Final = "\x01"


class CsvError(PgmonkeyError):
    """Report why a CSV file was not imported or exported."""


@dataclass(frozen=True, slots=True)
class CsvFormat:
    """Hold how a CSV file is written, and what an import makes of its header.

    Args:
        delimiter: What separates fields: one ASCII character.
        quotechar: The mark around a field, doubled within it: one ASCII character, or `none`.
        encoding: As Python names it; `None` is UTF-8, or what a byte order mark says.
        null_text: The text for NULL, without quotes.
        has_headers: Whether the first row has the names of the columns.
        auto_create_table: Whether an import creates the table.
        enforce_lowercase: Whether an import makes lower case and underscores of the header.
    """

    delimiter: str = ","
    quotechar: str = '"'
    encoding: str | None = None
    null_text: str = ""
    has_headers: bool = True
    auto_create_table: bool = True
    enforce_lowercase: bool = True

    @property
    def quotes(self) -> bool:
        """Whether fields may be quoted."""
        return self.quotechar != "none"

    @property
    def quote(self) -> str:
        """The quote character that the server is told."""
        return self.quotechar if self.quotes else _NO_QUOTE

    def mistakes(self) -> dict[str, str]:
        """Return what cannot work, by the name of the field."""
        found = {}
        for name, value in (("delimiter", self.delimiter), ("quotechar", self.quote)):
            if len(value) != 1 or not value.isascii() or value in "\r\n\0":
                found[name] = "expected one ASCII character"
        if self.delimiter == self.quote:
            found["quotechar"] = "it is the delimiter, too"
        if set(self.null_text) & {self.delimiter, self.quotechar, "\r", "\n"}:
            found["null_text"] = "it has the delimiter, the quote or a line break in it"
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except (LookupError, ValueError):
                found["encoding"] = "Python knows no such encoding of text"
        return found


_KNOWN: Final = tuple(one.name for one in fields(CsvFormat))


def chosen_format(
    csv: Path, settings: Path | None, given: Mapping[str, Any], connconfig: Path | None
) -> CsvFormat:
    """Return the format of a file: its options count first, then its settings, then the defaults.

    Args:
        csv: The CSV file.
        settings: The file of its settings, if one is named; else one beside it may have them.
        given: The options that were given.
        connconfig: The config file of the database, which may be beside the CSV file, too.

    Raises:
        ConfigError: the settings have problems.
        click.UsageError: an option has.
    """
    found = CsvFormat()
    beside = settings_beside(csv)
    if settings is not None:
        found = _of_file(settings, named=True)
    elif csv != STANDARD and beside.is_file() and not _same(beside, connconfig):
        found = _of_file(beside, named=False)
    values = dict(given)
    if "delimiter" in values:
        values["delimiter"] = _NAMED.get(values["delimiter"], values["delimiter"])
    found = replace(found, **values)
    for name, mistake in found.mistakes().items():
        raise click.BadParameter(mistake, param_hint=f"--{name.replace('_', '-')}")
    return found


def _same(one: Path, other: Path | None) -> bool:
    return other is not None and one.samefile(other)


def settings_beside(csv: Path) -> Path:
    """Return the name of the file that may have the settings of a CSV file."""
    return csv.with_suffix(".yaml") if csv.suffix else csv.with_name(f"{csv.name}.yaml")


def _of_file(path: Path, *, named: bool) -> CsvFormat:
    from pgmonkey.config.yaml_reader import UNKNOWN, YamlProblem, read_yaml

    try:
        document = read_yaml(path.read_bytes())
    except YamlProblem as error:
        line, column = error.position or UNKNOWN
        raise ConfigError(
            [Problem(str(path), error.code, str(error), line, column, error.key, error.hint)]
        ) from None
    keys = document.value if isinstance(document.value, dict) else {}
    if named and document.value is not None and not keys:
        message = "expected a mapping of settings"
        raise ConfigError([Problem(str(path), "config.shape", message, 1, 1)])
    if not named and not any(key in _KNOWN for key in keys):
        tell(f"{path} is left out: it has no setting of a CSV file")
        return CsvFormat()
    values, problems = {}, []

    def problem(key: str, code: str, message: str, hint: str | None = None) -> None:
        line, column = document.position((key,), of_key=code.endswith("key")) or UNKNOWN
        problems.append(Problem(str(path), code, message, line, column, key, hint))

    for key, value in keys.items():
        if key not in _KNOWN:
            hint = did_you_mean(str(key), _KNOWN)
            problem(key, "config.unknown_key", f'unknown key "{key}"', hint)
            continue
        try:
            values[key] = _typed(key, value)
        except ValueError as error:
            problem(key, "config.type", str(error))
    found = CsvFormat(**values)
    for key, mistake in found.mistakes().items():
        problem(key, "config.type", mistake)
    if problems:
        raise ConfigError(problems)
    return found


def _typed(key: str, value: Any) -> Any:
    """Return a value of the file with its type; all that YAML gives is text."""
    from pgmonkey.config.types import FALSE, TRUE

    if value is None and key in ("encoding", "null_text"):
        return None if key == "encoding" else ""
    if not isinstance(value, str):
        raise ValueError("expected text")  # noqa: TRY004 - it becomes a problem of the file
    if isinstance(getattr(CsvFormat(), key), bool):
        if value.lower() not in (*TRUE, *FALSE):
            raise ValueError("expected true or false")
        return value.lower() in TRUE
    return _NAMED.get(value, value) if key == "delimiter" else value


def rows(number: int) -> str:
    """Return a number of rows for people.

    Example:
        >>> rows(1), rows(12345)
        ('1 row', '12,345 rows')
    """
    return count(number, "row") if number == 1 else f"{number:,} rows"
