"""What each rank would carry if a prompt came to it now. It only looks: nothing is decided or booked here."""

from collections.abc import Iterable
from typing import NamedTuple

from kvrouter.blocks import Prompt
from kvrouter.routing.fleet import FleetRank
from kvrouter.routing.knowledge import NO_OVERLAPS, Knowledge
from kvrouter.routing.load import LoadBook

__all__ = ["PotentialLoad", "potential_loads"]


class PotentialLoad(NamedTuple):
    """What a rank would carry if a prompt came to it now."""

    worker_id: str
    rank: int
    dense_rank: int
    prefill_tokens: int
    decode_blocks: int
    active_requests: int


def potential_loads(
    ranks: Iterable[FleetRank], prompt: Prompt | None, *, book: LoadBook, knowledge: Knowledge, now: float
) -> list[PotentialLoad]:
    """The load of each of these ranks, with what the prompt would add to it."""
    overlaps = NO_OVERLAPS if prompt is None else knowledge.overlaps(prompt, now)
    found = []
    for each in ranks:
        prefill_tokens = blocks = 0
        if prompt is not None:
            block_size = knowledge.block_size(each.dense_rank, prompt)
            prefill_tokens = prompt.tokens - overlaps.promised.get(each.dense_rank, 0)
            blocks = -(-prompt.tokens // block_size)
            blocks -= book.active_prefix(each.dense_rank, prompt.hash_list(block_size))
        load = each.load
        found.append(
            PotentialLoad(
                each.worker_id,
                each.rank,
                each.dense_rank,
                load.prefill_tokens + prefill_tokens,
                load.decode_blocks + blocks,
                load.active_requests,
            )
        )
    return found
