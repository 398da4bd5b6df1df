"""Without the native core: pieces of prompts are remembered, with their tokens and hashes, and not read again."""

import json
import random

import pytest

from kvrouter.blocks import Prompt, token_bytes
from kvrouter.service.prompts import PrefixCache, RequestReader
from kvrouter.service.prompts.prefix_cache import WORDS_PIECE_BYTES, CachedPrompt

pytestmark = pytest.mark.usefixtures("reference")

COMPLETIONS = "/v1/completions"
_MIB = 1024 * 1024


def _body(ids: list[int], *, before: str = '"model": "m", ') -> bytes:
    return f'{{{before}"prompt": {json.dumps(ids)}}}'.encode()


def _random_ids(count: int) -> list[int]:
    return random.Random(1).choices(range(130_000), k=count)


def test_a_known_beginning_is_not_read_again() -> None:
    """A prompt that grew finds all whole pieces of what it was."""
    cache = PrefixCache(_MIB)
    reader = RequestReader(cache)
    ids = _random_ids(5000)
    reader.read(COMPLETIONS, _body(ids))
    misses = cache.misses

    grown = reader.read(COMPLETIONS, _body([*ids, 1, 2, 3]))

    assert cache.hits >= len(_body(ids)) // 2048 - 1
    assert cache.misses <= misses + 1
    assert len(grown.words) // 4 < 1000


def test_the_beginning_is_shared_by_bodies_that_differ_around_it() -> None:
    """Where the array stands in the body does not matter."""
    cache = PrefixCache(_MIB)
    reader = RequestReader(cache)
    ids = _random_ids(3000)
    reader.read(COMPLETIONS, _body(ids))

    again = reader.read(COMPLETIONS, _body(ids, before='"temperature": 0.5, "user": "somebody", '))

    assert CachedPrompt(cache, again.nodes, again.words).token_ids == token_bytes(ids)
    assert cache.hits > 5


def test_a_warm_prompt_hashes_only_its_tail() -> None:
    """Hashes of remembered pieces are put together, not computed again."""
    cache = PrefixCache(_MIB)
    nodes, tail = cache.walk_words(cache.root(), bytes(10 * WORDS_PIECE_BYTES + 40))
    CachedPrompt(cache, nodes, tail).hash_list(16)

    assert all(len(node.hashes[16, 1337]) == WORDS_PIECE_BYTES // 64 for node in nodes)


def test_hashes_of_many_salts_do_not_grow_a_shared_node() -> None:
    """Tenants with salts of their own share tokens, and only so many sets of hashes."""
    cache = PrefixCache(_MIB)
    nodes, tail = cache.walk_words(cache.root(), bytes(4 * 4096))
    for number in range(100):
        salt = str(number).encode()
        prompt = CachedPrompt(cache, nodes, tail, salt=salt)
        assert prompt.hash_list(16) == Prompt(bytes(4 * 4096), salt=salt).hash_list(16)

    assert all(len(node.hashes) <= 8 for node in nodes)
    assert cache.bytes_used < _MIB
