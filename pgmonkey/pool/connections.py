"""The connections of one pool, idle or handed out, until the server has closed its end of each."""

from __future__ import annotations

from typing import Any, Generic, TypeVar
from weakref import ReferenceType, ref

C = TypeVar("C", bound=Any)


class Connections(Generic[C]):
    """Know every connection of one pool, and keep it alive unless it was lent.

    A client that borrows by hand gets a connection and nothing else, so the connection itself has to
    tell when the client has dropped it: nothing here keeps it alive meanwhile. Each method may be
    called from any thread and from a destructor, and takes no lock.
    """

    __slots__ = ("_kept", "_lent")

    def __init__(self) -> None:
        self._kept: set[C] = set()
        self._lent: dict[int, ReferenceType[C]] = {}

    def __len__(self) -> int:
        return len(self._kept) + len(self._lent)

    def __contains__(self, connection: C) -> bool:
        return connection in self._kept or id(connection) in self._lent

    def copy(self) -> set[C]:
        """Return those of this moment."""
        connections = self._kept.copy()
        if self._lent:
            connections.update(
                one for lent in list(self._lent.values()) if (one := lent()) is not None
            )
        return connections

    def add(self, connection: C) -> None:
        """Know a connection that was made."""
        self._kept.add(connection)

    def discard(self, connection: C) -> None:
        """Forget a connection whose server has closed its end."""
        self._kept.discard(connection)
        self._lent.pop(id(connection), None)

    def lend(self, connection: C) -> None:
        """Keep a connection alive no more: its borrower does."""
        self._lent[id(connection)] = ref(connection)
        self._kept.discard(connection)

    def keep(self, connection: C) -> bool:
        """Keep a lent connection alive again; false if none is known that was lent."""
        if id(connection) not in self._lent:
            return False
        self._kept.add(connection)  # first: an interrupt may come before the next line
        self._lent.pop(id(connection), None)
        return True
