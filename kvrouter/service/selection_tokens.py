"""Reads selection requests; without the native core, of prompts that continue others only what is new.

The native core reads a whole array of token ids in less time than it takes to recognise its pieces, so with it nothing
is remembered; it reads arrays of hashes too. The rest of this is for those who have to do without.

A gateway asks about every turn of a conversation, and each turn repeats the whole of it. The bytes of the array of
token ids are compared, in pieces of 2 KiB, with remembered ones; the JSON reader then sees one marker number in the
place of all that is known. If the marker comes back as the first token id, the array did begin where we thought. What
is seen for the second time is remembered, so that prompts which never come again cost nothing. How the rest is read is
`selection_wire.py`.
"""

import re
import secrets
from collections import OrderedDict
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from kvrouter import native_core
from kvrouter.blocks import Prompt
from kvrouter.errors import RequestError
from kvrouter.service.prompts import PrefixCache
from kvrouter.service.prompts.prefix_cache import CachedPrompt, PrefixNode
from kvrouter.service.selection_wire import GivenHashes, SelectionRequest, parse_selection, prompt_of, token_words

__all__ = ["AskedSelection", "SelectionReader"]

PIECE_BYTES = 2048
SEEN_MAX = 8192
_KEY = b'"token_ids"'
_opening = re.compile(rb"\s*:\s*\[").match


class AskedSelection:
    """One request: its fields, and its prompt as remembered pieces and the words after them, or as hashes."""

    __slots__ = ("_cache", "_hashes", "_nodes", "_words", "fields")

    def __init__(
        self,
        cache: PrefixCache,
        fields: SelectionRequest,
        nodes: Sequence[PrefixNode] = (),
        words: bytes | None = None,
        *,
        hashes: GivenHashes | None = None,
    ) -> None:
        self.fields = fields
        self._cache, self._nodes, self._words, self._hashes = cache, nodes, words, hashes

    def prompt(self, *, block_size: int) -> Prompt:
        """Return the prompt; `block_size` is the one that given hashes are for.

        Raises:
            RequestError: 400, no prompt is given, or it is not what it must be.
        """
        fields = self.fields
        if self._words is None or fields.mm_routing_info is not None or fields.block_mm_infos:
            return prompt_of(fields, self._all_words(), self._hashes, block_size=block_size)
        salt = (fields.cache_salt or "").encode()
        return CachedPrompt(self._cache, self._nodes, self._words, salt=salt, lora=fields.lora_name or None)

    def _all_words(self) -> bytes | None:
        return None if self._words is None else CachedPrompt(self._cache, self._nodes, self._words).token_ids


