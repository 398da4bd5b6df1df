"""What delay costs, measured from traffic and evictions."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.routing import LoadBook
from kvrouter.routing.pressure import Pressure
from tests.routing.fleets import fleet, prompt_of

ALL = frozenset({"m"})


class Measured:
    """Two ranks of one group, and what their engines evict."""

    def __init__(self) -> None:
        self.book = LoadBook()
        self.evictions: dict[int, tuple[int, int, float, int]] = {}
        self.pressure = Pressure(lambda rank: self.evictions.get(rank, (0, 0, 1.0, 0)))
        self.pressure.measures_room = True
        self.members = [(self.book.load(rank), ALL) for rank in range(2)]
        self.now, self.booked = 0.0, 0

    def second(self, *, arrivals: int = 0, busy: int = 0) -> None:
        """Let a second pass, with so many requests for each rank, and so many ranks that are busy at its end."""
        for rank in range(2):
            for number in range(arrivals):
                self.booked += 1
                self.book.reserve(self.booked, rank, prefill_tokens=10, blocks=0, now=self.now)
                if number or rank >= busy:
                    self.book.free(self.booked)
        self.now += 1.0
        self.pressure.tick(self.members, self.now)
        for number in range(self.booked + 1):
            self.book.free(number)


def test_nobody_waits_on_a_fleet_without_traffic() -> None:
    """A second of work costs nobody else anything."""
    measured = Measured()
    for _ in range(5):
        measured.second()

    assert [load.urgency for load, _ in measured.members] == [0.0, 0.0]


def test_urgency_is_arrivals_over_idle_time() -> None:
    """Three a second on ranks that are busy half of the time: a second of queue delays six."""
    measured = Measured()
    for _ in range(400):
        measured.second(arrivals=3, busy=1)

    assert measured.book.load(0).urgency == pytest.approx(3 / 0.5, rel=0.05)


def test_urgency_is_bounded_where_there_is_no_idle_time() -> None:
    """And fades when the traffic ends."""
    measured = Measured()
    for _ in range(100):
        measured.second(arrivals=2, busy=2)
    busy = measured.book.load(1).urgency
    for _ in range(300):
        measured.second()

    assert busy == pytest.approx(2 / 0.1, rel=0.1)
    assert measured.book.load(1).urgency < busy / 100


def test_a_moment_tells_no_rate() -> None:
    """However short the time between two looks at the clock."""
    measured = Measured()
    measured.pressure.tick(measured.members, 0.0)
    measured.book.reserve("x", 0, prefill_tokens=1, blocks=0, now=0.0)
    measured.pressure.tick(measured.members, 5e-324)

    assert measured.book.load(0).urgency == 0.0


def test_a_miss_costs_more_where_evicted_blocks_come_back() -> None:
    """Each rank has its own price; without evictions there is none."""
    measured = Measured()
    for number in range(1, 60):
        measured.evictions = {0: (100 * number, 10 * number, 0.25, 1000)}
        measured.second()

    assert measured.book.load(0).miss_price == pytest.approx(0.4, rel=0.1)
    assert measured.book.load(1).miss_price == 0.0


def test_a_miss_never_costs_more_than_the_miss() -> None:
    """However much comes back; and a rank that begins anew is no surprise."""
    measured = Measured()
    measured.evictions = {0: (1000, 900, 0.01, 1000)}
    measured.second()
    high = measured.book.load(0).miss_price
    measured.evictions = {0: (5, 0, 0.5, 10)}
    measured.second()

    assert high == 1.0
    assert 0 <= measured.book.load(0).miss_price <= 1.0


def test_a_cache_has_room_for_what_it_holds_while_it_evicts() -> None:
    """Nobody knows before; afterwards a cache that was reset has as much room as ever, and a new one tells anew."""
    measured = Measured()
    rooms = []
    for counts in ((0, 0, 0.1, 500), (10, 0, 0.1, 1000), (10, 0, 0.1, 0), (20, 0, 0.1, 400), (5, 0, 0.1, 300)):
        measured.evictions = {0: counts}
        measured.second()
        rooms.append(measured.book.load(0).room_tokens // 16)

    assert rooms[:3] == [0, 1000, 1000]
    assert 990 < rooms[3] < 1000
    assert rooms[4] == 0


TIMES = st.one_of(st.sampled_from([0.0, nan, inf, -inf, 1e300]), st.floats(-100, 1e5))
COUNTS = st.tuples(st.integers(0, 10**12), st.integers(0, 10**12), st.floats(0, 1), st.integers(0, 10**12))


@given(st.lists(st.tuples(TIMES, COUNTS, st.integers(0, 50)), max_size=20))
def test_prices_stay_in_bounds(told: list[tuple[float, tuple[int, int, float, int], int]]) -> None:
    """Whatever the clock does, and whatever is counted."""
    measured = Measured()
    for now, counts, arrivals in told:
        measured.evictions = {0: counts}
        for _ in range(arrivals):
            measured.booked += 1
            measured.book.reserve(measured.booked, 0, prefill_tokens=1, blocks=0, now=0.0)
        measured.pressure.tick(measured.members, now)

    for load, _ in measured.members:
        assert 0 <= load.urgency < inf
        assert 0 <= load.miss_price <= 1
        assert 0 <= load.room_tokens <= 16 * 10**12


def test_a_router_learns_as_it_goes() -> None:
    """Nobody has to wake it: bookings, first tokens and `expire` tell it the time."""
    router = fleet("a")
    for number in range(200):
        now = number * 0.5
        router.commit(router.decide(Prompt(prompt_of(number, tokens=1000)), now=now), id=number, now=now)
        router.first_token(number, now=now + 0.4)
        router.finished(number, now=now + 0.45)

    load = router.book.load(0)
    assert load.urgency > 0
    assert router.predict(Prompt(prompt_of(999, tokens=1000)), now=100.0) == pytest.approx(0.4, rel=0.2)
    router.remove_worker("a", now=100.0)
    router.add_worker("a", now=101.0)
    assert router.predict(Prompt(prompt_of(999, tokens=1000)), now=101.0) == pytest.approx(0.4, rel=0.2)
