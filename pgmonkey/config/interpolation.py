"""References (`${NAME}`, `from_env`, `from_file`): parse them, and resolve those of a document."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pgmonkey.config.libpq import libpq_variables
from pgmonkey.config.models import NULLABLE, SECTIONS
from pgmonkey.config.on_demand import KINDS as ON_DEMAND
from pgmonkey.config.on_demand import Reader, ResolverFunction, Source
from pgmonkey.config.problems import KeyProblem
from pgmonkey.config.redaction import Secret, is_sensitive
from pgmonkey.config.secret_files import (
    LIMIT,
    SecretFileError,
    Snapshot,
    json_member,
    secret_text,
)
from pgmonkey.config.sources import SourceFile, read_source
from pgmonkey.config.yaml_reader import KeyPath

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN: Final = re.compile(r"\$\$\{|\$\{|[{}$]|[^{}$]+")
_DEEPEST: Final = 20
_LONGEST: Final = 64 * 1024  # characters, as much as a secret file may hold
_NOT_CLOSED: Final = "malformed reference: it is not closed"
_FORMS: Final = (
    "write ${NAME}, ${NAME:-default}, ${NAME-default} or ${NAME:?message}; $${ is a literal ${"
)


class ReferenceSyntaxError(ValueError):
    """Report a malformed reference. The message never holds the text around it."""


class UnsetVariableError(LookupError):
    """Report a variable that is not set and has no default."""

    def __init__(self, name: str, message: str | None) -> None:
        super().__init__(f"environment variable {name} is not set")
        self.name = name
        self.message = message  # what the author of the reference wrote after `:?`


class Variable(NamedTuple):
    """Describe one reference inside a text."""

    name: str
    default: Template | None = None  # replaces it when it is unset
    empty_is_unset: bool = False  # an empty value counts as unset (`:-`, `:?`)
    message: str | None = None  # for when it is unset (`:?`)


Template = tuple["str | Variable", ...]
Lookup = Callable[[str], "str | None"]


def is_utf8(text: str) -> bool:
    """Tell whether a text can be written as UTF-8; one from the system may hold other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_reference(text: str) -> bool:
    """Tell whether a text holds a reference, or an escaped one. Costs tens of nanoseconds."""
    return "${" in text


def parse_template(text: str) -> Template:
    """Split a text into its literal parts and its references.

    Raises:
        ReferenceSyntaxError: A `${` that starts no valid reference, or more than 64 KiB of text.

    Example:
        >>> parse_template("db-${SHOP}")
        ('db-', Variable(name='SHOP', default=None, empty_is_unset=False, message=None))
    """
    if len(text) > _LONGEST:
        raise ReferenceSyntaxError(f"a text with references is longer than {_LONGEST // 1024} KiB")
    template, _ = _parse(text, 0, 0)
    return template


def expand(template: Template, lookup: Lookup) -> str:
    """Return the text with every reference replaced; raise `UnsetVariableError` if one can't be.

    Values are inserted as they are: a `${` inside one is not interpolated.
    """
    return "".join(part if isinstance(part, str) else _value(part, lookup) for part in template)


def variables(template: Template) -> Iterator[Variable]:
    """Yield every reference, those inside defaults included."""
    for part in template:
        if isinstance(part, Variable):
            yield part
            yield from variables(part.default or ())


def origin_of(value: Any, lookup: Lookup, secrets_from: str | None = None) -> str | None:
    """Return where the value behind a reference comes from; `None` if it is in the file itself."""
    match value:
        case {"from_env": str(name)}:
            return f"the variable {name}"
        case {"from_file": str(path)}:
            if secrets_from is not None:
                path = os.path.join(secrets_from, os.path.basename(path))
            return f"the file {path}"
        case {"from_command": [str(program), *_]}:
            return f"the command {program}"
        case {"from_resolver": str(name)}:
            return f"the resolver {name}"
        case str() if has_reference(value):
            taken = dict.fromkeys(variables_taken(parse_template(value), lookup))
            names = " and ".join(taken)
            return f"the variable{'s' if len(taken) > 1 else ''} {names}" if taken else None
    return None


