"""The plain routing modes of clients (A-124, A-148, A-153)."""

from collections import Counter

import pytest

from kvrouter.discovery.choosing import MODES, make_chooser
from kvrouter.errors import NoInstancesError
from tests.discovery.test_discovery import instance

FLEET = [instance(number) for number in range(1, 5)]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_spreads_requests_that_end_at_once(mode: str) -> None:
    """A-124, A-148: none starves, and the same seed chooses the same."""
    chooser, twin = make_chooser(mode, seed=1), make_chooser(mode.replace("-", "_"), seed=1)

    chosen = Counter(chooser.choose(FLEET).instance_id for _ in range(400))

    assert chosen == Counter(twin.choose(FLEET).instance_id for _ in range(400))
    assert min(chosen[number] for number in range(1, 5)) > 40


def test_round_robin_goes_in_turn_also_when_the_fleet_changes() -> None:
    """Who waited longest is next; a new one is at once."""
    chooser = make_chooser("round-robin")

    assert [chooser.choose(FLEET[:3]).instance_id for _ in range(4)] == [1, 2, 3, 1]
    assert [chooser.choose(FLEET).instance_id for _ in range(3)] == [4, 2, 3]


@pytest.mark.parametrize("mode", ["least-connections", "power-of-two"])
def test_busy_instances_are_avoided(mode: str) -> None:
    """A-153: requests that last are counted until they end."""
    chooser = make_chooser(mode, seed=2)
    for each in FLEET[:3] * 50:
        chooser.begin(each)

    chosen = Counter(chooser.choose(FLEET).instance_id for _ in range(100))

    assert chosen[4] == max(chosen.values())
    for each in FLEET[:3] * 50:
        chooser.end(each)
    assert [chooser.active(each) for each in FLEET] == [0, 0, 0, 0]


def test_exclusion_and_health_come_first() -> None:
    """A degraded instance is taken only where no healthy one is left."""
    degraded = instance(9, health="degraded")
    chooser = make_chooser("round-robin")

    assert chooser.choose([degraded, FLEET[0]]).instance_id == 1
    assert chooser.choose([degraded, FLEET[0]], exclude=frozenset({1})).instance_id == 9
    with pytest.raises(NoInstancesError, match="2 of 2"):
        chooser.choose([degraded, FLEET[0]], exclude=frozenset({1, 9}))


def test_an_unknown_mode_lists_the_known_ones() -> None:
    """A mistake in a setting is told with its remedy."""
    with pytest.raises(ValueError, match="power-of-two"):
        make_chooser("best")
