"""What the router chose, and why."""

from collections.abc import Hashable, Iterable
from itertools import islice
from struct import Struct
from typing import Any

import msgspec

from kvrouter.blocks import Prompt
from kvrouter.events import Source
from kvrouter.routing.cost import CostModel
from kvrouter.routing.fleet import Candidates, FleetRank
from kvrouter.routing.knowledge import Overlaps

__all__ = ["NOTED_MAX", "Candidate", "Decision", "note_candidates"]

NOTED_MAX = 64
"""Candidates noted per decision; in larger fleets only some. The native core has the same number."""
_ROW = Struct("=8q15d")


class Candidate:
    """One rank as it looked when the decision was made.

    `cost` is its predicted time to first token in seconds; of that `wait_seconds` are for what the rank had to do
    before, and `prefill_seconds` for what is not credited of the prompt. `price` is the cost and what others lose; `kv`
    compares that. The rest is what it was worked out from: what the rank was busy with, and what was learnt of it
    (`RankLoad`).
    """

    __slots__ = (
        "active_requests",
        "block_size",
        "charged_seconds",
        "confirmed_tokens",
        "cost",
        "credited_tokens",
        "decode_blocks",
        "evicted_seconds",
        "first_seconds",
        "loss_rate",
        "mates",
        "miss_price",
        "overlap_tokens",
        "pair_seconds",
        "prefill_seconds",
        "prefill_tokens",
        "price",
        "rank",
        "room_loss",
        "room_tokens",
        "token_seconds",
        "urgency",
        "wait_seconds",
        "waiting",
        "worker_id",
    )

    def __init__(self, target: FleetRank, row: tuple[Any, ...]) -> None:
        self.worker_id, self.rank = target.source
        self.block_size = target.load.block_size
        self.active_requests, self.waiting, self.prefill_tokens, self.decode_blocks = row[1:5]
        self.overlap_tokens, self.confirmed_tokens, self.credited_tokens = row[5:8]
        self.wait_seconds, self.prefill_seconds, self.cost, self.price, self.mates = row[8:13]
        self.charged_seconds, self.evicted_seconds = row[13:15]
        self.token_seconds, self.pair_seconds, self.first_seconds = row[15:18]
        self.urgency, self.miss_price, self.loss_rate, self.room_loss = row[18:22]
        self.room_tokens = int(row[22])


def note_candidates(
    candidates: Candidates, chosen: int, overlaps: Overlaps, *, tokens: int, model: CostModel, now: float
) -> bytes:
    """Note the candidates as they are now: most are never looked at, so this is all that is kept of them.

    A row of signed 64-bit integers for each: position, active and waiting requests, prefill tokens and decode blocks
    of the load, tokens that are promised, confirmed and credited; then, as doubles, the fields of its `Cost` and what
    was known of the rank. Of more than `NOTED_MAX`, the `chosen` one and those that have some of the prompt.
    """
    positions: Iterable[int] = range(len(candidates))
    if len(candidates) > NOTED_MAX:
        promised = overlaps.promised
        holding = (at for at, each in enumerate(candidates) if each.dense_rank in promised and at != chosen)
        positions = [chosen, *islice(holding, NOTED_MAX - 1)]
    shared = model.shared(overlaps.credited.get(each.dense_rank, 0) for each in candidates)
    rows = bytearray()
    for position in positions:
        target = candidates[position]
        number, load = target.dense_rank, target.load
        cost = model.cost(load, overlaps.credited.get(number, 0), tokens, now, shared)
        rows += _ROW.pack(
            position,
            load.active_requests,
            load.waiting,
            load.prefill_tokens,
            load.decode_blocks,
            overlaps.promised.get(number, 0),
            overlaps.confirmed.get(number, 0),
            cost.credit,
            *cost[:7],
            load.token_seconds,
            load.pair_seconds,
            load.first_seconds,
            load.urgency,
            load.miss_price,
            load.loss_rate,
            load.room_loss,
            load.room_tokens,
        )
    return bytes(rows)


class Decision(msgspec.Struct, eq=False, gc=False):
    """Where one request goes; made by the router.

    Many are kept and none is ever part of a cycle: the collector skips them.

    Attributes:
        target: the chosen rank.
        prompt: what was asked, until it is booked: whoever keeps decisions must not keep prompts.
        prompt_tokens: length of the prompt.
        overlap_tokens: leading prompt tokens that the rank is promised to have cached, confirmed or predicted.
        confirmed_tokens: the part of them that its events confirm.
        prefill_tokens: prompt tokens that it will have to compute, as far as its promise is believed; a gateway that
            books may know it better.
        block_size: tokens per block of the prompt on that rank.
        cost: predicted time to first token in seconds.
        policy: name of the policy that chose.
        reason: one word of that policy.
        id: under which id it was booked; None before.
        first_token_seconds: how long its first token took, from the booking on; None before, and where nobody said.
        total_seconds: how long it took to its end, however it ended; None before.
        cached_tokens: prompt tokens that the engine had not to compute, if it says so.
        output_tokens: tokens that it answered, if it says so.
        completed: whether it was answered to its end; None before.
        status: how it ended, in a word of whoever sent it; None before.
        loads: tokens that the rank will load from tiers below the GPU, by tier; known from its booking on.
    """

    target: FleetRank
    prompt: Prompt | None
    prompt_tokens: int
    overlap_tokens: int
    confirmed_tokens: int
    prefill_tokens: int
    block_size: int
    cost: float
    policy: str
    reason: str
    # What explains it, as `note_candidates` has it.
    _candidates: Candidates
    _rows: bytes
    id: Hashable = None
    first_token_seconds: float | None = None
    total_seconds: float | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    completed: bool | None = None
    status: str | None = None
    loads: tuple[tuple[str, int], ...] = ()

    def __repr__(self) -> str:
        return (
            f"Decision(worker_id={self.worker_id!r}, rank={self.rank}, policy={self.policy!r}, reason={self.reason!r}, "
            f"overlap_tokens={self.overlap_tokens}, prefill_tokens={self.prefill_tokens}, cost={self.cost:.4f})"
        )

    @property
    def worker_id(self) -> str:
        """The chosen worker."""
        return self.target.worker_id

    @property
    def rank(self) -> int:
        """The chosen data-parallel rank of the worker."""
        return self.target.rank

    @property
    def dense_rank(self) -> int:
        """The number of that rank in index and load book."""
        return self.target.dense_rank

    @property
    def blocks(self) -> int:
        """KV blocks that the prompt occupies, the last, partial one included."""
        return -(-self.prompt_tokens // self.block_size)

    @property
    def source(self) -> Source:
        """Worker and rank together."""
        return self.target.source

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Who could have been chosen, as things were then; in large fleets only those that mattered."""
        return tuple(Candidate(self._candidates[row[0]], row) for row in _ROW.iter_unpack(self._rows))
