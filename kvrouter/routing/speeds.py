"""How fast ranks compute prompts, learnt from the times of first tokens.

A rank that works prompts off in turn needs, for those before one and for that one itself,

    seconds = first + token_seconds * tokens + pair_seconds * pairs

where pairs are of a token and one before it (attention). Each first token is one such equation, from the moment at
which the rank began with what came before; the three numbers are the least squares of the last of them. Residuals are
taken relative to the longer of the expected and the real time, so that no single one, however absurd, counts for more
than another; old ones fade with every new one and with time. A rank of which little is known is believed to be like
the others of its group, and those to be like the priors.

Pure: time is an argument, and nothing that is told here can raise or leave the bounds.
"""

from collections.abc import Mapping, Sequence
from math import exp, isfinite
from typing import Final

from kvrouter.routing.load import Booking
from kvrouter.routing.rank_load import RankLoad
from kvrouter.routing.settings import RoutingSettings

__all__ = ["Speed", "Speeds"]

# A rank's observations are taken at most so often: more would say the same and cost time.
_OBSERVE_SECONDS: Final = 0.02
# Of what was known, what is left after each new observation, and after a time in which nothing was said.
_KEPT: Final = 0.98
_FADE_SECONDS: Final = 300.0
# A rank that is off in the same direction for some time, and by so much, is not what it was: what was known of it is
# left sooner. The time is in observations.
_SURPRISED: Final = 0.3
_SURPRISED_KEPT: Final = 0.8
_SURPRISE_OBSERVATIONS: Final = 8
# How many observations the belief in others, and that in the priors, is worth.
_GROUP_WORTH: Final = 1.0
_PRIOR_WORTH: Final = 0.2
# Bounds, as multiples of the priors, and in seconds.
_FACTOR_MAX: Final = 1000.0
_FIRST_SECONDS_MAX: Final = 10.0
_FIRST_SECONDS_SCALE: Final = 0.1
_SECONDS_MAX: Final = 3600.0
_SHORTEST: Final = 1e-3
# Ranks that differ by less are alike: else one of several equal engines would get all requests of an idle fleet.
_LIKE: Final = 0.25
# Ranks that are solved for at a time, so that requests never wait long for it.
_LEARN_MAX: Final = 64


