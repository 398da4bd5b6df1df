"""Small fleets for routing tests: a router over the real ingest, fed with real event batches."""

from collections.abc import Sequence
from typing import Any

from kvrouter.events import BlockStored, EventBatch, Source, encode_batch
from kvrouter.routing import Router, RoutingSettings

__all__ = ["BLOCK_SIZE", "fleet", "prompt_of", "stored"]

BLOCK_SIZE = 16


def fleet(*workers: str, ranks: int = 1, models: Sequence[str] = (), **options: Any) -> Router:
    """A router over workers that are all there at time 0; further options are RoutingSettings or Router's own."""
    own = {name: options.pop(name) for name in ("policy", "seed") if name in options}
    router = Router(settings=RoutingSettings(**options), **own)
    for worker in workers:
        router.add_worker(worker, ranks=ranks, models=models, block_size=BLOCK_SIZE, now=0.0)
    return router


def prompt_of(*parts: int, tokens: int = 64) -> list[int]:
    """A prompt of parts with `tokens` tokens each; equal numbers mean equal parts."""
    return [part * 1000 + position for part in parts for position in range(tokens)]


def stored(
    router: Router, worker: str, token_ids: list[int], *, rank: int = 0, sequence: int = 0, now: float = 0.0
) -> None:
    """Tell the router, as the worker's engine would, that these tokens' whole blocks are cached there."""
    blocks = len(token_ids) // BLOCK_SIZE
    event = BlockStored(
        block_hashes=tuple(hash((worker, rank, sequence, block)) & (2**64 - 1) for block in range(blocks)),
        parent_block_hash=None,
        token_ids=tuple(token_ids[: blocks * BLOCK_SIZE]),
        block_size=BLOCK_SIZE,
        medium="GPU",
    )
    batch = EventBatch(timestamp=0.0, events=(event,), data_parallel_rank=rank, skipped={})
    source = Source(worker, rank)
    router.ingest.receive(source, sequence, encode_batch(batch), now=now)
