"""Check that the command lines of the documentation exist as they are written."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator

import click

from pgmonkey.cli.app import app
from tests.docs.snippets import ROOT, Snippet

# Programs that the documentation may use; anything else is probably a slip of the pen.
KNOWN = frozenset(
    "alembic apt-get awk brew cat cd celery chmod chown cp curl diff docker docker-compose echo env"
    " eval exec export fastapi find flask git grep gunicorn head helm install jq kill kubectl less ln ls"
    " mkdir mv openssl pgbench pgbouncer pip pipx printf promtool psql python python3 rm sed set sleep"
    " source systemctl tail tee test touch true uv uvicorn uvx watch .".split()
)
_OPERATORS = {"|", "||", "&&", ";", "&"}
_REDIRECTION = re.compile(r"^\d*(<|>|>>|<<)(&\d)?$")


def commands(snippet: Snippet) -> Iterator[list[str]]:
    """Yield each command of a snippet as its words, without assignments and redirections."""
    text = snippet.text
    if snippet.language == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    text = re.sub(r"\\\n", " ", text)
    text = re.sub(r"<<-?\s*['\"]?(\w+)['\"]?(.*?)\n(.*?)\n\s*\1\b", r"\2", text, flags=re.DOTALL)
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in _OPERATORS:
                command = _without_decoration(words)
                if command:
                    yield command
                words = []
            else:
                words.append(word)


def _without_decoration(words: list[str]) -> list[str]:
    while words and re.match(r"^[A-Za-z_]\w*=", words[0]):
        words = words[1:]
    kept = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif _REDIRECTION.match(word):
            skip = "&" not in word
        else:
            kept.append(word)
    return kept[1:] if kept[:1] == ["sudo"] else kept


def complaint(words: list[str]) -> str | None:
    """Say what is wrong with a command, or return `None`."""
    program, *arguments = words
    if program in (".venv/bin/pgmonkey", "pgmonkey"):
        return _pgmonkey(arguments)
    if program == "make":
        return _make(arguments)
    if program in ("pip", "pipx", "uv", "uvx"):
        return _extras(arguments)
    if program in KNOWN or "/" in program or program.startswith("$"):
        return None
    return f"{program!r} is no program that the documentation uses"


def _pgmonkey(arguments: list[str]) -> str | None:
    command: click.Command = app
    named = "pgmonkey"
    options = options_of(command)
    for word in arguments:
        if word == "--":
            break  # what follows is for another program
        if word.startswith("-") and word != "-":
            name = word.partition("=")[0]
            if name not in options:
                return f"{named} has no option {name}"
        elif isinstance(command, click.Group):
            if word not in command.commands:
                return f"{named} has no command {word!r}"
            command = command.commands[word]
            named = f"{named} {word}"
            options |= options_of(command)
    return None


def options_of(command: click.Command) -> set[str]:
    """Return the options of a command, as they are written."""
    return {"-h", "--help"} | {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    }


def leaves(
    command: click.Command = app, name: str = "pgmonkey"
) -> Iterator[tuple[str, click.Command]]:
    """Yield each command that does something, with its whole name."""
    if isinstance(command, click.Group):
        for word, child in command.commands.items():
            yield from leaves(child, f"{name} {word}")
    else:
        yield name, command


def _make(arguments: list[str]) -> str | None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for word in arguments:
        if "=" not in word and not word.startswith("-") and word not in targets:
            return f"the Makefile has no target {word!r}"
    return None


def _extras(arguments: list[str]) -> str | None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for word in arguments:
        for extras in re.findall(r"(?:pgmonkey|^\.)\[([\w,-]+)\]", word):
            unknown = set(extras.split(",")) - set(project["optional-dependencies"])
            if unknown:
                return f"pgmonkey has no extra {', '.join(sorted(unknown))}"
    return None
