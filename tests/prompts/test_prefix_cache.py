"""The prefix cache: exact, bounded, and forgotten parents take their children along."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.blocks import Prompt, token_bytes
from kvrouter.service.prompts.prefix_cache import CachedPrompt, PrefixCache, PrefixNode

pytestmark = pytest.mark.usefixtures("implementation")

_MIB = 1024 * 1024


def _words(*tokens: int) -> bytes:
    return token_bytes(list(tokens))


def _learn(cache: PrefixCache, root: PrefixNode, pieces: list[bytes]) -> list[PrefixNode]:
    """Walk a prompt whose pieces are their own tokens."""
    cache.begin()
    nodes: list[PrefixNode] = []
    parent = root
    for piece in pieces:
        node = cache.find(parent, piece) or cache.add(parent, piece, piece)
        if node is None:
            break
        nodes.append(node)
        parent = node
    return nodes


def test_a_piece_is_found_after_what_it_followed() -> None:
    """The same piece elsewhere is another one."""
    cache = PrefixCache(_MIB)
    root, other = cache.root(), cache.root()
    first = cache.add(root, b"one", _words(1))
    assert first is not None
    second = cache.add(first, b"two", _words(2, 3))

    assert cache.find(root, b"one") is first
    assert cache.find(first, b"two") is second
    assert second is not None
    assert second.tokens == 3
    assert cache.find(root, b"two") is None
    assert cache.find(other, b"one") is None
    assert (cache.hits, cache.misses) == (2, 2)


def test_a_digest_that_collides_is_a_miss() -> None:
    """Nodes are compared with what they stand for; a digest alone proves nothing."""
    cache = PrefixCache(_MIB)
    root = cache.root()
    node = cache.add(root, b"one", _words(1))
    assert node is not None
    node.raw = b"another with the same digest"

    assert cache.find(root, b"one") is None


def test_memory_stays_within_its_bound() -> None:
    """However much is learnt, the estimate never passes the bound, and recent things are found."""
    cache = PrefixCache(100_000)
    root = cache.root()
    source = random.Random(1)
    for _ in range(500):
        pieces = [source.randbytes(400) for _ in range(5)]
        nodes = _learn(cache, root, pieces)
        CachedPrompt(cache, nodes, b"").hash_list(16)
        assert 0 <= cache.bytes_used <= 100_000

    assert cache.generations > 5
    assert cache.find(root, pieces[0]) is nodes[0]
    assert len(cache) < 500


def test_what_is_used_survives_what_is_not() -> None:
    """A prefix that every prompt begins with is never forgotten."""
    cache = PrefixCache(50_000)
    root = cache.root()
    shared = _learn(cache, root, [b"shared" * 50])[0]
    source = random.Random(2)
    for _ in range(300):
        _learn(cache, root, [b"shared" * 50, source.randbytes(500)])

    assert cache.generations > 2
    assert cache.find(root, b"shared" * 50) is shared


def test_a_child_is_never_found_without_its_parent() -> None:
    """Generations change between walks only, so whatever is found hangs on what was found before it."""
    cache = PrefixCache(20_000)
    root = cache.root()
    source = random.Random(3)
    prompts = [[bytes([number]) * 100 for number in source.choices(range(8), k=6)] for _ in range(40)]
    for _ in range(1000):
        nodes = _learn(cache, root, source.choice(prompts))
        for parent, child in zip([root, *nodes], nodes, strict=False):
            assert child.parent is parent


def test_a_cache_of_no_size_remembers_nothing() -> None:
    """Caching can be switched off."""
    cache = PrefixCache(0)
    root = cache.root()

    assert cache.add(root, b"one", _words(1)) is None
    assert cache.walk_words(root, b"\0" * 4096) == ([], b"\0" * 4096)
    assert cache.bytes_used == 0


def test_a_piece_that_is_too_large_is_not_remembered() -> None:
    """It is refused, and the next walk makes room."""
    cache = PrefixCache(10_000)
    root = cache.root()
    _learn(cache, root, [b"x" * 4000])

    assert cache.add(root, b"y" * 9_000, b"") is None
    cache.begin()
    cache.begin()
    assert cache.bytes_used <= 10_000


@given(
    tokens=st.integers(0, 3000),
    cut=st.integers(0, 3000),
    sizes=st.lists(st.sampled_from([1, 3, 16, 64, 700]), min_size=1, max_size=4),
    salt=st.sampled_from([b"", b"tenant"]),
    lora=st.sampled_from([None, "adapter"]),
)
@settings(max_examples=80, deadline=None)
def test_a_remembered_prompt_hashes_as_a_plain_one(
    tokens: int, cut: int, sizes: list[int], salt: bytes, lora: str | None
) -> None:
    """Cold, warm, grown and in any block size: the hashes and the tokens are those of the plain prompt."""
    cache = PrefixCache(_MIB)
    root = cache.root()
    words = random.Random(tokens).randbytes(4 * tokens)
    for part in (words[: 4 * cut], words, words):
        nodes, tail = cache.walk_words(root, part)
        prompt = CachedPrompt(cache, nodes, tail, salt=salt, lora=lora)
        plain = Prompt(part, salt=salt, lora=lora)

        assert prompt.tokens == plain.tokens
        for size in sizes:
            assert prompt.hash_list(size) == plain.hash_list(size)
            assert prompt.hashes(size).tolist() == plain.hash_list(size)
        assert prompt.token_ids == part


def test_tokens_before_every_text_are_part_of_the_prompt() -> None:
    """A root may have tokens of its own, and is remembered like any node."""
    cache = PrefixCache(_MIB)
    root = cache.root(_words(7))
    node = cache.add(root, b"text", _words(*range(40)))
    assert node is not None
    for _ in range(2):
        prompt = CachedPrompt(cache, [root, node], _words(9))

        assert prompt.tokens == 42
        assert prompt.hash_list(16) == Prompt([7, *range(40), 9]).hash_list(16)


def test_a_block_size_out_of_range_is_refused_as_by_a_plain_prompt() -> None:
    """Callers may rely on the same error."""
    with pytest.raises(ValueError, match="block_size"):
        CachedPrompt(PrefixCache(0), [], bytes(8)).hash_list(0)