def variables_taken(template: Template, lookup: Lookup) -> Iterator[str]:
    """Yield the names of the variables whose values an expansion takes."""
    for part in template:
        if not isinstance(part, Variable):
            continue
        if _found(part, lookup) is not None:
            yield part.name
        else:
            yield from variables_taken(part.default or (), lookup)


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


def _parse(text: str, start: int, depth: int) -> tuple[Template, int]:
    """Parse up to the end of the text or, inside a default (`depth` > 0), to its closing brace."""
    parts: list[str | Variable] = []
    braces = 0
    at = start
    while (match := _TOKEN.match(text, at)) is not None:
        found = match.group()
        if found == "${":
            variable, at = _parse_variable(text, at, depth + 1)
            parts.append(variable)
            continue
        if depth and found == "}" and braces == 0:
            return tuple(parts), at
        # The closing brace of a "$${" belongs to the text, not to the reference around.
        braces += {"{": 1, "}": -1, "$${": 1}.get(found, 0)
        parts.append("${" if found == "$${" else found)
        at = match.end()
    if depth:
        raise ReferenceSyntaxError(_NOT_CLOSED)
    return tuple(parts), at


def _parse_variable(text: str, start: int, depth: int) -> tuple[Variable, int]:
    """Parse the reference that starts here; return it and the place after its closing brace."""
    if depth > _DEEPEST:
        raise ReferenceSyntaxError(f"references are nested deeper than {_DEEPEST}")
    match = _NAME.match(text, start + 2)
    if match is None:
        raise ReferenceSyntaxError("malformed reference: no valid name follows ${")
    name, at = match.group(), match.end()
    if text.startswith("}", at):
        return Variable(name), at + 1
    for operator, empty_is_unset in ((":-", True), ("-", False)):
        if text.startswith(operator, at):
            default, at = _parse(text, at + len(operator), depth)
            return Variable(name, default, empty_is_unset), at + 1
    if text.startswith(":?", at):
        end = _closing(text, at + 2)
        return Variable(name, None, empty_is_unset=True, message=text[at + 2 : end]), end + 1
    if at == len(text):
        raise ReferenceSyntaxError(_NOT_CLOSED)
    raise ReferenceSyntaxError("malformed reference: this form is not supported")


def _closing(text: str, start: int) -> int:
    """Return the place of the brace that closes a message."""
    braces = 0
    for at in range(start, len(text)):
        if text[at] == "{":
            braces += 1
        elif text[at] == "}":
            if braces == 0:
                return at
            braces -= 1
    raise ReferenceSyntaxError(_NOT_CLOSED)


_KINDS: Final = frozenset({"from_env", "from_file"})
_KEYS: Final = _KINDS | {"json_key"}
_ANY_KIND: Final = _KINDS | ON_DEMAND
_PATHS: Final = frozenset({"sslrootcert", "sslcert", "sslkey"})
_SET_IT: Final = "set it where the program starts"
_FILE_HINTS: Final = {
    "secret.missing": "check the path, and whether the secret is mounted",
    "secret.not_regular": "name the file itself",
    "secret.empty": "write the secret into it",
    "secret.json": "without json_key the whole file is the value",
}
_NEW_HINTS: Final = _FILE_HINTS | {
    "secret.missing": "put every file of the new secret there: no mounted one is used in its place"
}
#: Where the url of a document is.
URL: Final = ("connection_settings", "url")
#: The hint where references are not resolved.
HOW_TO_RESOLVE: Final = "pass --resolve-env, or resolve_env=True in a program"


