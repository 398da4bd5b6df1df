"""Events in halves, for batches that are larger than a transport carries; together they say what the whole said."""

from dataclasses import replace

from kvrouter.events import AllBlocksCleared, BlockStored, Event

__all__ = ["halves"]


def halves(event: Event) -> tuple[Event, Event] | None:
    """Return two events that mean what `event` means, in this order; None if it cannot be divided."""
    if isinstance(event, AllBlocksCleared) or len(event.block_hashes) < 2:
        return None
    middle = len(event.block_hashes) // 2
    if isinstance(event, BlockStored):
        return _halves_of_store(event, middle)
    hashes = event.block_hashes
    return replace(event, block_hashes=hashes[:middle]), replace(event, block_hashes=hashes[middle:])


def _halves_of_store(event: BlockStored, middle: int) -> tuple[Event, Event] | None:
    tokens, size = event.token_ids, event.block_size
    if len(tokens) not in (0, size * len(event.block_hashes)):
        return None  # A masked store: nobody can tell which of its tokens belong to which hash.
    first = replace(
        event,
        block_hashes=event.block_hashes[:middle],
        token_ids=tokens[: middle * size],
        extra_keys=event.extra_keys and event.extra_keys[:middle],
        lookahead_token_ids=event.lookahead_token_ids and event.lookahead_token_ids[:middle],
        mm_keys=event.mm_keys and event.mm_keys[:middle],
        sequence_hashes=event.sequence_hashes and event.sequence_hashes[:middle],
    )
    second = replace(
        event,
        block_hashes=event.block_hashes[middle:],
        parent_block_hash=event.block_hashes[middle - 1] if tokens else event.parent_block_hash,
        token_ids=tokens[middle * size :],
        extra_keys=event.extra_keys and event.extra_keys[middle:],
        lookahead_token_ids=event.lookahead_token_ids and event.lookahead_token_ids[middle:],
        mm_keys=event.mm_keys and event.mm_keys[middle:],
        sequence_hashes=event.sequence_hashes and event.sequence_hashes[middle:],
    )
    return first, second
