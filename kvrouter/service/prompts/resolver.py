"""Turns a body into the prompt that routing compares with what workers hold; never fails a request.

Three modes, per model: `tokenizer` (its tokenizer.json and chat template, here), `worker` (the worker's own /tokenize)
and `byte-blocks` (no tokens known). Where a mode cannot serve one request, that request falls back to byte-blocks and
the reason is counted. Token ids are used as they are in every mode.
"""

from collections.abc import Awaitable

from kvrouter.blocks import Prompt
from kvrouter.service.prompts.body import InferenceBody
from kvrouter.service.prompts.byte_blocks import byte_prompt
from kvrouter.service.prompts.prefix_cache import CachedPrompt, PrefixCache

__all__ = ["PromptResolver"]


class PromptResolver:
    """Resolves bodies to prompts. `cache` is shared with the `RequestReader`."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._bytes_root = cache.root()

    def resolve(self, body: InferenceBody, *, model_profile: str | None) -> Prompt | None | Awaitable[Prompt]:
        """Return the prompt, or what to await for it; None where the body has none."""
        salt = body.cache_salt.encode("utf-8", "surrogatepass") if body.cache_salt else b""
        if body.kind == "token_ids":
            return CachedPrompt(self._cache, body.nodes, body.words, salt=salt)
        if body.kind == "none":
            return None
        return byte_prompt(self._cache, self._bytes_root, body, salt, None)
