"""What a listener gives its reader, and its public class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeAlias

from psycopg import Notify

from pgmonkey.pool.checkout import wrong_side

if TYPE_CHECKING:
    from pgmonkey.config.models import ConnectionType

#: A server cuts a longer name in LISTEN, and refuses it in NOTIFY.
_LONGEST_CHANNEL: Final = 63


@dataclass(frozen=True, slots=True)
class Gap:
    """Tell the reader of a listener that notifications may be missing before this point.

    It comes when the listener listens again, so no later commit is missed. Look then at what may
    have been missed before. It may come although nothing was missed.

    Args:
        seconds: How long, at most, no notification could come: since the last sign of life of the
            connection that was lost.
        reason: Why that connection was lost, in the words of libpq, scrubbed of secrets.

    Example:
        >>> Gap(1.5, "server closed the connection unexpectedly").seconds
        1.5
    """

    seconds: float
    reason: str


#: What a listener yields.
Note: TypeAlias = Notify | Gap


class Notes(Protocol):
    """What `Listener.notifies()` returns: for `for` or `async for`."""

    def __iter__(self) -> Iterator[Note]: ...
    def __next__(self) -> Note: ...
    def __aiter__(self) -> AsyncIterator[Note]: ...
    async def __anext__(self) -> Note: ...


class Listener(ABC):
    """Wait for the notifications of some channels, on a connection of its own.

    `handle.listen(...)` makes one. Enter it once, with `with` or `async with` as its handle, and iterate
    over it: it yields a `psycopg.Notify` for each notification, and a `Gap` where some may be
    missing. One thread or task at a time reads it; each reader can have a listener of its own. An
    interrupted or cancelled wait loses nothing: ask for the next one again.

    Attributes:
        channels: Their names.

    Example:
        >>> with registry.get("orders").listen("news") as notes:
        ...     with registry.get("orders") as conn:
        ...         _ = conn.execute("NOTIFY news, 'tea'")
        ...     print(next(notes).payload)
        tea
    """

    channels: tuple[str, ...]

    if TYPE_CHECKING:

        def __enter__(self) -> Self: ...
        def __exit__(self, kind: object, error: object, trace: object, /) -> None: ...
        def __iter__(self) -> Iterator[Note]: ...
        def __next__(self) -> Note: ...
        async def __aenter__(self) -> Self: ...
        async def __aexit__(self, kind: object, error: object, trace: object, /) -> None: ...
        def __aiter__(self) -> AsyncIterator[Note]: ...
        async def __anext__(self) -> Note: ...

    def __init__(
        self, name: str, connection_type: ConnectionType, channels: tuple[str, ...]
    ) -> None:
        self.channels = checked(channels)
        self._name = name
        self._connection_type = connection_type

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {', '.join(self.channels)}>"

    if not TYPE_CHECKING:

        def _refuse(self, *_exc_info: object) -> Any:
            raise wrong_side(self._name, self._connection_type, '.listen("channel") as notes')

        __enter__ = __exit__ = __iter__ = __next__ = _refuse
        __aenter__ = __aexit__ = __aiter__ = __anext__ = _refuse

    @abstractmethod
    def notifies(self, *, timeout: float | None = None, stop_after: int | None = None) -> Notes:
        """Iterate for a time, or up to a number, as psycopg's `Connection.notifies`.

        Later notifications are for the next iteration. While the server does not answer, it may end
        up to `connect_timeout` later than the timeout.

        Args:
            timeout: Seconds; default: no end.
            stop_after: How many notifications and gaps; default: no end.

        Example:
            >>> with registry.get("orders").listen("news") as notes:
            ...     list(notes.notifies(timeout=0.1))
            []
        """

    @abstractmethod
    def stop(self) -> None:
        """End the iteration and the connection; from any thread, at once, also before it is entered.

        Example:
            >>> with registry.get("orders").listen("news") as notes:
            ...     notes.stop()
            ...     list(notes)
            []
        """


def checked(channels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of channels, each once.

    Raises:
        TypeError: one is no text.
        ValueError: there is none, or one that a server does not take as it is.
    """
    for channel in channels:
        if not isinstance(channel, str):
            raise TypeError(f"a channel is a str, not {type(channel).__name__}")
        if not 1 <= len(channel.encode()) <= _LONGEST_CHANNEL or "\0" in channel:
            raise ValueError(
                f"a channel has a name of 1 to {_LONGEST_CHANNEL} bytes, without NUL: {channel!r}"
            )
    if not channels:
        raise ValueError('name a channel: listen("orders")')
    return tuple(dict.fromkeys(channels))