class Speed:
    """What is known of one rank, or of a group of ranks. `first`, `token` and `pair` are multiples of the priors'.

    The unit of `first` is a second.
    """

    __slots__ = ("_bias", "_faded_at", "_new", "due", "error", "first", "observed", "pair", "sums", "token")

    def __init__(self) -> None:
        self.first, self.token, self.pair = 0.0, 1.0, 1.0
        self.observed = 0
        self.error = 0.0
        """Of the last predictions, the mean error relative to the longer of the predicted and the real time."""
        # Sums of products: of first, token and pair with each other, and with the seconds.
        self.sums = [0.0] * 9
        self._new = 0
        self._bias = 0.0  # Of the last observations, the mean error with its sign.
        self.due = self._faded_at = float("-inf")
        """From when on another observation is welcome."""

    def observe(self, token_seconds: float, pair_seconds: float, seconds: float) -> None:
        """Take one equation, with its terms as the priors have them."""
        expected = self.first + self.token * token_seconds + self.pair * pair_seconds
        scale = 1.0 / max(seconds, expected, _SHORTEST)
        one, two, three, result = scale, token_seconds * scale, pair_seconds * scale, seconds * scale
        new = (
            one * one, one * two, one * three, two * two, two * three, three * three,
            one * result, two * result, three * result,
        )  # fmt: skip
        self._bias += ((seconds - expected) * scale - self._bias) / _SURPRISE_OBSERVATIONS
        kept = _KEPT if abs(self._bias) < _SURPRISED else _SURPRISED_KEPT
        self.sums = [kept * old + more for old, more in zip(self.sums, new, strict=True)]
        self.error += (abs(seconds - expected) * scale - self.error) / min(self.observed + 1, 50)
        self.observed += 1
        self._new += 1

    def is_like(self, group: "Speed") -> bool:
        """Whether the work that was seen here takes about as long as the group would need for it."""
        mine, theirs = self._work(self), self._work(group)
        return abs(mine - theirs) <= _LIKE * theirs

    def times(self, group: "Speed") -> float:
        """How many times longer than the group this takes for the work that was seen here; 1 while nothing was."""
        mine, theirs = self._work(self), self._work(group)
        return mine / theirs if theirs > 0.0 else 1.0

    def learn(self, belief: tuple[float, float, float], worth: float, now: float) -> None:
        """Solve for the three numbers, where little is known near `belief`."""
        since = now - self._faded_at
        if self._new or since >= 1.0:
            kept = exp(-since / _FADE_SECONDS) if 0.0 <= since < _SECONDS_MAX else float(since < 0.0)
            self.sums = [kept * each for each in self.sums]
            self._faded_at = now
        elif not self._new:
            return
        self._new = 0
        _, token, pair = belief
        weights = (
            worth / _FIRST_SECONDS_SCALE**2,
            worth / max(token, self.token) ** 2,
            worth / max(pair, self.pair, 0.1) ** 2,
        )
        found = _solve(self.sums, belief, weights)
        self.first = min(max(found[0], 0.0), _FIRST_SECONDS_MAX)
        self.token = min(max(found[1], 1.0 / _FACTOR_MAX), _FACTOR_MAX)
        self.pair = min(max(found[2], 0.0), _FACTOR_MAX)

    def pool(self, members: list["Speed"], now: float) -> None:
        """Take what is known of a group from its members."""
        self.sums = [sum(column) for column in zip(*(each.sums for each in members), strict=True)]
        self._new, self._faded_at = 1, now
        self.observed = sum(each.observed for each in members)
        self.learn((0.0, 1.0, 1.0), _PRIOR_WORTH, now)

    def _work(self, speed: "Speed") -> float:
        """How long the work that was seen here takes at a speed; in no unit."""
        one, first, second = self.sums[0], self.sums[1], self.sums[2]
        return speed.first * one + speed.token * first + speed.pair * second

    @property
    def factors(self) -> tuple[float, float, float]:
        """All three."""
        return self.first, self.token, self.pair


