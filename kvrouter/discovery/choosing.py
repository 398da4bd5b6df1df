"""Which instance gets a request: the plain modes of clients that have no router beside them. Pure.

`kv` is not here: it is the router's own decision (`kvrouter.routing`), which names the instance.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import TypeAlias

from kvrouter.discovery.records import Instance
from kvrouter.errors import NoInstancesError

__all__ = ["MODES", "InstanceChooser", "make_chooser"]

ActiveOf: TypeAlias = Callable[[int], int]


class InstanceChooser:
    """Chooses among instances; knows how many requests each one has of ours.

    `begin` and `end` frame a request: they count what least-connections and power-of-two look at.
    """

    def __init__(self, pick: Callable[["InstanceChooser", Sequence[Instance]], Instance], *, seed: int = 0) -> None:
        self._pick = pick
        self._active: dict[int, int] = {}
        self.random = Random(seed)
        self.turns: dict[int, int] = {}
        self.turn = 0

    def choose(self, instances: Sequence[Instance], *, exclude: frozenset[int] = frozenset()) -> Instance:
        """Return one of the instances, without those excluded; healthy ones first.

        Raises:
            NoInstancesError: none is left.
        """
        left = [each for each in instances if each.instance_id not in exclude]
        healthy = [each for each in left if each.health == "healthy"]
        if not left:
            raise NoInstancesError(f"No instances found: {len(exclude)} of {len(instances)} were tried")
        chosen = self._pick(self, healthy or left)
        self.turn += 1
        self.turns[chosen.instance_id] = self.turn
        return chosen

    def active(self, instance: Instance) -> int:
        """Requests that it has of ours now."""
        return self._active.get(instance.instance_id, 0)

    def begin(self, instance: Instance) -> None:
        """A request was sent to it."""
        self._active[instance.instance_id] = self.active(instance) + 1

    def end(self, instance: Instance) -> None:
        """One of its requests is over."""
        left = self.active(instance) - 1
        if left > 0:
            self._active[instance.instance_id] = left
        else:
            self._active.pop(instance.instance_id, None)

    def forget(self, instance_id: int) -> None:
        """The instance is gone."""
        self._active.pop(instance_id, None)
        self.turns.pop(instance_id, None)


def _in_turn(chooser: InstanceChooser, instances: Sequence[Instance]) -> Instance:
    return min(instances, key=lambda each: (chooser.turns.get(each.instance_id, 0), each.instance_id))


def _at_random(chooser: InstanceChooser, instances: Sequence[Instance]) -> Instance:
    return chooser.random.choice(instances)


def _better_of_two(chooser: InstanceChooser, instances: Sequence[Instance]) -> Instance:
    two = chooser.random.sample(instances, min(2, len(instances)))
    return min(two, key=chooser.active)


def _least_connections(chooser: InstanceChooser, instances: Sequence[Instance]) -> Instance:
    return min(instances, key=lambda each: (chooser.active(each), chooser.turns.get(each.instance_id, 0)))


MODES: Mapping[str, Callable[[InstanceChooser, Sequence[Instance]], Instance]] = MappingProxyType(
    {
        "round-robin": _in_turn,
        "random": _at_random,
        "power-of-two": _better_of_two,
        "least-connections": _least_connections,
    }
)


def make_chooser(mode: str, *, seed: int = 0) -> InstanceChooser:
    """The chooser of that name, with `-` or `_`; raises ValueError that lists the known ones."""
    pick = MODES.get(mode.replace("_", "-"))
    if pick is None:
        raise ValueError(f"routing mode {mode!r} is unknown; known: {', '.join(MODES)}")
    return InstanceChooser(pick, seed=seed)
