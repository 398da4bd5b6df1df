"""Remembers how beginnings of prompts became tokens, so that a prompt that grew costs only what it grew by.

A prompt is cut into pieces (2 KiB of a token array, one turn of a conversation, 2 KiB of request bytes). Each piece is
a node below the node of the piece before it; a node keeps the piece's tokens and, per block size and seed, the
sequence hashes that end in it. A node is found by a digest and then compared byte for byte with what it stands for: a
digest that collides costs a miss, never a wrong token. What a piece is and how it becomes tokens is not known here.

Memory is bounded by two generations: what is found or added lives in the young one; when that is full it becomes the
old one, and the old one is forgotten. Generations change only between walks, so a node never outlives its parent.
"""

from collections.abc import Sequence
from itertools import count

from xxhash import xxh3_64_intdigest

from kvrouter.blocks import Prompt, chain_hashes, hash_seed

__all__ = ["CachedPrompt", "PrefixCache", "PrefixNode"]

WORDS_PIECE_BYTES = 2048
_NODE_BYTES = 400
"""What a node costs beside its bytes: the object, its dictionary of hashes, two entries in tables."""
_HASH_BYTES = 44
_HASH_KEYS_MAX = 8
"""Pairs of block size and seed per node; tenants with their own salts would otherwise grow a shared node for ever."""


class PrefixNode:
    """One piece of a prompt, after everything that precedes it."""

    __slots__ = ("digest", "hashes", "parent", "raw", "resume", "tokens", "words")

    def __init__(self, parent: "PrefixNode | None", digest: int, raw: bytes, words: bytes, resume: int) -> None:
        self.parent, self.digest = parent, digest
        self.raw, self.words = raw, words
        self.tokens: int = len(words) // 4 + (parent.tokens if parent is not None else 0)
        """Tokens up to and including this piece."""
        self.resume = resume
        """For a cut that falls within a token: where, from the beginning, the next whole one begins."""
        self.hashes: dict[tuple[int, int], list[int]] = {}


