"""What one rank is busy with, request by request, and how fast it is known to be.

This is the reference implementation; the native core has one with the same contract, which a choice among many ranks
reads without asking Python. `load.py` takes the core's where it is present.
"""

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Booking", "Outcome", "RankLoad", "over_tokens", "pairs_of"]

# Of a prompt of three million tokens; a million of those fit into 64 bits.
_PAIRS_MAX = 1 << 42


class Outcome(Protocol):
    """What was promised of a request, and what became of it as far as it is known yet; a `Decision`."""

    cost: float
    prompt_tokens: int
    overlap_tokens: int
    confirmed_tokens: int
    first_token_seconds: float | None
    total_seconds: float | None
    cached_tokens: int | None
    completed: bool | None
    status: str | None
    loads: tuple[tuple[str, int], ...]


class RankLoad:
    """Requests, uncached prompt tokens not yet computed, KV blocks in use; and when the rank was chosen last.

    `rank` is its dense number. `turn` is the number of the decision that chose it last: ties go to the one that waited
    longest. `block_size` is in tokens. `arrivals` counts the requests that ever came. Loads are equal if they are
    equally busy.

    `waiting` of the requests have no first token yet. Their prompts take time for each token, and for each pair of a
    token and one before it: `prefill_tokens` and `prefill_pairs`. The front one, `head_...`, is in work since
    `head_since`; `begun` requests with `begun_tokens` waited then, itself included. The rest is what the router has
    learnt and `cost.py` multiplies with it: `token_seconds`, `pair_seconds` and `first_seconds`, the price of delay
    `urgency`, and `miss_price`. Of the tokens that it promises to have cached, `belief` is the share that is believed
    (`audit.py`), and `loss_rate` the share that is lost in each second that a prompt waits, for at most `loss_seconds`
    (`losses.py`). Its cache has room for `room_tokens`, 0 where that is not known, and of what is over, `room_loss` is
    the share that is lost. Of its `first_tokens` whose time was predicted there are the sums of these times, of those
    that they took, and of the differences, all taken as positive.
    """

    __slots__ = (
        "active_requests", "arrivals", "begun", "begun_tokens", "belief", "block_size", "decode_blocks",
        "error_seconds", "first_seconds", "first_tokens", "head_pairs", "head_since", "head_tokens", "loss_rate",
        "loss_seconds", "miss_price", "observed_seconds", "pair_seconds", "predicted_seconds", "prefill_pairs",
        "prefill_tokens", "queue", "rank", "room_loss", "room_tokens", "token_seconds", "turn", "urgency", "waiting",
    )  # fmt: skip

    def __init__(
        self, active_requests: int = 0, prefill_tokens: int = 0, decode_blocks: int = 0, rank: int = 0
    ) -> None:
        self.active_requests = active_requests
        self.prefill_tokens = prefill_tokens
        self.decode_blocks = decode_blocks
        self.rank = rank
        self.block_size = 16
        self.prefill_pairs = self.waiting = self.turn = self.arrivals = 0
        self.head_tokens = self.head_pairs = self.begun = self.begun_tokens = 0
        self.head_since = 0.0
        self.token_seconds = 1.0 / 8000.0
        self.pair_seconds = self.first_seconds = self.urgency = self.miss_price = 0.0
        self.loss_rate = self.loss_seconds = 0.0
        self.room_tokens = 0
        self.room_loss = 0.5
        self.belief = 1.0
        self.first_tokens = 0
        self.predicted_seconds = self.observed_seconds = self.error_seconds = 0.0
        # Those that wait for their first token; engines compute prompts in the order in which they come.
        self.queue: dict[Booking, None] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RankLoad) and self._fields() == other._fields()

    __hash__ = None  # type: ignore[assignment]  # a load changes all the time

    def __repr__(self) -> str:
        return "RankLoad(active_requests={}, prefill_tokens={}, decode_blocks={})".format(*self._fields())

    def add(self, requests: int, tokens: int, blocks: int, pairs: int = 0, waiting: int = 0, /) -> None:
        """Change them all at once."""
        self.active_requests += requests
        self.arrivals += max(requests, 0)
        self.prefill_tokens += tokens
        self.decode_blocks += blocks
        self.prefill_pairs += pairs
        self.waiting += waiting

    def begin(self, tokens: int, pairs: int, since: float, /) -> None:
        """Say which prompt is in work, and since when."""
        self.head_tokens, self.head_pairs, self.head_since = tokens, pairs, since
        self.begun, self.begun_tokens = self.waiting, self.prefill_tokens

    def observe(self, predicted: float, observed: float, /) -> None:
        """A first token came after `observed` seconds that was predicted after `predicted`."""
        self.first_tokens += 1
        self.predicted_seconds += predicted
        self.observed_seconds += observed
        self.error_seconds += abs(observed - predicted)

    def take(self, prefill_tokens: int, prompt_tokens: int, blocks: int, now: float, /) -> "Booking":
        """Book a request: it is in the queue until its first token comes, and in the sums until its end."""
        if prefill_tokens < 0 or blocks < 0:
            raise ValueError("tokens and blocks of a booking must be at least 0")
        is_first = self.waiting <= 0
        pairs = pairs_of(prefill_tokens, max(prompt_tokens, prefill_tokens))
        self.add(1, prefill_tokens, blocks, pairs, 1)
        if is_first:
            self.begin(prefill_tokens, pairs, now)
        booking = Booking(self, prefill_tokens, pairs, blocks, now)
        self.queue[booking] = None
        return booking

    def _fields(self) -> tuple[int, int, int]:
        return self.active_requests, self.prefill_tokens, self.decode_blocks