class SelectionReader:
    """Reads bodies. `cache` may be shared: what is remembered here has a root of its own."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache, self._root = cache, cache.root()
        self._seen: OrderedDict[int, None] = OrderedDict()
        # Negative, so that no client can send it as a token id; random, so that none does by design.
        self._marker = b"%d," % (-1 - secrets.randbits(62))

    def read(self, body: bytes) -> AskedSelection:
        """Read one body.

        Raises:
            RequestError: 400, it is not JSON or a field has the wrong type; `param` names the field.
        """
        if native_core.present:
            asked = self._read_at_once(body) or self._read_hashes(body)
            return asked or AskedSelection(self._cache, parse_selection(body))
        at = body.find(_KEY) if len(body) > 2 * PIECE_BYTES else -1
        opening = _opening(body, at + len(_KEY)) if at >= 0 else None
        if opening is None:
            return AskedSelection(self._cache, parse_selection(body))
        begin = opening.end()
        nodes = self._walk(body, begin)
        return (self._read_rest(body, begin, nodes) if nodes else None) or self._read_whole(body, begin)

    def _read_at_once(self, body: bytes) -> AskedSelection | None:
        """Read the array apart from the rest; None if it is not the prompt, or if something is wrong with it."""
        found = native_core.native.find_token_array(body, _KEY)
        if found is None or not found[0]:
            return None
        words, start, end = found
        array = b"[%b]" % self._marker[:-1]
        try:
            fields = parse_selection(b"".join((body[:start], array, body[end:])))
        except RequestError:
            return None  # the whole body says what is wrong, and where
        return AskedSelection(self._cache, fields, (), words) if bytes(fields.token_ids) == array else None

    def _read_hashes(self, body: bytes) -> AskedSelection | None:
        """As above, for both arrays of a prompt that is given as hashes: markers stand for them meanwhile."""
        find = native_core.native.find_hash_array
        sequences = find(body, b'"sequence_hashes"')
        blocks = find(body, b'"block_hashes"') if sequences is not None else None
        if sequences is None or blocks is None:
            return None
        first, last = (blocks, sequences) if blocks[1] < sequences[1] else (sequences, blocks)
        marker = b"[%b]" % self._marker[:-1]
        try:
            fields = parse_selection(
                b"".join((body[: first[1]], marker, body[first[2] : last[1]], marker, body[last[2] :]))
            )
        except RequestError:
            return None
        if fields.sequence_hashes != [int(self._marker[:-1])] or bytes(fields.block_hashes) != marker:
            return None
        return AskedSelection(self._cache, fields, hashes=GivenHashes(sequences[0], len(blocks[0]) // 8))

    def _walk(self, body: bytes, begin: int) -> list[PrefixNode]:
        self._cache.begin()
        parent, nodes = self._root, list[PrefixNode]()
        for at in range(begin, len(body) - PIECE_BYTES, PIECE_BYTES):
            node = self._cache.find(parent, body[at : at + PIECE_BYTES])
            if node is None:
                break
            nodes.append(node)
            parent = node
        return nodes

    def _read_rest(self, body: bytes, begin: int, nodes: list[PrefixNode]) -> AskedSelection | None:
        """Read what follows the remembered pieces; None if they are not the beginning of the prompt after all."""
        try:
            fields = parse_selection(b"%b%b%b" % (body[:begin], self._marker, body[begin + nodes[-1].resume :]))
        except RequestError:
            return None  # the whole body says what is wrong, and where
        array = bytes(fields.token_ids)
        if not array.startswith(self._marker, 1):
            return None
        words = token_words(b"[" + array[1 + len(self._marker) :].lstrip())
        return AskedSelection(self._cache, fields, nodes, self._learn(body, begin, nodes, words))

    def _read_whole(self, body: bytes, begin: int) -> AskedSelection:
        fields = parse_selection(body)
        array = bytes(fields.token_ids)
        if not array.startswith(b"[") or not body.startswith(array, begin - 1):
            return AskedSelection(self._cache, fields)  # the key that was found belongs to something else
        nodes: list[PrefixNode] = []
        words = self._learn(body, begin, nodes, token_words(array))
        return AskedSelection(self._cache, fields, nodes, words)

    def _learn(self, body: bytes, begin: int, nodes: list[PrefixNode], words: bytes) -> bytes:
        """Remember what comes after `nodes` if it comes for the second time; return the words after all nodes."""
        parent = nodes[-1] if nodes else self._root
        first, end = begin + len(nodes) * PIECE_BYTES, body.find(b"]", begin + parent.resume)
        if first + PIECE_BYTES > end or not self._seen_before(parent, body[first : first + PIECE_BYTES]):
            return words
        used = 0  # cut off once at the end: once per piece would copy long prompts again and again
        for at in range(first, end - PIECE_BYTES + 1, PIECE_BYTES):
            # Every comma ends one token; what follows the last one belongs to the next piece.
            cut = used + 4 * body.count(b",", at, at + PIECE_BYTES)
            resume = body.rfind(b",", at, at + PIECE_BYTES) + 1 - begin if cut > used else parent.resume
            node = self._cache.add(parent, body[at : at + PIECE_BYTES], words[used:cut], resume)
            if node is None:
                break
            nodes.append(node)
            parent, used = node, cut
        return words[used:]

    def _seen_before(self, parent: PrefixNode, piece: bytes) -> bool:
        digest = xxh3_64_intdigest(piece, parent.digest)
        if digest in self._seen:
            return True
        self._seen[digest] = None
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)
        return False
