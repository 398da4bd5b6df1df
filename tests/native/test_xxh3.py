"""The core's XXH3-64 is XXH3-64, for every length and seed."""

import random

import pytest
from xxhash import xxh3_64_intdigest

from kvrouter import native_core

SEEDS = (0, 1, 1337, 2**63, 2**64 - 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_short_input_hashes_as_the_original_does(seed: int) -> None:
    """Up to 2048 bytes: every way of mixing, every remainder, two blocks of stripes."""
    data = random.Random(seed).randbytes(2048)

    wrong = [n for n in range(2049) if native_core.native.xxh3_64(data[:n], seed) != xxh3_64_intdigest(data[:n], seed)]

    assert wrong == []


def test_long_inputs_hash_as_the_original_does() -> None:
    """The largest block has 256 KiB; lengths and seeds at random, and both sides of every block of stripes."""
    numbers = random.Random(7)
    lengths = [1024 * n + d for n in (2, 3, 64, 256) for d in (-1, 0, 1, 63, 64, 65)]
    lengths += [numbers.randrange(2048, 1 << 19) for _ in range(40)]

    for length in lengths:
        data, seed = numbers.randbytes(length), numbers.getrandbits(64)
        assert native_core.native.xxh3_64(data, seed) == xxh3_64_intdigest(data, seed), (length, seed)


@pytest.mark.parametrize("data", [bytearray(b"tokens"), memoryview(b"tokens")])
def test_any_contiguous_buffer_is_taken(data: bytearray | memoryview) -> None:
    """Nothing is copied to make bytes of it first."""
    assert native_core.native.xxh3_64(data, 5) == xxh3_64_intdigest(b"tokens", 5)


def test_what_is_no_buffer_or_no_seed_is_refused() -> None:
    """As Python itself would say it."""
    with pytest.raises(TypeError):
        native_core.native.xxh3_64("text", 0)  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        native_core.native.xxh3_64(memoryview(b"abcdef")[::2], 0)
    with pytest.raises(OverflowError):
        native_core.native.xxh3_64(b"", -1)
    with pytest.raises(OverflowError):
        native_core.native.xxh3_64(b"", 2**64)
    with pytest.raises(TypeError, match="takes 2 arguments, not 1"):
        native_core.native.xxh3_64(b"")  # type: ignore[call-arg]
