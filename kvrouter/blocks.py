"""Tokens to sequence hashes: the only keys that the index knows.

A block is `block_size` consecutive tokens; its block hash is XXH3-64 over the tokens as little-endian 32-bit
integers. A sequence hash chains block hashes, so that it names a block together with its whole prefix. Salt and
LoRA adapter go into the seed: two tenants or two adapters never share a hash. The values are bit-identical to the
public hashes of NVIDIA Dynamo (`public-xxh3-v1`), so that clients which hash for themselves can talk to either.

    block hash     b[i] = XXH3(tokens of block i || sorted multimodal keys as u64 LE, seed)
    sequence hash  s[0] = b[0];  s[i] = XXH3(s[i-1] as u64 LE || b[i] as u64 LE, 1337)
    seed           1337 + XXH3(lora, 0) + XXH3(salt, 1)  mod 2^64, each term only where it is not empty

This module never computes an engine's own hash: those are opaque to us. XXH3 is not collision-resistant against an
adversary; a collision costs a wrong cache prediction, never a wrong answer.

Where the native core is present it does the work; what is written here in Python is what it has to give.
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from operator import index
from struct import Struct
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from kvrouter import native_core

__all__ = [
    "BLOCK_SIZE_MAX",
    "HASH_SEED",
    "PROMPT_TOKENS_MAX",
    "TOKEN_ID_MAX",
    "BlockKeys",
    "HashArray",
    "Prompt",
    "TokenIds",
    "chain_hashes",
    "extend_hashes",
    "hash_seed",
    "multimodal_key",
    "packed_hashes",
    "sequence_hashes",
    "token_bytes",
]

HASH_SEED = 1337
TOKEN_ID_MAX = 2**32 - 1
BLOCK_SIZE_MAX = 65_536
PROMPT_TOKENS_MAX = 2**40
"""What a caller may say that a prompt has; a million such are still counted in 64 bits."""

HashArray: TypeAlias = NDArray[np.uint64]
TokenIds: TypeAlias = "Sequence[int] | NDArray[np.integer] | array[int] | bytes | bytearray | memoryview"
BlockKeys: TypeAlias = Sequence[Sequence[int] | None]

_MASK = 2**64 - 1
_pack_pair = Struct("<QQ").pack


def sequence_hashes(
    token_ids: TokenIds, block_size: int, *, salt: bytes = b"", lora: str | None = None, block_keys: BlockKeys = ()
) -> HashArray:
    """Hash every full block of a prompt.

    Args:
        token_ids: integers 0..2^32-1, or their bytes as little-endian 32-bit integers.
        block_size: tokens per block, at least 1.
        salt: isolates tenants; empty means none.
        lora: name of the adapter; empty or None means none.
        block_keys: for each block (missing ones have none) the keys of the multimodal items in it.

    Returns:
        uint64[len(token_ids) // block_size]; the last, partial block has no hash.

    Raises:
        ValueError: a token id, the block size or a key is out of range; the text names it.
        TypeError: a token id is not an integer, or the salt is not bytes.
    """
    return extend_hashes(None, token_ids, block_size, seed=hash_seed(salt, lora), block_keys=block_keys)


def extend_hashes(
    parent: int | None,
    token_ids: TokenIds,
    block_size: int,
    *,
    seed: int = HASH_SEED,
    block_keys: BlockKeys = (),
    lookahead: int = 0,
) -> HashArray:
    """Continue a chain: hash the full blocks of `token_ids`, which follow the block whose sequence hash is `parent`.

    `lookahead` is the number of tokens after a block that its hash also covers (1 under EAGLE); the last block then
    needs them to be present. Otherwise as `sequence_hashes`.
    """
    words = token_bytes(token_ids)
    packed = packed_hashes(parent, words, block_size, seed, block_keys=block_keys, lookahead=lookahead)
    return np.frombuffer(packed, dtype=np.uint64)


def chain_hashes(
    parent: int | None,
    words: bytes,
    block_size: int,
    seed: int = HASH_SEED,
    *,
    block_keys: BlockKeys = (),
    lookahead: int = 0,
) -> list[int]:
    """As `extend_hashes`, from words (`token_bytes`) to plain integers."""
    if native_core.present:
        packed = packed_hashes(parent, words, block_size, seed, block_keys=block_keys, lookahead=lookahead)
        return array("Q", packed).tolist()
    _check(parent, block_size, lookahead)
    blocks: Iterator[bytes] = iter(_split(words, block_size, lookahead))
    if block_keys:
        blocks = map(_with_keys, blocks, chain(block_keys, repeat(None)))
    digest, pack = xxh3_64_intdigest, _pack_pair
    hashes: list[int] = []
    append = hashes.append
    sequence = parent
    for block_hash in map(digest, blocks, repeat(seed)):
        sequence = block_hash if sequence is None else digest(pack(sequence, block_hash), HASH_SEED)
        append(sequence)
    return hashes


def packed_hashes(
    parent: int | None,
    words: bytes,
    block_size: int,
    seed: int = HASH_SEED,
    *,
    block_keys: BlockKeys = (),
    lookahead: int = 0,
) -> bytes:
    """As `extend_hashes`, from words to 64-bit integers in the machine's byte order: the form that costs least.

    With the native core about 8 ns per block of 16; an integer object of each hash would cost three times as much.
    """
    if not native_core.present:
        hashes = chain_hashes(parent, words, block_size, seed, block_keys=block_keys, lookahead=lookahead)
        return array("Q", hashes).tobytes()
    _check(parent, block_size, lookahead)
    native = native_core.native
    if not block_keys:
        return native.chain_hashes(parent, words, block_size, seed, lookahead)
    blocks = array("Q", native.block_hashes(words, block_size, seed, lookahead))
    width = 4 * (block_size + lookahead)
    for position, keys in zip(range(len(blocks)), block_keys, strict=False):
        if keys:
            start = 4 * block_size * position
            blocks[position] = native.xxh3_64(_with_keys(words[start : start + width], keys), seed)
    return native.chain_block_hashes(parent, blocks)


def hash_seed(salt: bytes = b"", lora: str | None = None) -> int:
    """The seed that keeps the blocks of one salt and one LoRA adapter apart from all others."""
    if not salt and not lora:
        return HASH_SEED
    if not isinstance(salt, bytes):
        raise TypeError(f"salt must be bytes, not {type(salt).__name__}")
    seed = HASH_SEED
    if lora:
        seed += int(xxh3_64_intdigest(lora.encode(), 0))
    if salt:
        seed += int(xxh3_64_intdigest(salt, 1))
    return seed & _MASK


def multimodal_key(identifier: str) -> int:
    """Fold an engine's identifier of an image, video or audio item to the 64-bit key that block hashes cover.

    Identifiers of 64 hexadecimal digits (content digests) keep their first 16 digits; others are hashed.
    """
    if len(identifier) == 64:
        try:
            return int(identifier[:16], 16)
        except ValueError:
            pass
    return int(xxh3_64_intdigest(identifier.encode(), 0))


def token_bytes(token_ids: TokenIds) -> bytes:
    """Token ids as little-endian 32-bit integers, checked; raises as `sequence_hashes` does."""
    if isinstance(token_ids, (bytes, bytearray, memoryview)):
        words = bytes(token_ids)
        if len(words) % 4:
            raise ValueError(f"token_ids has {len(words)} bytes; 32-bit token ids need a multiple of 4")
        return words
    if isinstance(token_ids, np.ndarray):
        return _array_bytes(token_ids)
    try:
        if native_core.present and isinstance(token_ids, list):
            return native_core.native.tokens_to_words(token_ids)
        packed = array("I", token_ids)
    except (TypeError, OverflowError, ValueError):
        raise _token_error(token_ids) from None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


class Prompt:
    """One request's prompt, hashed once per block size, when somebody first asks.

    `exact` is False for hashes over request bytes instead of tokens: they match each other, never a worker's events.
    `block_size` is None where any block size can be hashed, else the only one for which hashes are known.
    """

    __slots__ = ("_lists", "_packed", "_token_ids", "_words", "block_size", "exact", "lora", "salt", "tokens")

    def __init__(self, token_ids: TokenIds, *, salt: bytes = b"", lora: str | None = None) -> None:
        self._token_ids: TokenIds = token_ids
        self._words = token_ids if type(token_ids) is bytes and not len(token_ids) & 3 else token_bytes(token_ids)
        self._lists: dict[int, list[int]] = {}
        self._packed: dict[int, bytes] = {}
        self.tokens = len(self._words) // 4
        self.salt, self.lora = salt, lora
        self.exact = True
        self.block_size: int | None = None

    @classmethod
    def from_hashes(
        cls,
        hashes: Sequence[int] | HashArray | bytes,
        *,
        block_size: int,
        tokens: int,
        exact: bool = True,
        salt: bytes = b"",
        lora: str | None = None,
    ) -> Self:
        """A prompt of `tokens` tokens whose sequence hashes the caller already has, for one block size only.

        As bytes they are 64-bit integers in the machine's byte order.
        """
        if not 1 <= block_size <= BLOCK_SIZE_MAX:
            raise ValueError(f"block_size is {block_size}; it must be 1..{BLOCK_SIZE_MAX}")
        if tokens > PROMPT_TOKENS_MAX:
            raise ValueError(f"a prompt of {tokens} tokens is longer than {PROMPT_TOKENS_MAX}")
        count = len(hashes) // 8 if isinstance(hashes, bytes) else len(hashes)
        if tokens < count * block_size:
            raise ValueError(f"{count} hashes of {block_size} tokens are more than the prompt's {tokens} tokens")
        prompt = cls(b"", salt=salt, lora=lora)
        if isinstance(hashes, bytes):
            prompt._packed[block_size] = hashes
        elif isinstance(hashes, np.ndarray):
            prompt._packed[block_size] = hashes.astype(np.uint64, copy=False).tobytes()
        else:
            prompt._lists[block_size] = list(hashes)
        prompt.tokens, prompt.block_size, prompt.exact = tokens, block_size, exact
        return prompt

    @property
    def token_ids(self) -> TokenIds:
        """The token ids as they were given; empty for a prompt made from hashes."""
        return self._token_ids

    def hash_list(self, block_size: int) -> list[int]:
        """Sequence hashes as plain integers. The list is shared: do not change it."""
        found = self._lists.get(block_size)
        if found is not None:
            return found
        if native_core.present or block_size in self._packed:
            found = array("Q", self.hash_bytes(block_size)).tolist()
        else:
            found = self._chain(block_size)
        self._lists[block_size] = found
        return found

    def hash_bytes(self, block_size: int) -> bytes:
        """Sequence hashes as 64-bit integers in the machine's byte order: the least work with the native core."""
        found = self._packed.get(block_size)
        if found is None:
            if not native_core.present or block_size in self._lists:
                found = array("Q", self.hash_list(block_size)).tobytes()
            elif self.block_size is not None:
                found = b""  # hashes were given for another block size: nothing is known about this one
            else:
                seed = hash_seed(self.salt, self.lora) if self.salt or self.lora else HASH_SEED
                found = native_core.native.chain_hashes(None, self._all_words(), block_size, seed, 0)
            self._packed[block_size] = found
        return found

    def hashes(self, block_size: int) -> HashArray:
        """Sequence hashes as uint64[tokens // block_size]; empty where they cannot be known."""
        return np.frombuffer(self.hash_bytes(block_size), dtype=np.uint64)

    def _chain(self, block_size: int) -> list[int]:
        if self.block_size is not None:
            return []  # hashes were given for another block size: nothing is known about this one
        return chain_hashes(None, self._words, block_size, hash_seed(self.salt, self.lora))

    def _all_words(self) -> bytes:
        return self._words


def _check(parent: int | None, block_size: int, lookahead: int) -> None:
    if not 1 <= block_size <= BLOCK_SIZE_MAX:
        raise ValueError(f"block_size is {block_size}; it must be 1..{BLOCK_SIZE_MAX}")
    if not 0 <= lookahead <= block_size:
        raise ValueError(f"lookahead is {lookahead}; it must be 0..{block_size}, the block size")
    if parent is not None and not 0 <= parent <= _MASK:
        raise ValueError(f"parent is {parent}; a sequence hash is 0..2^64-1")


def _split(words: bytes, block_size: int, lookahead: int) -> list[bytes]:
    stride = 4 * block_size
    if lookahead:
        width = stride + 4 * lookahead
        return [words[start : start + width] for start in range(0, len(words) - width + 1, stride)]
    count = len(words) // stride
    # One void scalar per block: numpy cuts the buffer faster than any loop of ours.
    cut: list[bytes] = np.frombuffer(words, f"V{stride}", count).tolist() if count else []
    return cut


def _with_keys(block: bytes, keys: Sequence[int] | None) -> bytes:
    if not keys:
        return block
    for key in keys:
        if not 0 <= key <= _MASK:
            raise ValueError(f"multimodal key {key} is not in 0..2^64-1")
    return block + b"".join(key.to_bytes(8, "little") for key in sorted(keys))


def _array_bytes(token_ids: NDArray[np.integer]) -> bytes:
    if token_ids.ndim != 1 or token_ids.dtype.kind not in "iu":
        shape = f"{token_ids.ndim}-dimensional {token_ids.dtype}"
        raise TypeError(f"token_ids must be a one-dimensional array of integers, not {shape}")
    if token_ids.dtype != np.uint32 and token_ids.size:
        least, most = int(token_ids.min()), int(token_ids.max())
        if least < 0 or most > TOKEN_ID_MAX:
            wrong = least if least < 0 else most
            raise ValueError(f"token_ids contains {wrong}; a token id is 0..{TOKEN_ID_MAX}")
    return token_ids.astype("<u4").tobytes()


def _token_error(token_ids: object) -> Exception:
    """Say which token id is wrong; only reached when one is."""
    if isinstance(token_ids, str) or not isinstance(token_ids, Sequence | array):
        return TypeError(f"token_ids must be a sequence of integers, not {type(token_ids).__name__}")
    for position, token in enumerate(token_ids):
        try:
            value = index(token)
        except TypeError:
            return TypeError(f"token_ids[{position}] is a {type(token).__name__}, not an integer")
        if not 0 <= value <= TOKEN_ID_MAX:
            return ValueError(f"token_ids[{position}] is {value}; a token id is 0..{TOKEN_ID_MAX}")
    return TypeError("token_ids must be a sequence of integers")
