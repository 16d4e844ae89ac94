"""Look for the session's secret in everything that a test makes visible.

The passwords that the kit hands out all contain one random core. After every test the plugin
searches for it, as it is and in its usual disguises, in:

- captured standard output and error, also what `capsys` and `capfd` gave to the test;
- every log record, with the root logger and psycopg's at DEBUG, formatted with its exception;
- structlog events, whatever the test configured;
- warnings;
- the default Prometheus registry;
- every exception that `pytest.raises` caught: text, arguments, causes and contexts, and a traceback
  that shows the local variables of our frames and of those that they called (a test that calls
  psycopg by itself answers for the passwords that it passes).

What a test gets in other ways (the answer of an HTTP request, the output of a process) it gives to
`canary.check`.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import logging
import re
import secrets
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, MutableMapping
from pathlib import Path
from types import FrameType
from typing import Any

import prometheus_client
import pytest
import structlog

import pgmonkey.errors

# A digest is found by how it begins, so that a search takes no longer the more secrets there are.
_HEX_WIDTH = 12
_BASE64_WIDTH = 20
_HEX = re.compile(rf"[0-9a-f]{{{_HEX_WIDTH},}}")
_BASE64 = re.compile(rf"[A-Za-z0-9+/]{{{_BASE64_WIDTH},}}")
_PACKAGE = str(Path(pgmonkey.errors.__file__).parent)
_numbers = itertools.count(1)


class Canary:
    """One random core, the secrets made from it, and the search for both.

    Args:
        core: The core; random unless a test of the kit wants to know it.
    """

    def __init__(self, core: str | None = None) -> None:
        self.core = core or f"canary{secrets.token_hex(8)}"
        self._secrets: list[str] = []
        self._forms = _forms(self.core)
        #: By how a digest of a secret begins: the whole digest, and its name.
        self._digests: dict[str, tuple[str, str]] = {}
        # Guards the list and the digests while a secret is added.
        self._lock = threading.Lock()
        self._learn(self.core)

    def __repr__(self) -> str:
        return f"<Canary, {len(self._secrets)} secrets>"

    def secret(self, *, hostile: bool = False) -> str:
        """Make a new secret.

        Args:
            hostile: With characters that mean something to YAML, URLs, shells, SQL and libpq.
        """
        number = next(_numbers)
        secret = f"""{self.core}x{number}""" + (""" '"\\@:/%#&?=${}<>,é""" if hostile else "")
        self._learn(secret)
        return secret

    def find(self, text: str) -> str | None:
        """Return how a secret is written in the text, or `None`; never the secret itself."""
        # Every secret contains the core, so the forms of the core find each of them.
        for form, name in self._forms.items():
            if form in text:
                return name
        for runs, width in ((_HEX, _HEX_WIDTH), (_BASE64, _BASE64_WIDTH)):
            for run in runs.findall(text):
                for start in range(len(run) - width + 1):
                    digest = self._digests.get(run[start : start + width])
                    if digest is not None:
                        whole, name = digest
                        return name if whole in run else f"{name}, shortened"
        return None

    def check(self, text: str | bytes, where: str = "text") -> None:
        """Fail if a secret is in the text.

        Raises:
            AssertionError: It is; says where and in which form.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        form = self.find(text)
        if form is not None:
            raise AssertionError(f"a secret leaked into {where}, {form}")

    def _learn(self, secret: str) -> None:
        """Know the digests of a secret by the way each begins."""
        data = secret.encode()
        found = {}
        for name in ("md5", "sha1", "sha256", "blake2b"):
            digest = hashlib.new(name, data, usedforsecurity=False)
            found[digest.hexdigest()[:_HEX_WIDTH]] = digest.hexdigest(), f"as {name}"
            encoded = base64.b64encode(digest.digest()).decode().rstrip("=")
            found[encoded[:_BASE64_WIDTH]] = encoded, f"as {name}"
        with self._lock:
            self._secrets.append(secret)
            self._digests |= found


def _forms(core: str) -> dict[str, str]:
    """Return the ways to write the core that show in a longer text, too."""
    data = core.encode()
    forms = {
        core: "as it is",
        core[::-1]: "reversed",
        data.hex(): "in hexadecimal",
        data.hex().upper(): "in hexadecimal",
        data.hex(" "): "in hexadecimal",
    }
    # Within a longer text the encoding depends on the offset of the core: there are three ways.
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * shift + data).decode()
            # The first and the last group also hold what is beside the core.
            forms[encoded[4 if shift else 0 : len(encoded) // 4 * 4 - 4]] = "in base64"
    return forms


class Sinks:
    """What became visible during the present test."""

    def __init__(self, canary: Canary) -> None:
        self.canary = canary
        self.leaks: list[str] = []

    def look(self, text: str, where: str) -> None:
        """Search one text, and remember a finding for the end of the test."""
        form = self.canary.find(text)
        if form is not None:
            finding = f"{where}, {form}"
            if finding not in self.leaks:
                self.leaks.append(finding)

    def look_at_exception(self, error: BaseException, where: str) -> None:
        """Search an exception as a log, a debugger or an error tracker would show it."""
        seen: set[int] = set()
        for item in _chain(error, seen):
            name = f"{where} ({type(item).__name__})"
            self.look(f"{item!s}\n{item!r}\n{item.args!r}", name)
            frames = _our_frames(item)
            # psycopg's connect errors hold the finished connection, password and all. A test that
            # calls psycopg by itself answers for that.
            if frames or type(item).__module__.startswith("pgmonkey"):
                for attribute, value in vars(item).items():
                    self.look(repr(value), f"{name}.{attribute}")
            for place, variable, value in _locals(frames):
                self.look(value, f"{name}, local {variable!r} of {place}")


def _our_frames(error: BaseException) -> list[FrameType]:
    """Return our frames of the traceback, and those that they called."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return list(
        itertools.dropwhile(lambda frame: not frame.f_code.co_filename.startswith(_PACKAGE), frames)
    )


