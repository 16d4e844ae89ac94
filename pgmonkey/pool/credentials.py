"""Credentials made on demand: read when a connection is made, and used for as long as they hold.

This is the one owner of what a source gave last, over all versions, pools, loops and probes that
use it. Many connects at once make one call. A call has a thread of its own, because it may block for
longer than any client waits.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from pgmonkey.config.on_demand import GROUP, Command, Credentials, Resolver, Source
from pgmonkey.config.redaction import Secret, is_sensitive, mask_urls, may_be_secret, scrub
from pgmonkey.config.secret_files import LIMIT, SecretFileError, secret_text
from pgmonkey.pool.clock import monotonic
from pgmonkey.pool.connecting import connect_timeout
from pgmonkey.pool.failures import HINTS, ConnectFailure
from pgmonkey.pool.programs import run

if TYPE_CHECKING:
    from pgmonkey.config.on_demand import OnDemand
    from pgmonkey.config.settings import DatabaseConfig

#: Seconds for which a failure stands for the next calls: a source that is down is not stormed.
_FAILED: Final = 1.0
#: Seconds for which that is used which has expired when it comes.
_EXPIRED: Final = 1.0
#: Seconds for which a client waits longer than a call may take, to hear why it was ended.
_LAST_WORDS: Final = 0.2
#: Seconds over its `timeout` after which a call hangs, and another one may begin: what it waits for
#: may be lost for ever. And how many may hang.
_HANGS: Final = 1.0
_MOST_LATE: Final = 8
#: How much of a foreign error is shown: its end.
_LONGEST_ERROR: Final = 300
#: How many words of what a failed command wrote as its value are looked for in its errors.
_MOST_WORDS: Final = 50


class Given(NamedTuple):
    """What a source gave.

    Args:
        password: The password.
        user: The user that it belongs to; `None` for that of the file.
        read_at: When, on the monotonic clock.
        until: How long it is used for new connections, on the monotonic clock.
    """

    password: Secret
    user: str | None
    read_at: float
    until: float

    def parameters(self) -> dict[str, str]:
        """Return the connection parameters, in clear. Drop them at once."""
        user = {} if self.user is None else {"user": self.user}
        return {"password": self.password.reveal(), **user}

    def logs_in_as(self, other: Given) -> bool:
        """Tell whether another one is the same login."""
        return (self.user, self.password) == (other.user, other.password)


class _Failed(NamedTuple):
    """Why a source gave nothing; scrubbed of what the source knows."""

    text: str
    until: float = 0.0


Answer: TypeAlias = Given | _Failed


class _Kept:
    """What is known of one source."""

    __slots__ = ("answer", "began", "calling", "known", "late", "user")

    def __init__(self) -> None:
        #: The last answer; `None` if it may not be used any more.
        self.answer: Answer | None = None
        #: The call under way, and when it began.
        self.calling: Future[Answer] | None = None
        self.began = 0.0
        #: How many calls hang, so that no client waits for them any more.
        self.late = 0
        #: The last password, good or not: foreign errors may quote it.
        self.known: tuple[Secret, ...] = ()
        #: The last user, if it gives users, whose leases end.
        self.user: str | None = None


_kept: Final[WeakKeyDictionary[Source, _Kept]] = WeakKeyDictionary()
# Guards all of it. Never held while a source is called, or waited for.
_lock = threading.Lock()


def obtained(config: DatabaseConfig) -> Given | ConnectFailure:
    """Return what the credentials of a database are now, or why there are none.

    Costs nothing while the last ones hold, else a call of the command or resolver, which many
    connects share. It takes at most the `timeout` of the reference and `connect_timeout`.

    Args:
        config: One whose credentials are made on demand.
    """
    assert config.on_demand is not None
    found = _begin(config.on_demand.source)
    if isinstance(found, Future):
        limit = _limit(config)
        wait([found], limit)
        found = _result(found, config.on_demand.source, limit)
    return _checked(found, config)


async def obtained_async(config: DatabaseConfig) -> Given | ConnectFailure:
    """Return what the credentials of a database are now, without blocking a loop: see `obtained`."""
    assert config.on_demand is not None
    found = _begin(config.on_demand.source)
    if isinstance(found, Future):
        limit = _limit(config)
        waiting = asyncio.wrap_future(found)
        try:
            await asyncio.wait([waiting], timeout=limit)
        finally:
            waiting.cancel()  # the wait, not the call: others may wait for that
        found = _result(found, config.on_demand.source, limit)
    return _checked(found, config)


def forget(on_demand: OnDemand, given: Given) -> bool:
    """Use this no more, because a server has refused it; return false if there is a newer one."""
    with _lock:
        kept = _kept.get(on_demand.source)
        if kept is None or kept.answer is not given:
            return False
        kept.answer = None
        return True


def outdated(on_demand: OnDemand, users: set[str]) -> bool:
    """Tell whether connections of these users are to be replaced by those of another one.

    That is so when the time of the last user is over, or somebody has got another one. A token
    without a user counts when a connection is made, not later.

    Args:
        on_demand: How the credentials of the connections are made.
        users: Their users.
    """
    kept = _kept.get(on_demand.source)
    if not users or kept is None or kept.user is None or kept.calling is not None:
        return False
    answer = kept.answer
    if answer is None or answer.until <= monotonic():
        return True
    return isinstance(answer, Given) and bool(users - {answer.user})


def reset() -> None:
    """Forget the calls of the parent, whose threads do not exist in a child process."""
    global _lock
    _lock = threading.Lock()  # the parent's may be held for ever
    for kept in _kept.values():
        kept.calling = None
        kept.late = 0


def _limit(config: DatabaseConfig) -> float:
    assert config.on_demand is not None
    return min(config.on_demand.source.timeout + _LAST_WORDS, connect_timeout(config))


def _begin(source: Source) -> Answer | Future[Answer]:
    """Return what the source gave, if it still counts; else the call under way, or a new one."""
    with _lock:
        kept = _kept.get(source)
        if kept is None:
            kept = _kept[source] = _Kept()
        if kept.answer is not None and monotonic() < kept.answer.until:
            return kept.answer
        late = monotonic() - kept.began > source.timeout + _HANGS and kept.late < _MOST_LATE
        if kept.calling is None or late:
            calling: Future[Answer] = Future()
            calling.set_running_or_notify_cancel()
            try:
                threading.Thread(
                    target=_call,
                    args=(source, kept, calling),
                    name="pgmonkey-credentials",
                    daemon=True,
                ).start()
            except RuntimeError as error:
                return _Failed(f"cannot be called: {error}")
            kept.late += kept.calling is not None
            kept.calling, kept.began = calling, monotonic()
        return kept.calling


def _result(calling: Future[Answer], source: Source, limit: float) -> Answer:
    if calling.done():
        return calling.result()
    return _Failed(f"{source.label} gave nothing within {limit:g} s")


def _checked(answer: Answer, config: DatabaseConfig) -> Given | ConnectFailure:
    on_demand = config.on_demand
    assert on_demand is not None
    if isinstance(answer, Given):
        if answer.user is not None or not on_demand.gives_user:
            return answer
        answer = _Failed(f"{on_demand.source.label} gave a password, but no user")
    text = scrub(f"{on_demand.place}: {answer.text}", config.unquotable)
    return ConnectFailure("credentials", text, hint=HINTS["credentials"])


# The calls, each in its thread


def _call(source: Source, kept: _Kept, calling: Future[Answer]) -> None:
    known = kept.known
    try:
        answer = _asked(source, known)
    except BaseException as error:  # noqa: BLE001 - those who wait must hear of it
        answer = _Failed(f"{source.label} failed: {_quoted(_described(error), known)}")
    with _lock:
        if kept.calling is calling:
            kept.calling = None
            _keep(kept, answer)
        else:  # it was late, or the parent's
            kept.late = max(0, kept.late - 1)
    calling.set_result(answer)


def _keep(kept: _Kept, answer: Answer) -> None:
    if isinstance(answer, _Failed):
        kept.answer = answer._replace(until=monotonic() + _FAILED)
        return
    kept.answer = answer
    kept.known = (answer.password,)
    kept.user = answer.user


def _asked(source: Source, known: Iterable[Secret]) -> Answer:
    if isinstance(source, Command):
        return _output(source, known)
    return _resolved(source, known)


def _output(source: Command, known: Iterable[Secret]) -> Answer:
    environment = {**os.environ, **(source.env or {})}
    try:
        ended = run(
            source.arguments,
            source.directory,
            environment=environment,
            timeout=source.timeout,
            limit=LIMIT,
        )
    except (OSError, ValueError) as error:
        reason = (
            os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        )
        return _Failed(f"{source.label} cannot be run: {_quoted(reason, source.hidden)}")
    if len(ended.output) > LIMIT:
        what = f"gave more than {LIMIT // 1024} KiB"
    elif ended.code is None:
        what = f"did not end within {source.timeout:g} s, and was killed"
    elif ended.code:
        what = (
            f"ended with exit code {ended.code}"
            if ended.code > 0
            else f"was killed by signal {-ended.code}"
        )
    else:
        try:
            return _given(secret_text(ended.output), None, None, source)
        except SecretFileError as error:
            what = f"gave nothing that can be used: its output {error}"
    # What it wrote as the value may be in its errors, too.
    words = ended.output.decode("utf-8", "replace").split()
    written = map(Secret, words[:_MOST_WORDS])
    secrets = (*known, *source.hidden, *written, *_secret_variables(environment))
    errors = _quoted(ended.errors.decode("utf-8", "replace"), secrets)
    return _Failed(f"{source.label} {what}{f': {errors}' if errors else ''}")


def _secret_variables(environment: Mapping[str, str]) -> Iterator[Secret]:
    """Yield the variables that have the name of a secret; of those given here, that look like one."""
    for name, value in environment.items():
        given = os.environ.get(name) != value
        if is_sensitive(name) or (given and may_be_secret(value)):
            yield Secret(value)


def _resolved(source: Resolver, known: Iterable[Secret]) -> Answer:
    function = source.function
    if function is None:
        from importlib import metadata  # slow to import, and seldom needed

        entry_points = metadata.entry_points(group=GROUP, name=source.name)
        if not entry_points:
            return _Failed(
                f"there is no resolver {source.name} in this program, nor an entry point of this"
                f" name in the group {GROUP}"
            )
        function = next(iter(entry_points)).load()
    try:
        found = function(source.key)
        if inspect.isawaitable(found):
            found = asyncio.run(_awaited(found, source.timeout))
    except Exception as error:  # noqa: BLE001 - any error of the application's is a reason
        return _Failed(f"{source.label} failed: {_quoted(_described(error), known)}")
    if isinstance(found, str):
        found = Credentials(found)
    if not isinstance(found, Credentials):
        return _Failed(f"{source.label} returned {type(found).__name__}, not str or Credentials")
    return _usable(found, source)


async def _awaited(found: Awaitable[Any], timeout: float) -> Any:
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await found
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"no result within {timeout:g} s") from None
        raise


def _usable(found: Credentials, source: Source) -> Answer:
    texts: dict[str, Any] = {"password": found.password}
    if found.user is not None:
        texts["user"] = found.user
    for what, text in texts.items():
        if not isinstance(text, str):
            return _Failed(f"{source.label} returned a {what} that is no text")
        try:
            secret_text(
                text.encode() + b"\n"
            )  # a function means the newline at the end of its text
        except SecretFileError as error:
            return _Failed(f"{source.label} returned a {what} that {error}")
        except UnicodeEncodeError:
            return _Failed(f"{source.label} returned a {what} that is not UTF-8 text")
    return _given(found.password, found.user, found.expires_at, source)


def _given(password: str, user: str | None, expires_at: float | None, source: Source) -> Given:
    now = monotonic()
    seconds = source.refresh if expires_at is None else expires_at - time.time()
    if seconds <= 0:  # the clock of another machine may be behind
        seconds = _EXPIRED
    return Given(Secret(password), user, now, now + seconds)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _quoted(text: str, secrets: Iterable[Secret]) -> str:
    """Return a foreign text so that it may be shown: its end, in one line."""
    shown = " ".join(scrub(text.strip(), secrets).split())
    shown = " ".join(mask_urls(word) for word in shown.split(" "))  # a URL hides what is beside it
    return shown if len(shown) <= _LONGEST_ERROR else f"...{shown[-_LONGEST_ERROR:]}"
