"""Prompts given as arrays of token ids: read without a Python integer of each, or once and then from where they differ.

The native core reads a whole array in less time than it takes to recognise its pieces, so with it nothing is
remembered: it reads a body of the usual form in one go, and leaves any other one to the general reader, all but the
array. Everything else here is for those who have to do without.

A JSON reader goes from left to right, so what it has read is decided by the bytes so far. We look for the place where
the array of the prompt seems to begin, walk the remembered 2 KiB pieces that follow it, and then let the JSON reader
read the body without them: one marker number stands for everything that is known. If the marker comes back as the
first token of the prompt, the array did begin there and all is well; if not, the whole body is read. The marker is a
random negative number, so no client can send it. With the native core it stands for the whole array.
"""

import re
import secrets
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from kvrouter import native_core
from kvrouter.blocks import TOKEN_ID_MAX, token_bytes
from kvrouter.errors import RequestError
from kvrouter.service.prompts.body import CompletionFields, EmbeddingFields, InferenceBody
from kvrouter.service.prompts.prefix_cache import PrefixCache, PrefixNode

__all__ = ["TokenArrayReader", "token_words"]

PIECE_BYTES = 2048
# In shorter bodies there is nothing to save.
_READ_BYTES_MIN, _REMEMBERED_BYTES_MIN = 256, 2 * PIECE_BYTES

_USUAL_FIELDS = ("model", "stream", "max_tokens")

Fields = TypeVar("Fields", CompletionFields, EmbeddingFields)


class TokenArrayReader(Generic[Fields]):
    """Reads bodies whose field `name` may be a long array of token ids."""

    def __init__(self, cache: PrefixCache, root: PrefixNode, name: str, fields: type[Fields]) -> None:
        self._cache, self._root, self._name = cache, root, name
        self._decode: Callable[[bytes], Fields] = msgspec.json.Decoder(fields).decode
        self._bare_name = name.encode()
        self._key = b'"%s"' % self._bare_name
        # What a body of the usual form has, and what the general reader looks at beside that.
        watched = {field.encode_name for field in msgspec.structs.fields(fields)} - {*_USUAL_FIELDS, name}
        self._watched = f" {' '.join(sorted(watched))} ".encode()
        self._opening = re.compile(rb"\s*:\s*\[(?=\s*[0-9-])").match
        self._marker = -1 - secrets.randbits(62)
        self._marker_text = b"%d" % self._marker
        self._marker_first = self._marker_text + b","

    def read_usual(self, body: bytes) -> InferenceBody | None:
        """Read a body that has token ids, `model`, `stream`, `max_tokens` and nothing else of interest.

        None: read it another way, which also says what is wrong with it. Only with the native core.
        """
        found = native_core.native.read_token_body(body, self._bare_name, self._watched)
        if found is None:
            return None
        words, model, stream, max_tokens = found
        return InferenceBody("token_ids", model, stream, None, None, max_tokens, words=words, is_usual=True)

    def read(self, body: bytes) -> tuple[Fields, list[PrefixNode], bytes] | None:
        """Return the fields, the remembered nodes and the token ids after them; None: read it the plain way.

        Raises:
            RequestError: the array holds something that is not a token id.
        """
        if native_core.present:
            return self._read_at_once(body) if len(body) >= _READ_BYTES_MIN else None
        at = body.find(self._key) if len(body) >= _REMEMBERED_BYTES_MIN else -1
        opening = self._opening(body, at + len(self._key)) if at >= 0 else None
        if opening is None:
            return None
        begin = opening.end()
        nodes = self._walk(body, begin)
        known = nodes[-1].resume if nodes else 0
        try:
            fields = self._decode(body[:begin] + self._marker_first + body[begin + known :])
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return None  # the plain way says what is wrong, and where
        ids: Any = getattr(fields, self._name)
        if type(ids) is not list or ids[:1] != [self._marker]:
            return None
        del ids[0]
        words = token_words(ids, self._name, nodes[-1].tokens if nodes else 0)
        return fields, nodes, self._learn(body, begin, nodes, words)

    def _read_at_once(self, body: bytes) -> tuple[Fields, list[PrefixNode], bytes] | None:
        found = native_core.native.find_token_array(body, self._key)
        if found is None or not found[0]:
            return None  # here too the plain way says what is wrong, or that there is no prompt
        words, start, end = found
        try:
            fields = self._decode(b"%b%b%b" % (body[: start + 1], self._marker_text, body[end - 1 :]))
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return None
        ids: Any = getattr(fields, self._name)
        return (fields, [], words) if type(ids) is list and ids == [self._marker] else None

    def _walk(self, body: bytes, begin: int) -> list[PrefixNode]:
        cache, parent = self._cache, self._root
        cache.begin()
        nodes: list[PrefixNode] = []
        for at in range(begin, len(body) - PIECE_BYTES, PIECE_BYTES):
            node = cache.find(parent, body[at : at + PIECE_BYTES])
            if node is None:
                break
            nodes.append(node)
            parent = node
        return nodes

    def _learn(self, body: bytes, begin: int, nodes: list[PrefixNode], words: bytes) -> bytes:
        """Remember the whole pieces among `words`, as further `nodes`; return the words that are left."""
        parent = nodes[-1] if nodes else self._root
        end = body.find(b"]", begin + parent.resume)
        used = 0  # cut off once at the end: once per piece would copy long prompts again and again
        for at in range(begin + len(nodes) * PIECE_BYTES, end - PIECE_BYTES + 1, PIECE_BYTES):
            # Every comma ends one token; what follows the last one belongs to the next piece.
            cut = used + 4 * body.count(b",", at, at + PIECE_BYTES)
            resume = body.rfind(b",", at, at + PIECE_BYTES) + 1 - begin if cut > used else parent.resume
            node = self._cache.add(parent, body[at : at + PIECE_BYTES], words[used:cut], resume)
            if node is None:
                break
            nodes.append(node)
            parent, used = node, cut
        return words[used:]


def token_words(ids: list[Any], name: str, first: int = 0) -> bytes:
    """Return token ids as little-endian 32-bit integers; `first` is the number of the first one, for the text.

    Raises:
        RequestError: one of them is not a token id.
    """
    try:
        return token_bytes(ids)
    except (TypeError, ValueError):
        for number, token in enumerate(ids, first):
            if type(token) is not int:
                problem = f"a {_JSON_TYPES.get(type(token), 'value')}, not a token id"
            elif not 0 <= token <= TOKEN_ID_MAX:
                problem = f"{token if abs(token) < 2**70 else 'a huge number'}; a token id is 0..{TOKEN_ID_MAX}"
            else:
                continue
            raise RequestError(f"{name}[{number}] is {problem}", code="invalid_value", param=name) from None
        raise


_JSON_TYPES = {str: "text", float: "fraction", list: "list", dict: "object", bool: "boolean", type(None): "null"}
