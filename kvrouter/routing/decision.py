"""What the router chose, and why."""

from collections.abc import Hashable, Sequence
from typing import TypeAlias

from kvrouter.blocks import Prompt
from kvrouter.events import Source
from kvrouter.routing.cost import CostModel
from kvrouter.routing.fleet import FleetRank
from kvrouter.routing.knowledge import Overlaps

__all__ = ["Candidate", "Decision", "Row"]

# What is noted of one candidate for every decision, because it changes: its active requests, prefill tokens and decode
# blocks. A plain tuple, because most are never looked at.
Row: TypeAlias = tuple[FleetRank, int, int, int]


class Candidate:
    """One rank as it looked when the decision was made. `cost` is its predicted time to first token in seconds."""

    __slots__ = (
        "active_requests",
        "confirmed_tokens",
        "cost",
        "decode_blocks",
        "overlap_tokens",
        "prefill_tokens",
        "rank",
        "worker_id",
    )

    def __init__(self, row: Row, prompt_tokens: int, overlaps: Overlaps, model: CostModel) -> None:
        target, self.active_requests, self.prefill_tokens, self.decode_blocks = row
        self.worker_id, self.rank = target.source
        number = target.dense_rank
        self.overlap_tokens = overlaps.promised.get(number, 0)
        self.confirmed_tokens = overlaps.confirmed.get(number, 0)
        ahead = self.prefill_tokens + prompt_tokens - overlaps.credited.get(number, 0)
        self.cost = model.seconds(ahead, self.active_requests, self.decode_blocks)


class Decision:
    """Where one request goes.

    Attributes:
        worker_id: the chosen worker.
        rank: its data-parallel rank.
        dense_rank: the number of that rank in index and load book.
        overlap_tokens: leading prompt tokens that the rank is promised to have cached, confirmed or predicted.
        confirmed_tokens: the part of them that its events confirm.
        prefill_tokens: prompt tokens that it has to compute.
        prompt_tokens: length of the prompt.
        block_size: tokens per block of the prompt on that rank.
        blocks: KV blocks that the prompt occupies, the last, partial one included.
        cost: predicted time to first token in seconds.
        policy: name of the policy that chose.
        reason: one word of that policy.
        id: under which id it was booked; None before.
    """

    __slots__ = (
        "_model",
        "_overlaps",
        "_rows",
        "block_size",
        "blocks",
        "confirmed_tokens",
        "cost",
        "dense_rank",
        "id",
        "overlap_tokens",
        "policy",
        "prefill_tokens",
        "prompt",
        "prompt_tokens",
        "reason",
        "target",
    )

    def __init__(
        self,
        target: FleetRank,
        prompt: Prompt | None,
        overlaps: Overlaps,
        *,
        block_size: int,
        policy: str,
        reason: str,
        rows: Sequence[Row],
        model: CostModel,
    ) -> None:
        self.target = target
        self.prompt = prompt
        self.dense_rank = number = target.dense_rank
        self.prompt_tokens = tokens = prompt.tokens if prompt is not None else 0
        self.overlap_tokens = overlaps.promised.get(number, 0)
        self.confirmed_tokens = overlaps.confirmed.get(number, 0)
        self.prefill_tokens = tokens - self.overlap_tokens
        self.block_size, self.blocks = block_size, -(-tokens // block_size)
        load = target.load
        self.cost = model.seconds(
            load.prefill_tokens + tokens - overlaps.credited.get(number, 0), load.active_requests, load.decode_blocks
        )
        self.policy, self.reason = policy, reason
        self.id: Hashable = None
        self._overlaps, self._rows, self._model = overlaps, rows, model

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
    def source(self) -> Source:
        """Worker and rank together."""
        return self.target.source

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Who could have been chosen, as things were then; in large fleets only those that mattered."""
        return tuple(Candidate(row, self.prompt_tokens, self._overlaps, self._model) for row in self._rows)
