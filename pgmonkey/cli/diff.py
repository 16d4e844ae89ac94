"""`pgmonkey diff`: what a reload would change, and what it would do to the connections."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from pgmonkey.cli import options
from pgmonkey.cli.output import Answer, ExitCode, formatted
from pgmonkey.cli.registry_files import scan

if TYPE_CHECKING:
    from pgmonkey.config.diff import DatabaseChange
    from pgmonkey.config.directory import Scan
    from pgmonkey.config.settings import DatabaseConfig
    from pgmonkey.service.client import ServiceClient

_TITLES: Final = ("NAME", "KEY", "BEFORE", "AFTER", "EFFECT")
#: With these, git takes the directory where it runs for the top of a repository.
_OF_A_HOOK: Final = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR"})


@click.command("diff")
@options.directory
@click.option(
    "--against",
    metavar="DIR",
    type=options.PATH,
    help="Compare with the files of this directory, instead of a service.",
)
@click.option(
    "--revision",
    metavar="REV",
    help="Compare with the files of this revision of git.",
)
@options.service
@options.output
@options.references
def command(
    directory: Path,
    against: Path | None,
    revision: str | None,
    client: ServiceClient,
    output: str,
    references: options.References,
) -> Answer:
    """Show what a reload would change.

    It compares the files with what a running service uses, or with other files. Secrets are
    masked. Exit code 1: a reload would reject the files of a database.
    """
    _check_usage(against, revision)
    from pgmonkey.config.diff import of_registry
    from pgmonkey.errors import summary

    files = scan(directory, references)
    after, problems = _configs(files), files.all_problems()
    if against is not None:
        changes = list(of_registry(_configs(scan(against, references)), after))
    elif revision is not None:
        changes = list(of_registry(_of_revision(directory, revision, references), after))
    else:
        overview = client.overview()
        if (only := overview["registry"]["only"]) is not None:
            after = {name: config for name, config in after.items() if name in only}
            problems = tuple(one for one in problems if one.database in (None, *only))
        changes = list(_from_service(client, overview, after))
    notes = [str(problem) for problem in problems]
    if problems:
        notes.append(summary(problems))
    elif not any(change.differs for change in changes):
        masked = any(change.masked for change in changes)
        what = "none of the values that are compared" if masked else "nothing"
        notes.append(f"a reload would change {what}")
    notes += _notes(changes)
    code = ExitCode.PROBLEM if problems else ExitCode.OK
    data = {
        "databases": [_data(change) for change in changes if change.differs],
        "unchanged": [change.name for change in changes if not change.differs],
        "not_compared": {change.name: list(change.masked) for change in changes if change.masked},
        "problems": [problem.as_dict() for problem in problems],
    }
    rows = [row for change in changes if change.differs for row in _rows(change)]
    if output == "table" and not rows:
        return Answer("", code, "\n".join(notes))
    text = formatted(output, data, [_TITLES, *rows])
    return Answer(text, code, "" if output == "json" else "\n".join(notes))


def _check_usage(against: Path | None, revision: str | None) -> None:
    source = click.get_current_context().get_parameter_source("client")
    given = [against is not None, revision is not None, source is ParameterSource.COMMANDLINE]
    if sum(given) > 1:
        raise click.UsageError("give one of --against, --revision and --url")
    if revision is not None and (not revision or revision.startswith("-")):
        raise click.BadParameter("expected a revision, such as HEAD", param_hint="--revision")


def _configs(files: Scan) -> dict[str, DatabaseConfig | None]:
    if not files.directory_ok:
        files.raise_for_problems()
    return {name: files.configs.get(name) for name in files.present}


def _from_service(
    client: ServiceClient,
    overview: Mapping[str, Any],
    after: Mapping[str, DatabaseConfig | None],
) -> Iterator[DatabaseChange]:
    """Yield what a reload changes of what a running service uses, one request a database."""
    from pgmonkey.config.diff import DatabaseChange, between_values, one_sided
    from pgmonkey.config.explain import explain

    names = [one["name"] for one in overview["databases"]]
    # One that it never had a valid configuration of has no settings: it would come.
    before = {name: values for name in names if (values := client.settings(name))}
    for name in sorted(before.keys() | after.keys()):
        if (outcome := one_sided(name, before, after)) is not None:
            yield DatabaseChange(name, outcome)
        else:
            config = after[name]
            assert config is not None
            values = {one.key: one.value for one in explain(config, sources=False)}
            yield between_values(name, before[name], values)


def _of_revision(
    directory: Path, revision: str, references: options.References
) -> dict[str, DatabaseConfig | None]:
    """Return the databases of a revision. Their references are resolved as they are now."""
    from pgmonkey.config.directory import load_contents
    from pgmonkey.config.interpolation import LoadOptions

    contents = dict(_contents(directory, revision))
    return load_contents(os.fspath(directory), contents, LoadOptions(**references))


def _contents(directory: Path, revision: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file of a directory in a revision of git."""
    listing = _git(directory, "ls-tree", "-z", revision).split(b"\0")
    entries = [entry.partition(b"\t") for entry in listing if entry]
    files = [(os.fsdecode(name), words.split()) for words, _, name in entries]
    # Links and modules have no content that is a file of the registry.
    blobs = [(name, words[2]) for name, words in files if words[0].startswith(b"100")]
    objects = b"".join(blob + b"\n" for _, blob in blobs)
    rest = _git(directory, "cat-file", "--batch", text=objects)
    for name, _ in blobs:
        header, _, rest = rest.partition(b"\n")
        size = int(header.split()[2])
        yield name, rest[:size]
        rest = rest[size + 1 :]


def _git(directory: Path, *arguments: str, text: bytes = b"") -> bytes:
    import subprocess

    words = ["git", "-C", os.fspath(directory), *arguments]
    env = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}
    try:
        done = subprocess.run(words, input=text, env=env, capture_output=True, check=False)
    except FileNotFoundError:
        raise click.ClickException("git is not installed") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[0] if lines else f"it ended with {done.returncode}"
        raise click.ClickException(f"git: {reason.removeprefix('fatal: ')}")
    return done.stdout


def _data(change: DatabaseChange) -> dict[str, Any]:
    return {
        "name": change.name,
        "effect": change.outcome,
        "keys": [
            {
                "key": one.key,
                "before": one.before,
                "after": one.after,
                "effect": one.consequence,
            }
            for one in change.keys
        ],
    }


def _rows(change: DatabaseChange) -> Iterator[tuple[str, ...]]:
    from pgmonkey.config.explain import format_value

    if not change.keys:
        yield change.name, "-", "-", "-", _word(change.outcome)
    for one in change.keys:
        before, after = format_value(one.before), format_value(one.after)
        yield change.name, one.key, before, after, _word(one.consequence)


def _word(outcome: str) -> str:
    return outcome.replace("_", " ")


def _notes(changes: Iterable[DatabaseChange]) -> Iterator[str]:
    from pgmonkey.errors import count

    masked = 0
    for change in changes:
        masked += len(change.masked)
        if change.outcome == "unknown":
            yield f"{change.name}: the other files have problems, so nothing is compared"
    if masked:
        yield f"not compared: {count(masked, 'value')} that the service masks; -o json names the keys"