class Speeds:
    """The speeds of all ranks, by dense number, and of groups of ranks that serve the same models."""

    __slots__ = ("_groups", "_learnt", "_pair_seconds", "_ranks", "_token_seconds")

    def __init__(self, settings: RoutingSettings) -> None:
        self._token_seconds = 1.0 / settings.prefill_tokens_per_second
        attention = settings.attention_tokens
        self._pair_seconds = self._token_seconds / attention if attention else 0.0
        self._ranks: dict[int, Speed] = {}
        self._groups: dict[frozenset[str], Speed] = {}
        self._learnt = 0

    def speed(self, rank: int) -> Speed:
        """What is known of a rank."""
        speed = self._ranks.get(rank)
        if speed is None:
            speed = self._ranks[rank] = Speed()
        return speed

    def adopt(self, load: RankLoad, group: frozenset[str]) -> None:
        """A rank is new: it is believed to be like its group."""
        speed = self._ranks[load.rank] = Speed()
        known = self._groups.get(group)
        if known is not None:
            speed.first, speed.token, speed.pair = known.factors
        self._write(speed, load)

    def forget(self, rank: int) -> None:
        """A rank is gone."""
        self._ranks.pop(rank, None)

    def first_token(self, booking: Booking, now: float) -> None:
        """Learn from the first token of a booking, which came now and has not been noted in it yet."""
        speed = self._ranks.get(booking.rank)
        if speed is None or speed.due - _OBSERVE_SECONDS <= now < speed.due:
            return
        seconds = now - booking.work_since
        if not 0.0 <= seconds < _SECONDS_MAX:
            return
        speed.due = now + _OBSERVE_SECONDS
        token_seconds, pair_seconds = booking.work_tokens * self._token_seconds, booking.work_pairs * self._pair_seconds
        if isfinite(token_seconds) and isfinite(pair_seconds) and token_seconds < _SECONDS_MAX**2:
            speed.observe(token_seconds, pair_seconds, seconds)

    def learn(self, ranks: Sequence[tuple[RankLoad, frozenset[str]]], now: float) -> None:
        """Renew what is known of these ranks and of their groups, and write it into the loads."""
        grouped: dict[frozenset[str], list[tuple[RankLoad, Speed]]] = {}
        for load, group in self._next(ranks):
            grouped.setdefault(group, []).append((load, self.speed(load.rank)))
        for group, members in grouped.items():
            known = self._groups.setdefault(group, Speed())
            known.pool([speed for _, speed in members], now)
            for load, speed in members:
                speed.learn(known.factors, _GROUP_WORTH, now)
                self._write(known if speed.is_like(known) else speed, load)
        for gone in self._groups.keys() - {group for _, group in ranks}:
            del self._groups[gone]

    def slowness(self, rank: int, group: frozenset[str]) -> float:
        """How many times longer than the ranks of its group together this one takes for what it had to do."""
        known = self._groups.get(group)
        return 1.0 if known is None else self.speed(rank).times(known)

    def rates(self, rank: int) -> Mapping[str, float]:
        """What was seen of a rank, in seconds, and how well it was predicted."""
        speed = self.speed(rank)
        return {
            "first_seconds": speed.first,
            "token_seconds": speed.token * self._token_seconds,
            "pair_seconds": speed.pair * self._pair_seconds,
            "relative_error": speed.error,
            "observed": speed.observed,
        }

    def _next(self, ranks: Sequence[tuple[RankLoad, frozenset[str]]]) -> Sequence[tuple[RankLoad, frozenset[str]]]:
        """All of a small fleet, and of a large one another part each time."""
        if len(ranks) <= _LEARN_MAX:
            return ranks
        begin = self._learnt % len(ranks)
        self._learnt = begin + _LEARN_MAX
        return [*ranks[begin : begin + _LEARN_MAX], *ranks[: max(0, begin + _LEARN_MAX - len(ranks))]]

    def _write(self, speed: Speed, load: RankLoad) -> None:
        load.first_seconds = speed.first
        load.token_seconds = speed.token * self._token_seconds
        load.pair_seconds = speed.pair * self._pair_seconds


def _solve(
    sums: list[float], belief: tuple[float, float, float], weights: tuple[float, float, float]
) -> tuple[float, float, float]:
    """The least squares, with each number drawn to its belief; one that would be negative is zero instead."""
    free = [0, 1, 2]
    while True:
        matrix, right = _equations(sums, belief, weights, free)
        found = [0.0, 0.0, 0.0]
        for place, value in zip(free, _eliminate(matrix, right), strict=True):
            found[place] = value
        negative = [place for place in free if not found[place] >= 0.0]
        if not negative:
            return found[0], found[1], found[2]
        free.remove(negative[0])


_PLACES: Final = ((0, 1, 2), (1, 3, 4), (2, 4, 5))


def _equations(
    sums: list[float], belief: tuple[float, float, float], weights: tuple[float, float, float], free: list[int]
) -> tuple[list[list[float]], list[float]]:
    matrix = [
        [sums[_PLACES[row][column]] + (weights[row] if row == column else 0.0) for column in free] for row in free
    ]
    return matrix, [sums[6 + row] + weights[row] * belief[row] for row in free]


def _eliminate(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve by elimination; the matrix is symmetric and positive, so no row needs to be exchanged."""
    size = len(right)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = matrix[row][pivot] / matrix[pivot][pivot]
            for column in range(pivot, size):
                matrix[row][column] -= factor * matrix[pivot][column]
            right[row] -= factor * right[pivot]
    found = [0.0] * size
    for row in reversed(range(size)):
        known = sum(matrix[row][column] * found[column] for column in range(row + 1, size))
        found[row] = (right[row] - known) / matrix[row][row]
    return found
