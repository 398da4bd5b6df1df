"""Prompts that come again exactly as they were: a digest instead of rendering, tokenising or asking.

Evaluation runs, retries and health probes send the very same prompt many times. What is remembered here points into the
prefix cache and is forgotten with it.
"""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

from xxhash import xxh3_128_intdigest

from kvrouter.service.prompts.body import ChatFields, InferenceBody
from kvrouter.service.prompts.prefix_cache import PrefixCache, PrefixNode

__all__ = ["PromptTokens", "RepeatedPrompts", "deciding_bytes"]


class PromptTokens(NamedTuple):
    """Tokens as remembered nodes, and the words after them."""

    nodes: Sequence[PrefixNode]
    tail: bytes


class RepeatedPrompts:
    """Tokens by a digest of everything that decides them; the oldest entry goes first."""

    def __init__(self, cache: PrefixCache, *, entries_max: int) -> None:
        self.hits = 0
        self._cache, self._entries_max = cache, entries_max if cache.bytes_max else 0
        self._entries: dict[int, PromptTokens] = {}
        self._generation = cache.generations
        # Digests decide alone here, so clients must not be able to make two that are equal.
        self._secret = secrets.randbits(64)

    def digest(self, deciding: bytes) -> int:
        """Return the key of a prompt."""
        return int(xxh3_128_intdigest(deciding, self._secret))

    def get(self, key: int) -> PromptTokens | None:
        """Return the tokens of a prompt that was remembered."""
        if self._generation != self._cache.generations:
            # What the cache forgot must not live on here.
            self._entries.clear()
            self._generation = self._cache.generations
        tokens = self._entries.get(key)
        if tokens is not None:
            self.hits += 1
        return tokens

    def put(self, key: int, tokens: PromptTokens) -> None:
        """Remember the tokens of a prompt."""
        if len(self._entries) >= self._entries_max:
            if not self._entries_max:
                return
            del self._entries[next(iter(self._entries))]
        self._entries[key] = tokens


def deciding_bytes(body: InferenceBody, of: object) -> bytes:
    """Return everything in `body` that decides its tokens, given the tokenizer and template `of` its model."""
    chat = body.chat
    if chat is None:
        parts = [body.text.encode()]
        flags: tuple[object, ...] = (body.add_special_tokens,)
    elif isinstance(chat, ChatFields):
        raw = (chat.messages, chat.tools, chat.documents, chat.chat_template_kwargs)
        parts = [bytes(memoryview(each)) for each in raw]
        flags = (
            chat.add_special_tokens,
            chat.add_generation_prompt,
            chat.continue_final_message,
            chat.reasoning_effort,
            chat.chat_template,
        )
    else:
        parts = [bytes(memoryview(chat.input)), bytes(memoryview(chat.tools))]
        flags = (chat.instructions, chat.previous_response_id)
    head = repr((id(of), type(chat).__name__, flags, [len(part) for part in parts]))
    return b"".join((head.encode(), *parts))
