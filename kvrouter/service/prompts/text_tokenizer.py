"""A model's tokenizer.json: text to token ids, in pieces that do not influence each other.

A Hugging Face tokenizer cuts a text at its added tokens first, and only then normalises and tokenises what is between
them. So a text may be cut before every occurrence of one added token (the *anchor*, such as `<|im_start|>`), and the
pieces tokenised alone give the tokens of the whole; a conversation then costs only its new turns. It holds only for
some added tokens (see `_is_safe`), and it is tried out on probes when a tokenizer is loaded: without a safe anchor, a
text is one piece. Caching is not done here.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from kvrouter.blocks import token_bytes
from kvrouter.errors import KvrouterError, SettingsError

__all__ = ["TextTokenizer", "TokenizerError"]

_PROBES = (
    "",
    " ",
    "\n",
    "\n\n",
    "a",
    " a ",
    "user\nHello, world! \t Are you  there?\n",
    "  two spaces, é ü ß 你好 🙂👍🏽 \u200b zero width ",
    "it's 12345 and 3.14;{'k': [1, 2]}\r\n\r\n    indented\n",
    "\ufb01 \u00bd \uff21\uff22\uff23 e\u0301 \u2581x \u0120y",
)


class TokenizerError(KvrouterError):
    """A text cannot be tokenised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _AddedToken:
    single_word: bool
    lstrip: bool
    normalized: bool


class TextTokenizer:
    """One loaded tokenizer. `encode` releases the interpreter and may be called from any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # A file may carry the truncation and padding of somebody's training run.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        given = json.loads(tokenizer.to_str()).get("added_tokens", [])
        self._added = {str(each["content"]): _added_token(each) for each in given}
        self.anchor: str | None = None
        """Texts are cut before each occurrence of this token; None: they are not cut."""
        self.around = self._tokens_around()
        """What the tokenizer adds before and after any text, as words; None: it depends on the text."""

    @classmethod
    def load(cls, path: Path) -> "TextTokenizer":
        """Load a tokenizer.json.

        Raises:
            SettingsError: the file is missing or damaged.
        """
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # noqa: BLE001 - the wheel raises plain Exception for whatever a file lacks
            raise SettingsError(f"tokenizer {path}: {error}") from None

    @property
    def added_tokens(self) -> list[str]:
        """Tokens that a text is cut at before anything else; there may be thousands."""
        return list(self._added)

    def cut_before(self, anchor: str) -> bool:
        """Cut texts before each `anchor` from now on; False, and no cutting, where that would not be exact."""
        self.anchor = None
        if self._is_safe(anchor):
            self.anchor = anchor
            if not self._cuts_are_exact(anchor):
                self.anchor = None
        return self.anchor is not None

    def pieces(self, text: str) -> list[str]:
        """Cut `text`; put together, the pieces are the text, and their tokens are its tokens."""
        anchor = self.anchor
        if anchor is None:
            return [text]
        first, *others = text.split(anchor)
        pieces = [anchor + other for other in others]
        return [first, *pieces] if first or not pieces else pieces

    def encode(self, text: str, *, add_special_tokens: bool = False) -> bytes:
        """Return the token ids of `text` as little-endian 32-bit integers.

        Raises:
            TokenizerError: the tokenizer fails on this text.
        """
        try:
            return token_bytes(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except Exception as error:  # noqa: BLE001 - the wheel raises plain Exception, and TypeError for lone surrogates
            raise TokenizerError(f"{type(error).__name__}: {error}") from None

    def override_around(self, first: str | None, last: str | None) -> None:
        """Add these tokens before and after any text, whatever the file says; unknown ones are left out."""
        ends = []
        for name in (first, last):
            token = self._tokenizer.token_to_id(name) if name else None
            ends.append(b"" if token is None else token_bytes([token]))
        self.around = (ends[0], ends[1])

    def _tokens_around(self) -> tuple[bytes, bytes] | None:
        """Find out what is added before and after, by trying; it must not depend on the text."""
        found: set[tuple[bytes, bytes]] = set()
        for probe in ("a", "Hello, world", " x y\n"):
            plain = self.encode(probe)
            full = self.encode(probe, add_special_tokens=True)
            at = _aligned_find(full, plain)
            if at < 0:
                return None
            found.add((full[:at], full[at + len(plain) :]))
        return found.pop() if len(found) == 1 else None

    def _is_safe(self, name: str) -> bool:
        """Whether every occurrence of `name` in a text is that added token, whatever stands around it.

        It must be found in the text as it came (not normalised, no whole-word rule), must not reach back for spaces,
        and no added token may overlap it or begin inside the text before it and end within it.
        """
        token = self._added.get(name)
        if not name or token is None or token.normalized or token.single_word or token.lstrip:
            return False
        if name[0].isspace() or name[0].isalnum() or name[0] == "_":
            return False  # it would matter to a token that strips spaces, or wants whole words, before it
        if any(name.startswith(name[-length:]) for length in range(1, len(name))):
            return False
        return not any(_takes_from(other, name) for other in self._added if other != name)

    def _cuts_are_exact(self, anchor: str) -> bool:
        others = [name for name in list(self._added)[:8] if name != anchor]
        for number, probe in enumerate(_PROBES):
            second = _PROBES[(number + 3) % len(_PROBES)]
            other = others[number % len(others)] if others else ""
            for text in (
                probe + anchor + second,
                anchor + probe + other + second + anchor + anchor + probe,
                probe + other + anchor + second + other + anchor,
            ):
                if b"".join(map(self.encode, self.pieces(text))) != self.encode(text):
                    return False
        return True


def _added_token(given: dict[str, object]) -> _AddedToken:
    return _AddedToken(
        single_word=bool(given.get("single_word")),
        lstrip=bool(given.get("lstrip")),
        normalized=bool(given.get("normalized")),
    )


def _takes_from(other: str, anchor: str) -> bool:
    """Whether finding `other` in a text could use up a part of an `anchor` that is there.

    The leftmost token wins, and the longest of those that begin at one place: so an `other` that begins earlier and
    reaches into the anchor, contains it, or is longer and begins with it.
    """
    if anchor in other:
        return True
    return any(other.endswith(anchor[:length]) for length in range(1, min(len(anchor), len(other) + 1)))


def _aligned_find(words: bytes, part: bytes) -> int:
    at = words.find(part)
    while at >= 0 and at % 4:
        at = words.find(part, at + 1)
    return at