class PrefixCache:
    """A bounded forest of nodes.

    Lives on one event loop; nothing here waits. A walk (`begin`, then `find` and `add` along one prompt) runs without
    giving way to other tasks, so everything that it touched is of one generation.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.hits = self.misses = self.generations = 0
        self._young: dict[int, PrefixNode] = {}
        self._old: dict[int, PrefixNode] = {}
        self._young_bytes = self._old_bytes = 0
        self._full = False
        self._roots = count(1)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    @property
    def bytes_used(self) -> int:
        """Estimated memory of everything remembered; never above `bytes_max`."""
        return self._young_bytes + self._old_bytes

    def root(self, words: bytes = b"") -> PrefixNode:
        """Return a beginning of its own, which shares nothing with others; `words` are tokens that come first."""
        return PrefixNode(None, xxh3_64_intdigest(b"root", next(self._roots)), b"", words, 0)

    def begin(self) -> None:
        """Say that a walk begins; between walks, and only then, generations may change."""
        if self._full or 2 * self._young_bytes > self.bytes_max:
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0
            self._full = False
            self.generations += 1

    def find(self, parent: PrefixNode, raw: bytes) -> PrefixNode | None:
        """Return the node of `raw` after `parent`, if it is remembered."""
        digest = xxh3_64_intdigest(raw, parent.digest)
        node = self._young.get(digest)
        if node is None:
            node = self._old.get(digest)
            if node is None or node.parent is not parent or node.raw != raw:
                self.misses += 1
                return None
            self._promote(node)
        elif node.parent is not parent or node.raw != raw:
            self.misses += 1
            return None
        self.hits += 1
        return node

    def add(self, parent: PrefixNode, raw: bytes, words: bytes, resume: int = 0) -> PrefixNode | None:
        """Remember that `raw` after `parent` is the tokens `words`; None when it is not worth its memory."""
        cost = _NODE_BYTES + len(raw) + (0 if words is raw else len(words))
        if not self._has_room(cost):
            return None
        digest = xxh3_64_intdigest(raw, parent.digest)
        node = PrefixNode(parent, digest, raw, words, resume)
        displaced = self._young.get(digest)
        if displaced is not None:
            self._young_bytes -= _cost(displaced)
        self._young[digest] = node
        self._young_bytes += cost
        return node

    def walk_words(self, root: PrefixNode, words: bytes) -> tuple[list[PrefixNode], bytes]:
        """Remember words that are their own pieces; return the nodes, and the words after them."""
        self.begin()
        parent, nodes = root, list[PrefixNode]()
        for at in range(0, len(words) - WORDS_PIECE_BYTES + 1, WORDS_PIECE_BYTES):
            piece = words[at : at + WORDS_PIECE_BYTES]
            node = self.find(parent, piece) or self.add(parent, piece, piece)
            if node is None:
                break
            nodes.append(node)
            parent = node
        return nodes, words[len(nodes) * WORDS_PIECE_BYTES :]

    def keep_hashes(self, node: PrefixNode, key: tuple[int, int], hashes: list[int]) -> None:
        """Remember the sequence hashes that end in `node`, for one block size and seed."""
        cost = _HASH_BYTES * len(hashes)
        if key in node.hashes or not self._has_room(cost):
            return
        if node.parent is not None and self._young.get(node.digest) is not node:
            return  # forgotten meanwhile; a root is never forgotten, and never has many hashes
        if len(node.hashes) >= _HASH_KEYS_MAX:
            self._young_bytes -= _HASH_BYTES * sum(map(len, node.hashes.values()))
            node.hashes.clear()
        node.hashes[key] = hashes
        self._young_bytes += cost

    def _has_room(self, cost: int) -> bool:
        if self._young_bytes + self._old_bytes + cost <= self.bytes_max:
            return True
        self._full = True  # the next walk begins with a new generation
        return False

    def _promote(self, node: PrefixNode) -> None:
        cost = _cost(node)
        del self._old[node.digest]
        self._old_bytes -= cost
        self._young[node.digest] = node
        self._young_bytes += cost


class CachedPrompt(Prompt):
    """A prompt whose beginning is remembered; hashes and tokens are put together when somebody asks."""

    __slots__ = ("_cache", "_nodes", "_tail")

    def __init__(
        self,
        cache: PrefixCache,
        nodes: Sequence[PrefixNode],
        tail: bytes,
        *,
        salt: bytes = b"",
        lora: str | None = None,
        exact: bool = True,
    ) -> None:
        # Not the parent's constructor: that one wants all tokens at once, and here they may never be needed.
        self._cache, self._nodes, self._tail = cache, nodes, tail
        self._lists: dict[int, list[int]] = {}
        self._packed: dict[int, bytes] = {}
        self.tokens = len(tail) // 4 + (nodes[-1].tokens if nodes else 0)
        self.salt, self.lora, self.exact = salt, lora, exact
        self.block_size = None

    @property
    def token_ids(self) -> bytes:
        """All tokens, as little-endian 32-bit integers."""
        return self._words_from(0)

    def _chain(self, block_size: int) -> list[int]:
        key = (block_size, hash_seed(self.salt, self.lora))
        hashes: list[int] = []
        known = 0
        for node in self._nodes:
            remembered = node.hashes.get(key)
            if remembered is None:
                break
            hashes += remembered
            known += 1
        words = self._words_from(len(hashes) * block_size)
        hashes += chain_hashes(hashes[-1] if hashes else None, words, block_size, key[1])
        self._remember(known, key, hashes)
        return hashes

    def _all_words(self) -> bytes:
        # The native core hashes everything in less time than putting together what is remembered takes.
        return self._words_from(0)

    def _remember(self, known: int, key: tuple[int, int], hashes: list[int]) -> None:
        begin = self._nodes[known - 1].tokens // key[0] if known else 0
        for node in self._nodes[known:]:
            end = node.tokens // key[0]
            self._cache.keep_hashes(node, key, hashes[begin:end])
            begin = end

    def _words_from(self, token: int) -> bytes:
        """All tokens from number `token` on."""
        parts = [self._tail]
        first = self._nodes[-1].tokens if self._nodes else 0
        for node in reversed(self._nodes):
            if first <= token:
                break
            parts.append(node.words)
            first = node.tokens - len(node.words) // 4
        parts.reverse()
        words = b"".join(parts) if len(parts) > 1 else self._tail
        return words[4 * (token - first) :] if token > first else words


def _cost(node: PrefixNode) -> int:
    raw, words = node.raw, node.words
    hashes = sum(map(len, node.hashes.values()))
    return _NODE_BYTES + len(raw) + (0 if words is raw else len(words)) + _HASH_BYTES * hashes
