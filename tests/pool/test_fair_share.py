"""Processes that share the connections of a server which has too few, as a model without I/O."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

import pytest

from pgmonkey.pool._async.rotation import pause_between
from pgmonkey.pool.connecting import Outage
from pgmonkey.pool.failures import ConnectFailure
from pgmonkey.pool.fair_share import REST, FairShare
from tests.pool.conftest import Clock

FULL = ConnectFailure("too_many_connections", "sorry, too many clients already")
MAX_SIZE = 10
#: Seconds of a login, and between two ticks of the thread of a registry.
LOGIN = 0.006
TICK = 0.5


@dataclass
class Member:
    """One process, whose clients always want more connections."""

    begins: float
    share: FairShare = field(default_factory=FairShare)
    outage: Outage = field(default_factory=Outage)
    held: int = 0
    resting: int = 0
    refused: int = 0
    area: float = 0.0
    since: float = 0.0
    #: Since when it has none, and for how long at most.
    without_since: float = 0.0
    without: float = 0.0


class Fleet:
    """Several processes at one server, from one event to the next."""

    def __init__(self, clock: Clock, slots: int, begins: list[float]) -> None:
        self.clock = clock
        self.slots = slots
        self.start = clock.now
        self.members = [Member(begin) for begin in begins]
        self.attempts: list[float] = []
        self.given_up = 0
        self._events: list[tuple[float, int, str, Member]] = []
        self._numbers = itertools.count()
        for member in self.members:
            member.without_since = member.since = self.start + member.begins
            self._plan(member.begins, "connect", member)
            self._plan(member.begins + TICK * random.random(), "tick", member)

    @property
    def left(self) -> int:
        return self.slots - sum(one.held for one in self.members)

    def run(self, seconds: float) -> None:
        end = self.start + seconds
        while self._events[0][0] < end:
            self.clock.now, _, what, member = heapq.heappop(self._events)
            getattr(self, what)(member)
        self.clock.now = end
        for member in self.members:
            self._change(member, 0)
            self._note_end_without(member)

    def connect(self, member: Member) -> None:
        if member.held + member.resting >= MAX_SIZE:
            self._plan(TICK, "connect", member)
        elif (pause := member.outage.pause_left()) > 0:
            self._plan(pause, "connect", member)
        else:
            self.attempts.append(self.clock.now)
            if self.left > 0:
                self._change(member, 1)
                member.outage.ended()
            else:
                member.refused += 1
                member.outage.failed(FULL, member.held)
            self._plan(LOGIN, "connect", member)

    def tick(self, member: Member) -> None:
        self._plan(TICK, "tick", member)
        if not member.share.is_due(member.held):
            return
        surplus = member.share.surplus(self.left, member.held, member.refused)
        self._change(member, -surplus)
        member.resting += surplus
        self.given_up += surplus
        for _ in range(surplus):
            self._plan(REST, "rested", member)

    def rested(self, member: Member) -> None:
        member.resting -= 1

    def _plan(self, pause: float, what: str, member: Member) -> None:
        heapq.heappush(self._events, (self.clock.now + pause, next(self._numbers), what, member))

    def _change(self, member: Member, number: int) -> None:
        member.area += member.held * (self.clock.now - member.since)
        member.since = self.clock.now
        if not member.held and number:
            self._note_end_without(member)
        member.held += number

    def _note_end_without(self, member: Member) -> None:
        if not member.held:
            member.without = max(member.without, self.clock.now - member.without_since)

    def shares(self) -> list[float]:
        """Return how many connections each had on average since it began."""
        return [one.area / (self.clock.now - self.start - one.begins) for one in self.members]


@pytest.fixture(autouse=True)
def _the_same_each_time() -> None:
    random.seed(18)


def test_nobody_starves_at_a_server_with_half_of_what_all_want(clock: Clock) -> None:
    """60 connections for 12 processes that want 10 each: all have some soon, none has most of them."""
    fleet = Fleet(clock, 60, [random.uniform(0, 5) for _ in range(12)])
    fleet.run(300)
    assert max(one.without for one in fleet.members) < 20
    assert max(fleet.shares()) < 4 * min(fleet.shares())
    assert sum(fleet.shares()) > 0.9 * 60


def test_processes_that_come_late_get_their_part(clock: Clock) -> None:
    """Six hold all there is when six more start, as in a rolling deployment."""
    fleet = Fleet(clock, 60, [0.0] * 6 + [20.0] * 6)
    fleet.run(80)
    assert max(one.without for one in fleet.members) < 20
    assert min(fleet.shares()) > 1


def test_almost_as_few_connections_as_processes(clock: Clock) -> None:
    """20 for 12: none is without one for long, and there are not many connects."""
    fleet = Fleet(clock, 20, [random.uniform(0, 5) for _ in range(12)])
    fleet.run(120)
    assert max(one.without for one in fleet.members) < 45
    assert min(fleet.shares()) > 0.5
    per_second = len([at for at in fleet.attempts if at > fleet.start + 10]) / 110
    assert per_second < 2.5 * 12


def test_a_server_that_is_full_and_enough_costs_little(clock: Clock) -> None:
    """Six hold all 60, and no other wants any: each is without one of ten a quarter of the time."""
    fleet = Fleet(clock, 60, [0.0] * 6)
    fleet.run(120)
    assert min(fleet.shares()) > 0.95 * MAX_SIZE
    assert len(fleet.attempts) < 60 + 120


def test_without_a_surplus_nothing_is_given_up(clock: Clock) -> None:
    """There is room, or it is the last one."""
    share = FairShare()
    assert not share.is_due(MAX_SIZE)
    clock.now += 10
    assert share.is_due(MAX_SIZE)
    assert not share.is_due(1)
    assert share.surplus(1, MAX_SIZE, 0) == 0
    assert not share.is_due(MAX_SIZE)
    assert share.surplus(0, 1, 0) == 0


@pytest.mark.parametrize("held, given_up", [(2, 1), (3, 1), (5, 2), (10, 5)])
def test_one_is_given_up_and_half_if_it_was_taken(held: int, given_up: int) -> None:
    """A pool whose new connection is refused has lost the place of the one before to others."""
    share = FairShare()
    assert share.surplus(0, held, 0) == 1
    assert share.surplus(-3, held, 1) == given_up
    assert share.surplus(0, held, 1) == 1


def test_a_refusal_counts_until_the_server_is_full_or_has_room() -> None:
    """That there are some left for a moment may mean that another pool gives way."""
    share = FairShare()
    assert share.surplus(1, MAX_SIZE, 1) == 0
    assert share.surplus(0, MAX_SIZE, 1) == MAX_SIZE // 2
    assert share.surplus(MAX_SIZE, MAX_SIZE, 2) == 0
    assert share.surplus(0, MAX_SIZE, 2) == 1


@pytest.mark.parametrize(
    "left, refused, pause",
    [(0, 1, 2), (0, 0, 5), (MAX_SIZE - 1, 0, 5), (MAX_SIZE, 0, 15)],
)
def test_the_fuller_the_server_the_sooner_the_next_look(
    clock: Clock, left: int, refused: int, pause: float
) -> None:
    """Two seconds after a refusal, else five; fifteen while there is room for as many again."""
    share = FairShare()
    share.surplus(left, MAX_SIZE, refused)
    clock.now += 0.7 * pause
    assert not share.is_due(MAX_SIZE)
    clock.now += 0.6 * pause
    assert share.is_due(MAX_SIZE)


def test_a_busy_pool_looks_again_soon(clock: Clock) -> None:
    """No connection came back in time to ask with; a look that gets no answer is not repeated soon."""
    share = FairShare()
    share.begin()
    clock.now += 45
    assert not share.is_due(MAX_SIZE)
    share.postpone()
    clock.now += 6.1
    assert share.is_due(MAX_SIZE)


@pytest.mark.parametrize("connections, pause", [(1, 0.05), (10, 0.05), (20, 0.025), (200, 0.02)])
def test_a_rotation_makes_at_most_fifty_connects_a_second(connections: int, pause: float) -> None:
    """All processes rotate at the same time: half a second for most pools, more for very large ones."""
    assert pause_between(connections) == pause