def _locals(frames: Iterable[FrameType]) -> Iterator[tuple[str, str, str]]:
    for frame in frames:
        place = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"
        for variable, value in frame.f_locals.items():
            try:
                yield place, variable, repr(value)
            except Exception:
                continue  # half-made objects have no repr


def _chain(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    if id(error) in seen:
        return
    seen.add(id(error))
    yield error
    # A suppressed context is still there for an error tracker that walks the attributes.
    for other in (error.__cause__, error.__context__):
        if other is not None:
            yield from _chain(other, seen)
    if isinstance(error, BaseExceptionGroup):
        for other in error.exceptions:
            yield from _chain(other, seen)


class _LogHandler(logging.Handler):
    def __init__(self, sinks: Sinks) -> None:
        super().__init__(logging.DEBUG)
        self._sinks = sinks
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = f"{self.format(record)}\n{record.args!r}"
        except Exception:
            # A record that cannot be formatted is the test's finding (or logging's), not ours.
            self.handleError(record)
            return
        self._sinks.look(text, f"the log ({record.name})")


_sinks_key = pytest.StashKey[Sinks]()


def canary_of(config: pytest.Config) -> Canary:
    """Return the session's canary."""
    return config.stash[_sinks_key].canary


class CanaryPlugin:
    """The hooks; one object for a session."""

    def __init__(self, config: pytest.Config) -> None:
        self._sinks = config.stash[_sinks_key] = Sinks(Canary())
        self._undo: list[Callable[[], None]] = []
        self._watch_pytest_raises()
        self._watch_capture()
        self._watch_structlog()
        self._watch_logging()

    def pytest_unconfigure(self) -> None:
        """Put back what was wrapped."""
        while self._undo:
            self._undo.pop()()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        """Begin with nothing found."""
        self._sinks.leaks.clear()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Look at all that was captured; what was found fails the test at its end."""
        report = yield
        if call.when != "teardown":
            return report
        for title, text in report.sections:
            self._sinks.look(text, title.lower())
        metrics = prometheus_client.generate_latest(prometheus_client.REGISTRY).decode()
        self._sinks.look(metrics, "the default Prometheus registry")
        if self._sinks.leaks:
            report.outcome = "failed"
            findings = "\n".join(f"  - {leak}" for leak in self._sinks.leaks)
            report.longrepr = f"{report.longreprtext}\na secret leaked into\n{findings}".lstrip()
        return report

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        """Look at each warning."""
        self._sinks.look(str(warning_message.message), "a warning")

    def _watch_logging(self) -> None:
        handler = _LogHandler(self._sinks)
        root = logging.getLogger()
        loggers = [root, logging.getLogger("psycopg"), logging.getLogger("pgmonkey")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.DEBUG)
        root.addHandler(handler)

        def undo() -> None:
            root.removeHandler(handler)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

        self._undo.append(undo)

    def _watch_structlog(self) -> None:
        configure = structlog.configure
        sinks = self._sinks

        def look(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
            sinks.look(repr(event), "an event")
            return event

        def watched(processors: Any = None, **settings: Any) -> None:
            if processors is not None:
                processors = [look, *processors]
            configure(processors=processors, **settings)

        structlog.configure = watched  # type: ignore[assignment]  # for the life of the session
        self._undo.append(lambda: setattr(structlog, "configure", configure))

    def _watch_pytest_raises(self) -> None:
        leave = pytest.RaisesExc.__exit__
        sinks = self._sinks

        def watched(self: Any, kind: Any, error: BaseException | None, tb: Any) -> bool:
            expected = leave(self, kind, error, tb)
            if error is not None:
                sinks.look_at_exception(error, "an expected exception")
            return expected

        pytest.RaisesExc.__exit__ = watched  # type: ignore[method-assign]  # for the life of the session
        self._undo.append(lambda: setattr(pytest.RaisesExc, "__exit__", leave))

    def _watch_capture(self) -> None:
        read = pytest.CaptureFixture.readouterr
        sinks = self._sinks

        def watched(self: Any) -> Any:
            captured = read(self)
            sinks.look(f"{captured.out}\n{captured.err}", "captured output")
            return captured

        pytest.CaptureFixture.readouterr = watched  # type: ignore[method-assign]  # for the life of the session
        self._undo.append(lambda: setattr(pytest.CaptureFixture, "readouterr", read))


def pytest_configure(config: pytest.Config) -> None:
    """Install the plugin object."""
    if not config.pluginmanager.has_plugin("pgmonkey-canary"):
        config.pluginmanager.register(CanaryPlugin(config), "pgmonkey-canary")


@pytest.fixture(scope="session")
def canary(pytestconfig: pytest.Config) -> Canary:
    """The session's canary: `canary.secret()` makes passwords, `canary.check(text)` searches."""
    return canary_of(pytestconfig)