def unresolved(path: KeyPath) -> KeyProblem:
    """Return the problem of a reference where references are not resolved."""
    message = "a reference, but references are not resolved here"
    return KeyProblem(path, "reference.unresolved", message, HOW_TO_RESOLVE)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Say how files are read."""

    #: Whether references are replaced.
    resolve: bool = True
    #: Whether libpq's environment variables are kept out, and host, dbname and user are required:
    #: a registry. The older API leaves gaps to libpq.
    isolate: bool = True
    #: Whether sensitive keys may have a default.
    allow_sensitive_defaults: bool = False
    #: The functions that make credentials, by name; `None` if they are not known here.
    resolvers: Mapping[str, ResolverFunction] | None = field(default=None, repr=False)
    #: The environment of the process.
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    #: Where references look variables up instead; by default in the environment. Commands get it
    #: over the environment.
    env: Mapping[str, str] | None = field(default=None, repr=False)
    #: Where `from_file` finds the files instead, by their names alone; to try new secrets.
    secrets_from: str | None = None
    #: The variables that libpq reads and that are to be kept out, as they are set now.
    variables: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        variables = libpq_variables(self.environ) if self.isolate else frozenset[str]()
        object.__setattr__(self, "variables", variables)

    @property
    def lookup(self) -> Mapping[str, str]:
        """The variables that references take."""
        return self.environ if self.env is None else self.env


class _Dropped:
    """Mark a value that is left out because it cannot be resolved."""


_DROPPED: Final = _Dropped()


@dataclass(slots=True, repr=False)  # it holds the values of variables
class Resolution:
    """Replace the references of one document, wrap its secrets, and collect its problems.

    It keeps the variables and files that the values depend on, so that a reload can tell whether
    anything changed. Relative paths start at the directory.
    """

    options: LoadOptions
    snapshot: Snapshot
    directory: str
    problems: list[KeyProblem] = field(default_factory=list)
    #: The references whose values were found, by path.
    references: dict[KeyPath, Any] = field(default_factory=dict)
    variables: dict[str, str | None] = field(default_factory=dict)
    #: The secret files, by path; `None` for one that could not be read.
    files: dict[str, SourceFile | None] = field(default_factory=dict)
    #: When the newest secret file was modified, in unix seconds.
    modified: float | None = None
    #: Each file is read once: two members of one document are a pair, whatever replaces it.
    _contents: dict[str, tuple[bytes, SourceFile]] = field(default_factory=dict)
    #: What makes the values that are left out because they are made on demand, by path.
    on_demand: dict[KeyPath, Source] = field(default_factory=dict)

    def document(self, document: Mapping[str, Any], *, keep_nulls: bool = False) -> dict[str, Any]:
        """Return the document with references replaced, secrets wrapped and nulls left out."""
        resolved: dict[str, Any] = {}
        for key, value in document.items():
            if isinstance(value, dict) and key in SECTIONS and not (value.keys() & _ANY_KIND):
                section: dict[str, Any] = {}
                for name, item in value.items():
                    if type(item) is str and "${" not in item and "\0" not in item:
                        section[name] = Secret(item) if is_sensitive(name) else item
                    elif item is None:
                        if keep_nulls or (key, name) in NULLABLE:
                            section[name] = None
                    else:
                        found = self._value(item, (key, name), is_sensitive(name))
                        if found is not _DROPPED:
                            section[name] = found
                resolved[key] = section
            elif value is not None:
                found = self._value(value, (key,), is_sensitive(key))
                if found is not _DROPPED:
                    resolved[key] = found
            elif keep_nulls:
                resolved[key] = None
        return resolved

    def url(self, written: Any) -> Any:
        """Return the url of the document; `None` if it cannot be resolved, which is a problem."""
        found = self._value(written, URL, sensitive=True)
        text = found.reveal() if isinstance(found, Secret) else ""
        if not self.options.resolve and has_reference(text):
            self.problems.append(unresolved(URL))
            return None
        return None if found is _DROPPED else found

    def origins(self) -> dict[KeyPath, str]:
        """Return where the values came from that are not in the document itself, by path."""
        found = {
            path: origin_of(written, self.variables.get, self.options.secrets_from)
            for path, written in self.references.items()
        }
        return {path: origin for path, origin in found.items() if origin is not None}

    def _value(self, value: Any, path: KeyPath, sensitive: bool) -> Any:
        if isinstance(value, str):
            if self.options.resolve and has_reference(value):
                value = self._text(value, path, sensitive)
            elif "\0" in value:
                value = self._no_nul(path)
            return Secret(value) if sensitive and isinstance(value, str) else value
        if isinstance(value, dict):
            if self.options.resolve and value.keys() & ON_DEMAND:
                return self._on_demand(value, path)
            if self.options.resolve and value.keys() & _KINDS:
                text = self._reference(value, path)
                return Secret(text) if sensitive and isinstance(text, str) else text
            return self._mapping(value, path, sensitive)
        if isinstance(value, list):
            items = [
                self._value(item, (*path, index), sensitive)
                for index, item in enumerate(value)
                if item is not None
            ]
            return _DROPPED if any(item is _DROPPED for item in items) else items
        return value

    def _mapping(self, value: dict[str, Any], path: KeyPath, sensitive: bool) -> Any:
        if not self.options.resolve and (
            (value.keys() <= _KEYS and value) or value.keys() & ON_DEMAND
        ):
            self.problems.append(unresolved(path))
            return _DROPPED
        return {
            key: self._value(item, (*path, key), sensitive or is_sensitive(key))
            for key, item in value.items()
        }

    def _drop(
        self,
        path: KeyPath,
        code: str,
        message: str,
        hint: str | None = None,
        *,
        quoted: str = "",
        unquoted: str = "",
    ) -> _Dropped:
        self.problems.append(
            KeyProblem(path, code, message, hint, quoted=quoted, unquoted=unquoted)
        )
        return _DROPPED

    def _no_nul(self, path: KeyPath) -> _Dropped:
        return self._drop(path, "config.nul", "the value contains a NUL character")

    def _lookup(self, name: str) -> str | None:
        value = self.variables[name] = self.options.lookup.get(name)
        return value

    def _text(self, text: str, path: KeyPath, sensitive: bool) -> str | _Dropped:
        try:
            template = parse_template(text)
        except ReferenceSyntaxError as error:
            return self._drop(path, "reference.malformed", str(error), _FORMS)
        if sensitive and self._has_forbidden_default(template, path):
            message = "a default is not allowed for a sensitive key"
            hint = "set the variable, or allow sensitive defaults for development"
            return self._drop(path, "reference.sensitive_default", message, hint)
        try:
            value = expand(template, self._lookup)
        except UnsetVariableError as error:
            hint = error.message or ""
            # One word is no message: it may be meant as a default, and be the secret.
            if not hint or (sensitive and len(hint.split()) == 1):
                more = "" if sensitive else ", or give it a default: ${NAME:-default}"
                hint = f"{_SET_IT}{more}"
            return self._unset(path, error.name, hint)
        self.references[path] = text
        return self._checked(value, path)

    def _has_forbidden_default(self, template: Template, path: KeyPath) -> bool:
        options = self.options
        if options.allow_sensitive_defaults or (options.isolate and path[-1] in _PATHS):
            return False
        if not options.isolate:  # the older API forbids a default only where it is used
            return uses_default(template, options.lookup.get)
        return any(variable.default is not None for variable in variables(template))

    def _checked(self, value: str, path: KeyPath) -> str | _Dropped:
        if "\0" in value:
            return self._no_nul(path)
        if not is_utf8(value):
            return self._drop(path, "reference.encoding", "the value is not UTF-8 text")
        return value

    def _reference(self, value: dict[str, Any], path: KeyPath) -> str | _Dropped:
        kinds = value.keys() & _KINDS
        accepted = kinds | {"json_key"} if "from_file" in kinds else kinds
        if len(kinds) != 1 or value.keys() - accepted:
            message = "expected exactly one of from_env, from_file, and nothing beside it"
            hint = "a member of a JSON document is {from_file: PATH, json_key: NAME}"
            return self._drop(path, "reference.malformed", message, hint)
        member = value.get("json_key")
        if "json_key" in value and not (isinstance(member, str) and member):
            message = "expected the name of a member"
            return self._drop((*path, "json_key"), "reference.malformed", message)
        (kind,) = kinds
        target = value[kind]
        inside = (*path, kind)
        if not isinstance(target, str) or not target:
            wanted = "the name of a variable" if kind == "from_env" else "the path of a file"
            return self._drop(inside, "reference.malformed", f"expected {wanted}")
        written = target
        target = self._inside(target, inside)
        if member is not None:
            member = self._inside(member, (*path, "json_key"))
        if isinstance(target, _Dropped) or isinstance(member, _Dropped):
            return _DROPPED
        if kind == "from_file":
            self.references[path] = value
            return self._from_file(target, written, member, path)
        text = self._lookup(target)
        if text is None:
            return self._unset(inside, written, _SET_IT)
        self.references[path] = value
        return self._checked(text, path)

    def _on_demand(self, value: dict[str, Any], path: KeyPath) -> _Dropped:
        """Leave out a value that is made on demand, and note its source."""
        read = Reader(
            self._expanded,
            self.problems.append,
            self.directory,
            self.options.env,
            self.options.resolvers,
        )
        if (source := read.source(value, path)) is not None:
            self.on_demand[path] = source
        return _DROPPED

    def _expanded(self, text: str, path: KeyPath) -> str | None:
        found = self._inside(text, path)
        return None if isinstance(found, _Dropped) else found

    def _inside(self, text: str, path: KeyPath) -> str | _Dropped:
        """Return a path, or the name of a variable or member, with its references replaced."""
        if not has_reference(text):
            return text
        found = self._text(text, path, sensitive=False)
        self.references.pop(path, None)  # it is not the value
        return found

    def _unset(self, path: KeyPath, name: str, hint: str) -> _Dropped:
        return self._drop(
            path,
            "reference.unset",
            f"environment variable {name} is not set",
            hint,
            quoted=name,
            unquoted="no such environment variable (its name is not shown: it may be a secret)",
        )

    def _from_file(
        self, target: str, written: str, member: str | None, path: KeyPath
    ) -> str | _Dropped:
        elsewhere = self.options.secrets_from
        if elsewhere is None:
            name, shown = os.path.join(self.directory, target), f"secret file {written}:"
        else:
            name = os.path.join(os.path.abspath(elsewhere), os.path.basename(target))
            new = os.path.join(elsewhere, os.path.basename(target))
            shown = f"secret file {written}: {new}, which is read in its place,"
        inside = (*path, "from_file")
        self.files.setdefault(name, None)
        if "\0" in name:
            return self._no_nul(inside)
        try:
            content, file = self._content(name)
            text = secret_text(content) if member is None else json_member(content, member)
        except SecretFileError as error:
            return self._drop(
                (*path, "json_key") if error.code == "secret.json_key" else inside,
                error.code,
                f"{shown} {error}",
                error.hint or (_FILE_HINTS if elsewhere is None else _NEW_HINTS).get(error.code),
                # A path is a path. A name alone may be the secret itself.
                quoted="" if written.startswith(("/", "./", "../", "${")) else written,
                unquoted=f"the secret file {error} (its path is not shown: it may be a secret)",
            )
        self.files[name] = file
        return text if member is None else self._checked(text, path)

    def _content(self, name: str) -> tuple[bytes, SourceFile]:
        known = self._contents.get(name)
        if known is None:
            content, status, file = read_source(self.snapshot, name, LIMIT)
            known = self._contents[name] = content, file
            self.modified = max(self.modified or 0.0, status.st_mtime)
        return known
