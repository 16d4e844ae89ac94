"""The directory of a registry: every file of it, read again only when something changed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, NamedTuple

from pgmonkey.config.interpolation import LoadOptions
from pgmonkey.config.loader import load_bytes
from pgmonkey.config.rules import shortfalls
from pgmonkey.config.secret_files import (
    KEEP_THE_DIRECTORY,
    MOUNT_THE_DIRECTORY,
    UNLINKED,
    SecretFileError,
    Snapshot,
    SnapshotMovedError,
    from_one_snapshot,
    is_unlinked,
    signature_of,
)
from pgmonkey.config.settings import DatabaseConfig
from pgmonkey.config.sources import SourceFile, Sources, Statuses, keyed_digest, read_source
from pgmonkey.config.trust import TrustPolicy
from pgmonkey.config.yaml_reader import DEFAULTS_FILE, LIMIT, Defaults, parse, unreadable
from pgmonkey.errors import Problem, RegistryConfigError, did_you_mean, sorted_problems


class Scan(NamedTuple):
    """Hold the databases and problems of a directory at one moment."""

    directory: str
    watched_directories: frozenset[str]  # a change in one of them can change the scan
    directory_ok: bool  # if not, the directory could not be read, and nothing was deleted
    general: tuple[Problem, ...]  # of the directory, of file names, of the defaults
    configs: Mapping[str, DatabaseConfig] = MappingProxyType({})
    #: A database with a config may have problems, too: its files are not what they seem to be.
    problems: Mapping[str, tuple[Problem, ...]] = MappingProxyType({})
    present: frozenset[str] = frozenset()  # the names that have a file, good or bad
    missing: frozenset[str] = frozenset()  # the names that were asked for and have no file

    def all_problems(self) -> tuple[Problem, ...]:
        """Return every problem once, in reading order.

        A problem of the defaults or of the environment belongs to many databases; it is listed
        once.
        """
        return sorted_problems(dict.fromkeys(self._problems()))

    def raise_for_problems(self) -> None:
        """Raise `RegistryConfigError` with every problem of every file, if there is one."""
        if problems := self.all_problems():
            raise RegistryConfigError(problems)

    def _problems(self) -> Iterator[Problem]:
        yield from self.general
        for name in self.missing:
            path = os.path.join(self.directory, f"{name}.yaml")
            message = f'no file declares the database "{name}"'
            hint = did_you_mean(name, self.present)
            yield Problem(path, "registry.no_such_database", message, hint=hint, database=name)
        for name, problems in self.problems.items():
            for problem in problems:
                if problem.code.startswith("environment."):
                    yield replace(problem, path=self.directory, database=None)
                elif os.path.basename(problem.path).startswith("_"):
                    yield replace(problem, database=None)
                else:
                    yield replace(problem, database=name)


_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_SUFFIXES: Final = (".yaml", ".yml")


class _LoadedFile(NamedTuple):
    """Remember one file: how it looked, and its config or its problems."""

    file: SourceFile | None
    result: DatabaseConfig | tuple[Problem, ...]
    sources: Sources | None = None

    def current(self, statuses: Statuses) -> bool:
        """Tell whether the files and variables behind the values are as they were."""
        return self.sources is None or self.sources.values_current(statuses)


class DirectoryLoader:
    """Load the databases that the files of one directory declare.

    The first scan reads everything. A later one looks at times and sizes, and reads again only
    what changed: a file, the secret files and TLS files that it names, the variables that it
    refers to. Not for use by two threads at once.

    With `names`, only these databases are loaded, and other files are not opened. A database whose
    file, secrets or TLS files other accounts can change is not loaded if `trust` refuses it.
    All databases together may have `max_connections` connections to servers.

    Example:
        >>> scan = DirectoryLoader("registry.d").scan()
        >>> scan.raise_for_problems()
        >>> sorted(scan.configs)
        ['events', 'orders', 'reports']
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        names: Iterable[str] | None = None,
        allow_sensitive_defaults: bool = False,
        environ: Mapping[str, str] | None = None,
        trust: TrustPolicy | None = None,
        max_connections: int | None = None,
    ) -> None:
        #: The directory, as it was given.
        self.directory = os.fspath(directory)
        self._names = None if names is None else frozenset(names)
        self._options = LoadOptions(
            allow_sensitive_defaults=allow_sensitive_defaults,
            environ=os.environ if environ is None else environ,
        )
        self._loaded: dict[str, _LoadedFile] = {}
        self._defaults: tuple[bytes, Defaults | None, tuple[Problem, ...]] = (b"", None, ())
        self._policy = trust or TrustPolicy("off")
        self._max_connections = max_connections
        # At first there is nothing better than an old file.
        self._refuses_unlinked = False

    def scan(self) -> Scan:
        """Read what changed since the last scan; return all databases and problems."""
        self._policy.look_again()
        try:
            return from_one_snapshot(self._scan)
        except SnapshotMovedError:
            message = "the directory is replaced again and again"
            return self._unreadable("registry.moving", message)

    def resolved_again(self, configs: Iterable[DatabaseConfig]) -> dict[str, DatabaseConfig]:
        """Resolve the references of configs again, whatever their files say now.

        Returns:
            By name: the config with the values of now, or the same one if they have not changed
            or cannot be used.
        """
        statuses: Statuses = {}
        return {
            config.name: config if config.values_current(statuses) else self._resolved(config)
            for config in configs
        }

    def _resolved(self, config: DatabaseConfig) -> DatabaseConfig:
        assert config.text is not None
        loaded = load_bytes(
            config.text.content.reveal().encode(),
            name=config.name,
            path=config.path,
            options=self._options,
            defaults=config.text.defaults,
            keep_text=True,
        )
        others = loaded.sources.paths if loaded.sources else ()
        if loaded.config is None or self._policy.problems(others, config.path, config.name):
            return config
        return loaded.config

    def _scan(self, snapshot: Snapshot) -> Scan:
        try:
            with os.scandir(self.directory) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            return self._no_directory(error)
        if self._refuses_unlinked and not found and is_unlinked(self.directory):
            message = f"the directory {UNLINKED}"
            return self._unreadable("registry.unlinked", message, KEEP_THE_DIRECTORY)
        files, general = self._sorted(found)
        general += self._read_defaults(found, snapshot)
        unlinked = self._unlinked([os.path.join(self.directory, DEFAULTS_FILE)])
        general += unlinked
        self._look_at_environment()
        configs: dict[str, DatabaseConfig] = {}
        problems: dict[str, tuple[Problem, ...]] = {}
        watched = {os.path.abspath(self.directory)}
        statuses: Statuses = {}
        present = set(files)
        for name, candidates in sorted(files.items()):
            if len(candidates) > 1:
                problems[name] = self._declared_twice(name, candidates)
                self._loaded.pop(name, None)
                continue
            loaded = self._load(name, candidates[0], snapshot, statuses)
            if loaded is None:
                present.discard(name)
                continue
            if isinstance(loaded.result, DatabaseConfig):
                configs[name] = loaded.result
                watched |= loaded.result.watched_directories
                assert loaded.sources is not None
                if old := (*unlinked, *self._unlinked(loaded.sources.unlinked)):
                    problems[name] = old
            else:
                problems[name] = loaded.result
                if loaded.sources is not None:
                    watched |= loaded.sources.directories
        for name in self._loaded.keys() - present:
            del self._loaded[name]
        self._refuses_unlinked = True
        short = shortfalls(configs.values(), self._max_connections, self.directory)
        return Scan(
            self.directory,
            frozenset(watched),
            directory_ok=True,
            general=(*general, *short),
            configs=configs,
            problems=problems,
            present=frozenset(present),
            missing=frozenset() if self._names is None else self._names - present,
        )

    def _unlinked(self, paths: Iterable[str]) -> tuple[Problem, ...]:
        """Return the problems of files that were deleted or replaced where they are mounted from."""
        message = f"the file {UNLINKED}"
        return tuple(
            Problem(path, "file.unlinked", message, hint=MOUNT_THE_DIRECTORY)
            for path in paths
            if self._refuses_unlinked and is_unlinked(path)
        )

    def _sorted(
        self, found: list[os.DirEntry[str]]
    ) -> tuple[dict[str, list[os.DirEntry[str]]], list[Problem]]:
        """Return the files of each database, and the problems of file names."""
        files: dict[str, list[os.DirEntry[str]]] = {}
        problems: list[Problem] = []
        for entry in found:
            name, suffix = os.path.splitext(entry.name)
            message = None
            if suffix not in _SUFFIXES:
                continue
            if name.startswith("_"):
                if name == "_defaults" and suffix != ".yaml":
                    message = f"the defaults are read from {DEFAULTS_FILE} only"
            elif self._names is not None and name not in self._names:
                continue
            elif _NAME.fullmatch(name):
                files.setdefault(name, []).append(entry)
            else:
                message = "the name of a database must match [a-z][a-z0-9_-]{0,62}"
            if message is not None:
                path = entry.path if entry.path.isprintable() else ascii(entry.path)[1:-1]
                problems.append(Problem(path, "config.file_name", message, hint="rename the file"))
        return files, problems

    def _declared_twice(self, name: str, candidates: list[os.DirEntry[str]]) -> tuple[Problem, ...]:
        candidates = sorted(candidates, key=lambda entry: entry.name)
        listed = " and ".join(entry.name for entry in candidates)
        code, hint = "config.declared_twice", "remove one of them"
        message = f'the database "{name}" is declared by {listed}'
        return tuple(
            Problem(entry.path, code, message, hint=hint, database=name) for entry in candidates
        )

    def _load(
        self, name: str, found: os.DirEntry[str], snapshot: Snapshot, statuses: Statuses
    ) -> _LoadedFile | None:
        """Return what is known about a file, up to date; `None` if the file is gone."""
        loaded = self._loaded.get(name)
        # What it was when it was loaded; useless if a value behind its references changed.
        known = loaded.file if loaded is not None and loaded.current(statuses) else None
        if known is not None:
            try:
                signature = signature_of(found.stat())
            except OSError:
                signature = None  # reading it reports the error
            if known.looks_like(signature):
                return loaded
        path = found.path
        try:
            content, _, file = read_source(snapshot, path, LIMIT)
        except SecretFileError as error:
            if error.code == "secret.missing" and not os.path.lexists(path):
                return None
            loaded = _LoadedFile(None, (unreadable(path, error, name),))
        else:
            if known is not None and known.is_confirmed_by(file):
                return loaded
            loaded = self._made(content, name, path, file)
        self._loaded[name] = loaded
        return loaded

    def _made(self, content: bytes, name: str, path: str, file: SourceFile) -> _LoadedFile:
        _, defaults, problems = self._defaults
        if problems:
            return _LoadedFile(file, problems)
        loaded = load_bytes(
            content,
            name=name,
            path=path,
            options=self._options,
            defaults=defaults,
            file=file,
            keep_text=True,
        )
        others = loaded.sources.paths if loaded.sources else ()
        untrusted = self._policy.problems((path, *others), path, name)
        if untrusted and loaded.config is not None:
            # Without the file: a change of permissions alone does not show in how it looks.
            return _LoadedFile(None, untrusted, loaded.sources)
        return _LoadedFile(file, loaded.config or loaded.problems, loaded.sources)

    def _read_defaults(
        self, found: list[os.DirEntry[str]], snapshot: Snapshot
    ) -> tuple[Problem, ...]:
        """Read the defaults again; if they changed, forget every file."""
        path = os.path.join(self.directory, DEFAULTS_FILE)
        digest = b""
        defaults: Defaults | None = None
        problems: tuple[Problem, ...] = ()
        if any(entry.name == DEFAULTS_FILE for entry in found):
            try:
                content, _ = snapshot.read_bytes(path, LIMIT)
            except SecretFileError as error:
                if error.code != "secret.missing" or os.path.lexists(path):
                    digest, problems = b"?", (unreadable(path, error),)
            else:
                digest = keyed_digest(content)
                if digest == self._defaults[0]:
                    return self._defaults[2]
                document, problems = parse(content, path)
                if untrusted := self._policy.problems((path,), path, None):
                    digest, document, problems = b"?", None, untrusted
                if document is not None:
                    defaults = Defaults(path, document)
        if digest != self._defaults[0] or digest == b"?":
            self._loaded.clear()
            self._defaults = digest, defaults, problems
        return problems

    def _look_at_environment(self) -> None:
        """Forget every file if a variable that libpq reads was set or unset."""
        options = replace(self._options)  # takes the variables of now
        if options.variables != self._options.variables:
            self._options = options
            self._loaded.clear()

    def _no_directory(self, error: OSError) -> Scan:
        match error:
            case FileNotFoundError():
                hint = "make it, or name another"
                return self._unreadable("registry.missing", "the directory does not exist", hint)
            case NotADirectoryError():
                message = "expected a directory, got a file"
                hint = "name the directory of a registry, not one of its files"
                return self._unreadable("registry.not_a_directory", message, hint)
            case PermissionError():
                message = "the directory may not be read (permission denied)"
                hint = f"the process runs as uid {os.geteuid()}"
                return self._unreadable("registry.permission", message, hint)
        message = f"the directory cannot be read ({os.strerror(error.errno or 0)})"
        return self._unreadable("registry.unreadable", message)

    def _unreadable(self, code: str, message: str, hint: str | None = None) -> Scan:
        return Scan(
            self.directory,
            frozenset({os.path.abspath(self.directory)}),
            directory_ok=False,
            general=(Problem(self.directory, code, message, hint=hint),),
        )
