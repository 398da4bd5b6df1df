"""How often a router tells the others: bookings soon, the rest when there is time, never more than the bound."""

from random import Random

import pytest

from kvrouter.blocks import Prompt
from kvrouter.routing import Router
from kvrouter.routing.replica_pace import ReplicaPace
from kvrouter.routing.replica_records import ReplicaRecord, encode_record
from kvrouter.routing.replicas import ReplicaLoads
from tests.routing.fleets import fleet, prompt_of

LEASE, INTERVAL = 6.0, 0.1


class Scene:
    """One router that tells, and time that is moved by hand."""

    def __init__(self, *, company: bool) -> None:
        self.router: Router = fleet("a", "b")
        self.loads = ReplicaLoads(self.router.fleet, "me", lease_seconds=LEASE, random=Random(0))
        self.pace = ReplicaPace(self.loads, lambda: self.router.decisions, interval_seconds=INTERVAL, random=Random(0))
        self.now, self.sent, self.company = 100.0, 0, company
        self.told: list[float] = []
        self.pass_time(1.0)
        self.told.clear()

    def pass_time(self, seconds: float, *, every: float | None = None) -> None:
        """Look as often as the router would; send a request now and then."""
        end, due = self.now + seconds, self.now
        while self.now < end:
            if self.company:
                alive = ReplicaRecord("x", int(self.now * 1000), LEASE, ())
                self.loads.take("x", encode_record(alive)[0], now=self.now)
            if every is not None and self.now >= due:
                self.send()
                due += every
            if self.pace.is_due(self.now):
                self.pace.telling(self.now)
                self.loads.record()
                self.told.append(self.now)
            self.now += self.pace.look_seconds

    def send(self) -> None:
        """Book one more request."""
        self.sent += 1
        prompt = Prompt(prompt_of(self.sent))
        self.router.place(prompt, model=None, session=None, exclude=(), id=self.sent, now=self.now)


def test_a_booking_is_told_soon() -> None:
    """The others would choose the same rank meanwhile."""
    scene = Scene(company=True)
    scene.send()
    booked_at = scene.now

    scene.pass_time(1.0)

    assert len(scene.told) == 1
    assert scene.told[0] - booked_at <= 0.15 * INTERVAL


@pytest.mark.parametrize("every", [0.001, 0.02, 0.3])
def test_the_store_has_a_bounded_number_of_writes(every: float) -> None:
    """However many requests there are."""
    scene = Scene(company=True)

    scene.pass_time(20.0, every=every)

    assert len(scene.told) <= 20.0 / INTERVAL + 6
    assert len(scene.told) >= min(20.0 / every, 20.0 / INTERVAL) * 0.9


def test_what_is_no_booking_waits_for_an_interval() -> None:
    """A first token changes little, and comes with the next record."""
    scene = Scene(company=True)
    scene.send()
    scene.pass_time(INTERVAL / 2)
    scene.router.first_token(1, now=scene.now)

    scene.pass_time(1.0)

    first, second = scene.told
    assert second - first >= INTERVAL


def test_where_nothing_changes_there_is_only_a_sign_of_life() -> None:
    """Three times in a lease."""
    scene = Scene(company=True)

    scene.pass_time(LEASE)

    assert len(scene.told) == 3


def test_where_nobody_listens_there_is_only_a_sign_of_life() -> None:
    """A router that is alone does not load its store."""
    scene = Scene(company=False)

    scene.pass_time(LEASE, every=0.05)

    assert len(scene.told) == 3


def test_who_is_new_is_told_at_once() -> None:
    """It has no idea yet of what we have under way."""
    scene = Scene(company=False)
    scene.send()
    scene.company = True

    scene.pass_time(0.5)

    assert len(scene.told) == 1
