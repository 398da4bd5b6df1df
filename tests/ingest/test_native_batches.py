"""The native core and the reference make the same of whatever an engine sends: every fact after every batch.

Without the core both sides are the reference, and nothing is shown; `tests/native` sees to it that it is there.
"""

import random

import msgpack
import pytest

from kvrouter.ingest import IngestLimits
from tests.ingest.differential import Pair
from tests.ingest.random_wires import RandomEngine

_BATCHES = 20


def _pair(choose: random.Random) -> Pair:
    limits = IngestLimits(
        idle_hashes_max=choose.choice([3, 10, 1000]),
        orphan_blocks_max=choose.choice([4, 100]),
        unresolved_hashes_max=choose.choice([3, 50]),
    )
    return Pair(limits)


@pytest.mark.parametrize("seed", range(40))
def test_both_make_the_same_of_any_events(seed: int) -> None:
    """Sensible chains, and among them whatever is rare or wrong; with tight bounds and wide ones."""
    choose = random.Random(seed)
    pair, engine = _pair(choose), RandomEngine(choose)

    for _ in range(_BATCHES):
        pair.send(engine.batch())

    pair.close()


@pytest.mark.parametrize("seed", range(40, 80))
def test_both_make_the_same_of_damaged_payloads(seed: int) -> None:
    """Bytes changed, cut off and put in: the same is understood, the same refused."""
    choose = random.Random(seed)
    pair, engine = _pair(choose), RandomEngine(choose)

    for _ in range(_BATCHES):
        payload = engine.batch()
        pair.send(engine.damaged(payload) if choose.random() < 0.6 else payload)

    pair.close()


def test_a_large_batch_with_an_odd_event_in_the_middle_is_the_same_to_both() -> None:
    """Neither the order of events nor anything behind the odd one is lost."""
    pair = Pair()
    tokens = list(range(4))
    chain: list[list[object]] = [
        ["BlockStored", [hash_], hash_ - 1 if hash_ else None, [hash_, *tokens[1:]], 4, None, "GPU"]
        for hash_ in range(500)
    ]
    chain[250] = [*chain[250], None, [["salt"]]]

    pair.send(msgpack.packb([0.0, chain[:1], 0]))
    pair.send(msgpack.packb([0.0, [*chain[1:], ["BlockRemoved", [499, 498], "GPU"], ["AllBlocksCleared"]], 0]))

    pair.close()


def test_tokens_of_every_width_are_the_same_to_both() -> None:
    """They are read several at a time where they are of the usual sizes: every pair of sizes, at every place."""
    pair = Pair()
    edges = [0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1]
    tokens = [token for one in edges for other in edges for token in (one, other, other)]
    odd = [2**32, -1, None, "1", 1.0]

    for start in range(4):
        part = tokens[start : start + 4 * ((len(tokens) - start) // 4)]
        hashes = [1000 * start + at for at in range(len(part) // 4)]
        # The last token is the last of the payload, wherever it begins.
        pair.send(msgpack.packb([0.0, [["BlockStored", hashes, None, part, 4]], 0]))
        for at, value in enumerate(odd):
            wrong = [*part[: at + start], value, *part[at + start + 1 :]]
            pair.send(msgpack.packb([0.0, [["BlockStored", hashes, None, wrong, 4]]]))

    pair.close()


def test_nesting_beyond_what_any_event_has_is_left_to_the_reference() -> None:
    """It is an unknown field like any other, or no msgpack at all; in neither case does anything recurse."""
    pair = Pair()
    nested: object = 1
    for _ in range(200):
        nested = [nested]
    event = {"type": "BlockStored", "block_hashes": [1], "token_ids": [1] * 16, "block_size": 16, "later": nested}

    pair.send(msgpack.packb([0.0, [event], 0]))
    pair.send(b"\x93\xc0" + b"\x91" * 100_000)

    assert pair.native.facts()["status"]["skipped"] == {"unknown_field": 1}


def test_a_reset_of_many_blocks_keeps_the_same_ones_in_mind() -> None:
    """More than are kept: which ones does not depend on how a table is ordered."""
    pair = Pair(IngestLimits(idle_hashes_max=100))
    hashes = [random.Random(number).getrandbits(64) for number in range(500)]

    for start in range(0, 500, 50):
        part = hashes[start : start + 50]
        parent = hashes[start - 1] if start else None
        tokens = list(range(start * 4, (start + 50) * 4))
        pair.send(msgpack.packb([0.0, [["BlockStored", part, parent, tokens, 4, None, "GPU"]], 0]))
    pair.send(msgpack.packb([0.0, [["AllBlocksCleared"]], 0]))

    assert len(pair.native.facts()["meanings"]) == 100


@pytest.mark.parametrize(("order", "size"), [((0, 1), 16), ((1, 0), 8)])
def test_behind_an_odd_event_that_tells_another_layout_plain_ones_tell_more(order: tuple[int, int], size: int) -> None:
    """A state's group has the size of its largest block; before it is one, a larger block says nothing."""
    pair = Pair()
    first = {"type": "BlockStored", "block_hashes": [1], "token_ids": [1] * 8, "block_size": 8, "medium": "GPU"}
    odd = first | {"block_hashes": [2], "kv_cache_spec_kind": "mamba", "lookahead_token_ids": [[1]]}
    larger = first | {"block_hashes": [3], "token_ids": [1] * 16, "block_size": 16, "kv_cache_spec_kind": "mamba"}

    pair.send(msgpack.packb([0.0, [first | {"kv_cache_spec_kind": "full_attention"}], 0]))
    pair.send(msgpack.packb([0.0, [(odd, larger)[number] for number in order], 0]))

    assert pair.native.cache.profile.groups[0].block_size == size
