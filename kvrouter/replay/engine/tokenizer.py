"""A small tokenizer of the engine's own, so that nothing has to be downloaded: reversible for any text.

A word that it knows is one token, everything else goes by pairs of bytes. Text is cut at word boundaries first, so
tokens of a longer text begin with those of its beginning, up to the last word: a conversation that grows keeps its
cached prefix. Generated text consists of known words and therefore tokenises back to the very tokens generated.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from itertools import product

__all__ = ["Tokenizer"]

_PAIRS_FROM = 256
_SPECIAL_FROM = _PAIRS_FROM + 65_536
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_WORDS_FROM = _SPECIAL_FROM + 256
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "st", "br")
_NUCLEI = ("a", "e", "i", "o", "u", "ai", "ou", "ea")
_COMMON = """
    the of and to in is that it for as was with be by on not he his but at are this have from or had an they which
    one you were all her she there would their we him been has when who will no more if out so up said what its
    about than into them can only other time new some could these two may first then do any like my now over such
    our man me even most made after also well did many before must through back years where much your way down
    should because long each user assistant system
"""
_PIECE = re.compile(rb" ?[A-Za-z]+|[^A-Za-z]")
_SPECIAL_PIECE = re.compile("(" + "|".join(re.escape(name) for name in _SPECIAL) + ")")


class Tokenizer:
    """Text to token ids and back. Ids below 256 are bytes, then come pairs of bytes, special tokens and words."""

    def __init__(self) -> None:
        syllables = [onset + nucleus for onset, nucleus in product(_ONSETS, _NUCLEI)]
        made = [first + second for first, second in product(syllables[::2], syllables[1::2])]
        words = dict.fromkeys([*_COMMON.split(), *made])
        self._words = [f" {word}".encode() for word in words]
        self._ids = {word: _WORDS_FROM + number for number, word in enumerate(self._words)}
        self.vocabulary = _WORDS_FROM + len(self._words)

    @property
    def words(self) -> range:
        """The ids of known words, from which answers are made."""
        return range(_WORDS_FROM, self.vocabulary)

    def encode(self, text: str) -> array[int]:
        """Return the token ids of `text`; the names of special tokens in it become those tokens."""
        tokens: array[int] = array("I")
        for part in _SPECIAL_PIECE.split(text):
            if part in _SPECIAL:
                tokens.append(_SPECIAL_FROM + _SPECIAL.index(part))
            elif part:
                self._encode_plain(part.encode("utf-8", "surrogatepass"), tokens)
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens`; ids beyond the vocabulary become U+FFFD."""
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """Return the bytes of one token."""
        if token < _PAIRS_FROM:
            return bytes((token,))
        if token < _SPECIAL_FROM:
            return bytes(divmod(token - _PAIRS_FROM, 256))
        if _WORDS_FROM <= token < self.vocabulary:
            return self._words[token - _WORDS_FROM]
        special = token - _SPECIAL_FROM
        return _SPECIAL[special].encode() if special < len(_SPECIAL) else "\ufffd".encode()

    def chat(self, messages: Sequence[tuple[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Return (role, content) messages as one text, in the manner of ChatML."""
        turns = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
        return turns + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    def _encode_plain(self, text: bytes, tokens: array[int]) -> None:
        loose = bytearray()
        for piece in _PIECE.findall(text):
            known = self._ids.get(piece)
            if known is None:
                loose += piece
                continue
            _encode_pairs(loose, tokens)
            loose.clear()
            tokens.append(known)
        _encode_pairs(loose, tokens)


def _encode_pairs(loose: bytearray, tokens: array[int]) -> None:
    even = len(loose) - len(loose) % 2
    tokens.extend(_PAIRS_FROM + loose[at] * 256 + loose[at + 1] for at in range(0, even, 2))
    if even < len(loose):
        tokens.append(loose[-1])