class Booking:
    """One request on one rank, from its choice to its end; made by `RankLoad.take`.

    Attributes:
        load: of the rank.
        rank: its dense number.
        booked_at: when it was booked.
        work_since: since when the rank has worked on what this has to wait for.
        work_tokens: prompt tokens that the rank computes from then to the first token of this, its own included.
        work_pairs: the same in pairs of a token and one before it.
        prefill_tokens: its own ones, until its first token.
        prefill_pairs: the same in pairs.
        over_tokens: of the requests that the rank has then, this included, those that do not fit into its cache.
        is_waiting: whether its first token has not come yet.
        own: blocks that count for this booking alone.
        counted: what the rank's load holds for them.
        weight: the share of them that still counts.
        outcome: where to note what became of it.
        hashes: of the blocks that it may share with others of the rank.
        lease: how long it lasts after its last progress, in seconds; None: until it is ended.
        deadline: when that is over.
    """

    __slots__ = (
        "booked_at", "counted", "deadline", "hashes", "is_waiting", "lease", "load", "outcome", "over_tokens", "own",
        "prefill_pairs", "prefill_tokens", "rank", "weight", "work_pairs", "work_since", "work_tokens",
    )  # fmt: skip

    def __init__(self, load: RankLoad, prefill_tokens: int, prefill_pairs: int, blocks: int, now: float) -> None:
        self.load, self.rank = load, load.rank
        self.booked_at, self.work_since = now, load.head_since
        self.work_tokens, self.work_pairs = load.prefill_tokens, load.prefill_pairs
        self.prefill_tokens, self.prefill_pairs = prefill_tokens, prefill_pairs
        self.over_tokens = over_tokens(load)
        self.own = self.counted = blocks
        self.is_waiting = True
        self.weight, self.deadline = 1.0, 0.0
        self.outcome: Outcome | None = None
        self.hashes: Sequence[int] | None = None
        self.lease: float | None = None

    def computed(self, now: float, /) -> None:
        """The first token came. If this was the prompt in work, the rank goes on with the next; again is no error."""
        if not self.is_waiting:
            return
        load, queue = self.load, self.load.queue
        is_front = next(iter(queue)) is self
        del queue[self]
        load.add(0, -self.prefill_tokens, 0, -self.prefill_pairs, -1)
        self.is_waiting, self.prefill_tokens, self.prefill_pairs = False, 0, 0
        if not queue:
            load.begin(0, 0, now)
        elif is_front:
            front = next(iter(queue))
            load.begin(front.prefill_tokens, front.prefill_pairs, now)

    def end(self, now: float | None, /) -> None:
        """The request ended, at a time that may be unknown; called once."""
        self.computed(self.load.head_since if now is None else now)
        self.load.add(-1, 0, -self.counted)


def over_tokens(load: RankLoad) -> int:
    """Tokens of a rank's requests that do not fit into its cache; 0 where nobody knows how much does."""
    return max(load.decode_blocks * load.block_size - load.room_tokens, 0) if load.room_tokens > 0 else 0


def pairs_of(prefill_tokens: int, prompt_tokens: int) -> int:
    """Pairs of a token and one before it, for the last `prefill_tokens` of a prompt; bounded, so that sums fit."""
    return min(prefill_tokens * (2 * prompt_tokens - prefill_tokens) // 2, _PAIRS_MAX)
