"""The directory of a registry: every file of it, read again only when something changed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Final, NamedTuple

from pgmonkey.config.belief import (
    SETTLE,
    Doubt,
    Doubts,
    Look,
    Place,
    removal_time,
    settling_time,
    untrusted_absence,
)
from pgmonkey.config.interpolation import LoadOptions
from pgmonkey.config.loader import load_bytes
from pgmonkey.config.on_demand import ResolverFunction
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
from pgmonkey.config.sources import SourceFile, Sources, Statuses, directory_of, read_source
from pgmonkey.config.trust import Trust, TrustPolicy
from pgmonkey.config.yaml_reader import DEFAULTS_FILE, LIMIT, Defaults, parse, unreadable
from pgmonkey.errors import Problem, RegistryConfigError, count, did_you_mean, sorted_problems


class Scan(NamedTuple):
    """Hold the databases and problems of a directory at one moment."""

    directory: str
    watched_directories: frozenset[str]  # a change in one of them can change the scan
    directory_ok: bool  # if not, it could not be read: the rest is what was believed before
    general: tuple[Problem, ...]  # of the directory, of file names, of the defaults
    configs: Mapping[str, DatabaseConfig] = MappingProxyType({})
    #: A database with a config may have problems, too: its files are not what they seem to be.
    problems: Mapping[str, tuple[Problem, ...]] = MappingProxyType({})
    #: The last good text of files with problems, with the values that its references have now.
    kept: Mapping[str, DatabaseConfig] = MappingProxyType({})
    present: frozenset[str] = frozenset()  # the names that have a file, good or bad
    missing: frozenset[str] = frozenset()  # the names that were asked for and have no file
    declared: frozenset[str] = frozenset()  # the names that have a file, asked for or not
    #: When another look may believe what this one did not, on the clock of the look.
    due: float | None = None
    #: The directories that may be searched but not listed, with the files that are read there.
    unlisted: Mapping[str, frozenset[str]] = MappingProxyType({})

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
            hint = did_you_mean(name, self.declared)
            yield Problem(path, "registry.no_such_database", message, hint=hint, database=name)
        for name, problems in self.problems.items():
            for problem in problems:
                if problem.code.startswith("environment."):
                    yield replace(problem, path=self.directory, database=None)
                elif os.path.basename(problem.path).startswith("_"):
                    yield replace(problem, database=None)
                else:
                    yield replace(problem, database=name)


#: The form of the name of a database.
NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_SUFFIXES: Final = (".yaml", ".yml")


class _LoadedFile(NamedTuple):
    """Remember one file: how it looked, and its config or its problems."""

    file: SourceFile | None
    result: DatabaseConfig | tuple[Problem, ...]
    sources: Sources | None
    defaults: _Defaults  # what was merged under the file

    def current(self, statuses: Statuses) -> bool:
        """Tell whether the files and variables behind the values are as they were."""
        return self.sources is None or self.sources.values_current(statuses)

    @property
    def meaning(self) -> Hashable:
        """What is equal for equal results."""
        return self.result.digest if isinstance(self.result, DatabaseConfig) else self.result

    @property
    def has_problems(self) -> bool:
        """Whether it has problems of its own: those of the defaults were believed before."""
        return not isinstance(self.result, DatabaseConfig) and not self.defaults.problems

    @property
    def files(self) -> dict[str, SourceFile | None]:
        """The file itself, its secret files and its TLS files, by path."""
        files = {} if self.sources is None else dict(self.sources.files)
        if self.file is not None:
            files[self.file.path] = self.file
        return files


class _Defaults(NamedTuple):
    """Remember the defaults of a directory: the document, or its problems."""

    file: SourceFile | None = None  # `None` if there is none that can be used
    defaults: Defaults | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def meaning(self) -> Hashable:
        """What is equal for equal defaults."""
        return self.file.digest if self.file is not None else self.problems


def load_contents(
    directory: str, contents: Mapping[str, bytes], options: LoadOptions
) -> dict[str, DatabaseConfig | None]:
    """Load the databases of files that are no longer, or not yet, in a directory.

    References, and the paths in them, are resolved as if the files were there now. `None` is a
    database with problems.

    Args:
        directory: The directory of the registry.
        contents: What is in each file, by its name; files that declare no database are ignored.
        options: How files are read.
    """
    defaults: Defaults | None = None
    usable = True
    if (content := contents.get(DEFAULTS_FILE)) is not None:
        path = os.path.join(directory, DEFAULTS_FILE)
        document, problems = parse(content, path)
        defaults = None if document is None else Defaults(path, document)
        usable = not problems
    loaded: dict[str, DatabaseConfig | None] = {}
    for file, content in contents.items():
        name, suffix = os.path.splitext(file)
        if suffix not in _SUFFIXES or NAME.fullmatch(name) is None:
            continue
        if name in loaded or not usable:  # two files of one name are a problem, too
            loaded[name] = None
            continue
        path = os.path.join(directory, file)
        result = load_bytes(content, name=name, path=path, options=options, defaults=defaults)
        loaded[name] = result.config
    return loaded


LastGood = Callable[[str], "DatabaseConfig | None"]


def _no_config(_name: str) -> None:
    """Return no last good configuration."""


class DirectoryLoader:
    """Load the databases that the files of one directory declare.

    The first scan reads everything. A later one looks at times and sizes, and reads again only
    what changed: a file, the secret files and TLS files that it names, the variables that it
    refers to. What is missing, or may be half written, changes nothing until later looks agree.
    Not for use by two threads at once.

    With `names`, only these databases are loaded, and other files are not opened. With `env`,
    references take variables from it instead of the environment. A database whose file, secrets or
    TLS files other accounts can change is not loaded if `trust` is `strict`; `on_untrusted` is
    called with each such file and the reason once, if it is `strict` or `warn`. All databases
    together may have `max_connections` connections to servers. With `secrets_from`, `from_file` reads
    the files of the same names in that directory, to try new secrets before they are mounted.

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
        env: Mapping[str, str] | None = None,
        trust: Trust = "off",
        on_untrusted: Callable[[str, str], None] | None = None,
        max_connections: int | None = None,
        resolvers: Mapping[str, ResolverFunction] | None = None,
        secrets_from: str | None = None,
    ) -> None:
        #: The directory, as it was given.
        self.directory = os.fspath(directory)
        #: The only databases that are read; `None`: all.
        self.only = None if names is None else frozenset(names)
        self._options = LoadOptions(
            allow_sensitive_defaults=allow_sensitive_defaults,
            environ=os.environ if environ is None else environ,
            env=env,
            resolvers=resolvers,
            secrets_from=secrets_from,
        )
        # What is believed: the databases, the defaults, the device and inode of the directory.
        self._loaded: dict[str, _LoadedFile] = {}
        self._defaults = _Defaults()
        self._identity: tuple[int, int] | None = None
        self._declared = frozenset[str]()
        self._general: tuple[Problem, ...] = ()
        # What is not believed yet; of databases, what their files would mean.
        self._doubts: dict[str, Doubt] = {}
        self._doubted: dict[str, _LoadedFile] = {}
        self._policy = TrustPolicy(trust, on_untrusted)
        self._max_connections = max_connections
        # At first there is nothing better than an old file.
        self._refuses_unlinked = False

    def scan(self, look: Look | None = None, last_good: LastGood = _no_config) -> Scan:
        """Read what changed since the last scan; return all databases and problems.

        Args:
            look: When and why; by default everything that the files say is believed at once.
            last_good: Returns the configuration that a database keeps while its file has problems.
        """
        self._policy.look_again()
        try:
            return from_one_snapshot(partial(self._scan, look, last_good))
        except SnapshotMovedError:
            message = "the directory is replaced again and again"
            return self._keep(self._problem("registry.moving", message), look, last_good)

    def _scan(self, look: Look | None, last_good: LastGood, snapshot: Snapshot) -> Scan:
        try:
            status = os.stat(self.directory)
            with os.scandir(self.directory) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            return self._keep(self._no_directory(error), look, last_good)
        if self._refuses_unlinked and not found and is_unlinked(self.directory):
            message = f"the directory {UNLINKED}"
            problem = self._problem("registry.unlinked", message, KEEP_THE_DIRECTORY)
            return self._keep(problem, look, last_good)
        files, general = self._sorted(found)
        has_defaults = any(entry.name == DEFAULTS_FILE for entry in found)
        place = Place((status.st_dev, status.st_ino), frozenset(files), has_defaults)
        if self._identity is not None:
            had_defaults = self._defaults.meaning != ()
            believed = Place(self._identity, frozenset(self._loaded), had_defaults)
            if code := untrusted_absence(believed, place, look):
                return self._keep(self._no_files(code, believed, place), look, last_good)
        self._identity = place.identity
        self._declared = place.names
        doubts = Doubts(look, self._doubts)
        self._read_defaults(has_defaults, snapshot, doubts)
        self._look_at_environment()
        statuses: Statuses = {}
        names = files.keys() if self.only is None else files.keys() & self.only
        doubted: dict[str, _LoadedFile] = {}
        for name in names | self._loaded.keys():
            known = self._loaded.get(name)
            loaded = self._load(name, files.get(name, ()), snapshot, statuses)
            if loaded is not known and self._is_doubted(name, known, loaded, doubts):
                if loaded is not None:
                    doubted[name] = loaded
                loaded = known and self._renewed(known, statuses, doubts)
            if loaded is None:
                self._loaded.pop(name, None)
            else:
                self._loaded[name] = loaded
        self._doubted = doubted
        self._general = (*general, *self._defaults.problems)
        return self._seen(doubts, statuses, last_good)

    def _keep(self, problem: Problem, look: Look | None, last_good: LastGood) -> Scan:
        """Keep what was believed before: the directory has a problem and says nothing of files."""
        doubts = Doubts(look, self._doubts)
        statuses: Statuses = {}
        for name, loaded in self._loaded.items():
            self._loaded[name] = self._renewed(loaded, statuses, doubts)
        if not doubts.remain("", problem, 0.0 if look is None or look.asked else SETTLE):
            self._general = (problem,)
        return self._seen(doubts, statuses, last_good, directory_ok=False)

    def _seen(
        self, doubts: Doubts, statuses: Statuses, last_good: LastGood, *, directory_ok: bool = True
    ) -> Scan:
        """Return what is believed after a look."""
        configs: dict[str, DatabaseConfig] = {}
        problems: dict[str, tuple[Problem, ...]] = {}
        kept: dict[str, DatabaseConfig] = {}
        watched = {os.path.abspath(self.directory)}
        unlinked = self._unlinked([os.path.join(self.directory, DEFAULTS_FILE)])
        for name, loaded in sorted(self._loaded.items()):
            if isinstance(loaded.result, DatabaseConfig):
                configs[name] = loaded.result
                if old := (*unlinked, *self._unlinked(loaded.result.sources.unlinked)):
                    problems[name] = old
            else:
                problems[name] = loaded.result
                if (config := last_good(name)) is not None:
                    kept[name] = self._resolved_again(config, statuses, doubts)
                    watched |= config.sources.directories
            if loaded.sources is not None:
                watched |= loaded.sources.directories
        self._doubts = doubts.left
        self._refuses_unlinked = True
        short = shortfalls(configs.values(), self._max_connections, self.directory)
        present = frozenset(self._loaded)
        missing = self.only - present if self.only and directory_ok else frozenset[str]()
        return Scan(
            self.directory,
            frozenset(watched),
            directory_ok,
            general=(*self._general, *unlinked, *short),
            configs=configs,
            problems=problems,
            kept=kept,
            present=present,
            missing=missing,
            declared=self._declared,
            due=doubts.due,
            unlisted=self._unlisted(watched, kept),
        )

    def _is_doubted(
        self, name: str, known: _LoadedFile | None, loaded: _LoadedFile | None, doubts: Doubts
    ) -> bool:
        """Tell whether what a look found of a database is not believed yet."""
        if loaded is None:  # in this directory: in another one, the time begins again
            return doubts.remain(name, self._identity, removal_time(doubts.look))
        if known is not None and known.meaning == loaded.meaning:
            return False
        delay = settling_time(known.files if known else {}, loaded.files, doubts.look)
        if loaded.file is None or (loaded.has_problems and not doubts.asked):
            delay = max(delay, SETTLE)
        return doubts.remain(name, loaded.meaning, delay)

    # Values of a text that counts although its file says something else, or nothing

    def _renewed(self, known: _LoadedFile, statuses: Statuses, doubts: Doubts) -> _LoadedFile:
        """Return what is known of a file with the values that its references have now."""
        if not isinstance(known.result, DatabaseConfig):
            return known
        config = self._resolved_again(known.result, statuses, doubts)
        return known._replace(result=config, sources=config.sources)

    def _resolved_again(
        self, config: DatabaseConfig, statuses: Statuses, doubts: Doubts
    ) -> DatabaseConfig:
        """Return a config with the values of now; the same one if they cannot be used."""
        if config.sources.values_current(statuses):
            return config
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
        resolved = loaded.config
        if resolved is None or self._policy.problems(others, config.path, config.name):
            return config
        delay = settling_time(config.sources.files, resolved.sources.files, doubts.look)
        if resolved.digest != config.digest and doubts.remain(
            f"{config.name}/values", resolved.digest, delay
        ):
            return config
        return resolved

    def _unlisted(
        self, directories: Iterable[str], kept: Mapping[str, DatabaseConfig]
    ) -> Mapping[str, frozenset[str]]:
        """Return the directories that may not be listed, with the files that are read there."""
        effective = os.access in os.supports_effective_ids
        unlisted = [
            one for one in directories if not os.access(one, os.R_OK, effective_ids=effective)
        ]
        if not unlisted:
            return MappingProxyType({})
        files: dict[str, set[str]] = {one: set() for one in unlisted if os.path.isdir(one)}
        sources = [loaded.sources for loaded in self._loaded.values() if loaded.sources]
        for one in (*sources, *(config.sources for config in kept.values())):
            for path in one.files:
                if (directory := directory_of(path)) in files:
                    files[directory].add(path)
        return {directory: frozenset(paths) for directory, paths in files.items()}

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
            elif NAME.fullmatch(name):
                files.setdefault(name, []).append(entry)
            elif self.only is None:
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
        self,
        name: str,
        candidates: Sequence[os.DirEntry[str]],
        snapshot: Snapshot,
        statuses: Statuses,
    ) -> _LoadedFile | None:
        """Return what the files of a database say; what is known, if it is up to date.

        `None` if the file is gone.
        """
        if not candidates:
            return None
        if len(candidates) > 1:
            return self._unusable(self._declared_twice(name, list(candidates)))
        found = candidates[0]
        # What the file was when it was read; useless if a value behind its references changed.
        known = [
            (one, one.file)
            for one in (self._loaded.get(name), self._doubted.get(name))
            if one is not None
            and one.file is not None
            and one.defaults is self._defaults
            and one.current(statuses)
        ]
        if known:
            try:
                signature = signature_of(found.stat())
            except OSError:
                signature = None  # reading it reports the error
            for loaded, file in known:
                if file.looks_like(signature):
                    return loaded
        path = found.path
        try:
            content, _, file = read_source(snapshot, path, LIMIT)
        except SecretFileError as error:
            if error.code == "secret.missing" and not os.path.lexists(path):
                return None
            return self._unusable((unreadable(path, error, name),))
        for loaded, before in known:
            if before.path == path and before.is_confirmed_by(file):
                return loaded
        return self._made(content, name, path, file)

    def _unusable(self, problems: tuple[Problem, ...]) -> _LoadedFile:
        return _LoadedFile(None, problems, None, self._defaults)

    def _made(self, content: bytes, name: str, path: str, file: SourceFile) -> _LoadedFile:
        defaults = self._defaults
        if defaults.problems:
            return _LoadedFile(file, defaults.problems, None, defaults)
        loaded = load_bytes(
            content,
            name=name,
            path=path,
            options=self._options,
            defaults=defaults.defaults,
            file=file,
            keep_text=True,
        )
        others = loaded.sources.paths if loaded.sources else ()
        problems = self._policy.problems((path, *others), path, name)
        if loaded.config is None:
            problems = loaded.problems
        # Without the file: a change of permissions alone does not show in how it looks.
        untrusted = any(problem.code == "file.untrusted" for problem in problems)
        result = loaded.config if loaded.config is not None and not problems else problems
        return _LoadedFile(None if untrusted else file, result, loaded.sources, defaults)

    def _read_defaults(self, exists: bool, snapshot: Snapshot, doubts: Doubts) -> None:
        """Read the defaults again; every file is made again under others."""
        known, path = self._defaults, os.path.join(self.directory, DEFAULTS_FILE)
        defaults = self._found_defaults(path, snapshot) if exists else _Defaults()
        if defaults.meaning == known.meaning:
            if known.file is not None and defaults.file is not None:
                known.file.is_confirmed_by(defaults.file)
            return
        if defaults == _Defaults():
            delay = removal_time(doubts.look)
        else:
            delay = settling_time({path: known.file}, {path: defaults.file}, doubts.look)
            if defaults.problems and not doubts.asked:
                delay = max(delay, SETTLE)
        if not doubts.remain(DEFAULTS_FILE, defaults.meaning, delay):
            self._defaults = defaults

    def _found_defaults(self, path: str, snapshot: Snapshot) -> _Defaults:
        known = self._defaults
        try:
            content, _, file = read_source(snapshot, path, LIMIT)
        except SecretFileError as error:
            if error.code == "secret.missing" and not os.path.lexists(path):
                return _Defaults()
            return _Defaults(problems=(unreadable(path, error),))
        if known.file is not None and file.has_content_of(known.file):
            return known._replace(file=file)
        document, problems = parse(content, path)
        if untrusted := self._policy.problems((path,), path, None):
            return _Defaults(problems=untrusted)
        return _Defaults(file, None if document is None else Defaults(path, document), problems)

    def _look_at_environment(self) -> None:
        """Make every file again if a variable that libpq reads was set or unset."""
        options = replace(self._options)  # takes the variables of now
        if options.variables != self._options.variables:
            self._options = options
            self._defaults = self._defaults._replace()  # another one, as far as files can tell

    def _no_directory(self, error: OSError) -> Problem:
        match error:
            case FileNotFoundError():
                hint = "make it, or name another"
                return self._problem("registry.missing", "the directory does not exist", hint)
            case NotADirectoryError():
                message = "expected a directory, got a file"
                hint = "name the directory of a registry, not one of its files"
                return self._problem("registry.not_a_directory", message, hint)
            case PermissionError():
                message = "the directory may not be read (permission denied)"
                hint = f"the process runs as uid {os.geteuid()}"
                return self._problem("registry.permission", message, hint)
        message = f"the directory cannot be read ({os.strerror(error.errno or 0)})"
        return self._problem("registry.unreadable", message)

    def _no_files(self, code: str, believed: Place, seen: Place) -> Problem:
        gone = len(believed.names - seen.names)
        if code == "registry.empty":
            message = (
                f"no file of a database is left ({count(gone, 'database')} before); none is removed"
            )
            hint = "put the files back; to remove all databases, reload explicitly (SIGHUP)"
            if seen.identity != believed.identity:
                hint = "it is another directory than before: is its volume mounted?"
        else:
            files = count(gone + (believed.has_defaults and not seen.has_defaults), "file")
            message = f"the directory is on another device, without {files} that it had"
            hint = "is its volume mounted? to accept the directory, reload explicitly (SIGHUP)"
        return self._problem(code, message, hint)

    def _problem(self, code: str, message: str, hint: str | None = None) -> Problem:
        return Problem(self.directory, code, message, hint=hint)
