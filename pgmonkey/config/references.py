"""References: `${NAME}` and its forms inside a text. Pure: the caller looks the names up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEEPEST: Final = 20
_LONGEST: Final = 64 * 1024  # characters, as much as a secret file may hold

FORMS: Final = (
    "write ${NAME}, ${NAME:-default}, ${NAME-default} or ${NAME:?message}; $${ is a literal ${"
)


class ReferenceSyntaxError(ValueError):
    """Report a malformed reference. The message never holds the text around it.

    Args:
        message: What is wrong.
        offset: Where the reference starts, in characters of the text.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class UnsetVariableError(LookupError):
    """Report a variable that is not set and has no default.

    Args:
        name: The variable.
        message: What the author of the reference wrote after `:?`, or `None`.
    """

    def __init__(self, name: str, message: str | None) -> None:
        super().__init__(f"environment variable {name} is not set")
        self.name = name
        self.message = message


class Variable(NamedTuple):
    """Describe one reference inside a text.

    Args:
        name: The variable.
        default: What stands for it when it is unset; `None` when there is no default.
        empty_is_unset: Whether an empty value counts as unset (`:-`, `:?`).
        message: What to say when it is unset (`:?`), or `None`.
    """

    name: str
    default: Template | None = None
    empty_is_unset: bool = False
    message: str | None = None


Template = tuple["str | Variable", ...]
Lookup = Callable[[str], "str | None"]


def has_reference(text: str) -> bool:
    """Tell whether a text holds a reference, or an escaped one. It costs tens of nanoseconds."""
    return "${" in text


def parse_template(text: str) -> Template:
    """Split a text into its literal parts and its references.

    Args:
        text: The text as it stands in the file.

    Raises:
        ReferenceSyntaxError: A `${` that starts no valid reference, or more than 64 KiB of text.

    Example:
        >>> parse_template("db-${SHOP}")
        ('db-', Variable(name='SHOP', default=None, empty_is_unset=False, message=None))
    """
    if len(text) > _LONGEST:
        raise ReferenceSyntaxError(
            f"a text with references is longer than {_LONGEST // 1024} KiB", _LONGEST
        )
    template, end = _parse(text, 0, None, 0)
    assert end == len(text)
    return template


def expand(template: Template, lookup: Lookup) -> str:
    """Return the text with every reference replaced.

    What the look-up returns is inserted as it is: a `${` inside it is never interpolated.

    Args:
        template: What `parse_template` returned.
        lookup: Returns the value of a variable, or `None` if it is not set.

    Raises:
        UnsetVariableError: A variable is not set and has no default.
    """
    return "".join(part if isinstance(part, str) else _value(part, lookup) for part in template)


def variables(template: Template) -> Iterator[Variable]:
    """Yield every reference, those inside defaults included."""
    for part in template:
        if isinstance(part, Variable):
            yield part
            if part.default is not None:
                yield from variables(part.default)


def uses_default(template: Template, lookup: Lookup) -> bool:
    """Tell whether expanding takes the text of a default."""
    return any(
        isinstance(part, Variable) and part.default is not None and _found(part, lookup) is None
        for part in template
    )


def _found(variable: Variable, lookup: Lookup) -> str | None:
    value = lookup(variable.name)
    return None if value == "" and variable.empty_is_unset else value


def _value(variable: Variable, lookup: Lookup) -> str:
    value = _found(variable, lookup)
    if value is not None:
        return value
    if variable.default is None:
        raise UnsetVariableError(variable.name, variable.message)
    return expand(variable.default, lookup)


def _parse(text: str, start: int, opened: int | None, depth: int) -> tuple[Template, int]:
    """Parse up to the end of the text or, inside a default, up to its closing brace."""
    parts: list[str | Variable] = []
    literal: list[str] = []
    braces = 0
    at = start
    while at < len(text):
        if text.startswith("$${", at):
            literal.append("${")
            braces += 1  # its own closing brace belongs to the text, not to the reference around
            at += 3
        elif text.startswith("${", at):
            if literal:
                parts.append("".join(literal))
                literal.clear()
            variable, at = _parse_variable(text, at, depth + 1)
            parts.append(variable)
        elif opened is not None and text[at] == "}" and braces == 0:
            break
        else:
            if opened is not None:
                braces += {"{": 1, "}": -1}.get(text[at], 0)
            literal.append(text[at])
            at += 1
    if opened is not None and at == len(text):
        raise ReferenceSyntaxError("malformed reference: it is not closed", opened)
    if literal:
        parts.append("".join(literal))
    return tuple(parts), at


def _parse_variable(text: str, start: int, depth: int) -> tuple[Variable, int]:
    """Parse the reference that starts here; return it and the place after its closing brace."""
    if depth > _DEEPEST:
        raise ReferenceSyntaxError(f"references are nested deeper than {_DEEPEST}", start)
    match = _NAME.match(text, start + 2)
    if match is None:
        raise ReferenceSyntaxError("malformed reference: no valid name follows ${", start)
    name, at = match.group(), match.end()
    if text.startswith("}", at):
        return Variable(name), at + 1
    for operator, empty_is_unset in ((":-", True), ("-", False)):
        if text.startswith(operator, at):
            default, at = _parse(text, at + len(operator), start, depth)
            return Variable(name, default, empty_is_unset), at + 1
    if text.startswith(":?", at):
        end = _closing(text, at + 2, start)
        return Variable(name, None, empty_is_unset=True, message=text[at + 2 : end]), end + 1
    if at == len(text):
        raise ReferenceSyntaxError("malformed reference: it is not closed", start)
    raise ReferenceSyntaxError("malformed reference: this form is not supported", start)


def _closing(text: str, start: int, opened: int) -> int:
    """Return the place of the brace that closes a message."""
    braces = 0
    for at in range(start, len(text)):
        if text[at] == "{":
            braces += 1
        elif text[at] == "}":
            if braces == 0:
                return at
            braces -= 1
    raise ReferenceSyntaxError("malformed reference: it is not closed", opened)
