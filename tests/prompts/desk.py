"""A reader and a resolver as a service has them, and conversations to put before them."""

import asyncio
import json
import random
from typing import Any

from kvrouter.blocks import Prompt
from kvrouter.service.prompts import PrefixCache, PromptResolver, RequestReader
from kvrouter.service.prompts.chat_template import ChatTemplate
from tests.prompts.models import CHATML
from tests.prompts.test_worker_tokenizer import Worker

__all__ = ["CHAT", "COMPLETIONS", "RESPONSES", "Desk", "chat", "rendered", "words_of"]

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
_MIB = 1024 * 1024


class Desk:
    """A reader and a resolver over one cache, as a service has them."""

    def __init__(self, *, cache_bytes: int = 16 * _MIB, worker: Worker | None = None, **options: Any) -> None:
        self.cache = PrefixCache(cache_bytes)
        self.reader = RequestReader(self.cache)
        self.resolver = PromptResolver(self.cache, ask_worker=worker, **options)

    def prompt(self, path: str, body: Any, *, model: str | None = "m") -> Prompt | None:
        """Resolve one body, waiting if need be."""
        return asyncio.run(self.later(path, body, model=model))

    async def later(self, path: str, body: Any, *, model: str | None = "m") -> Prompt | None:
        """The same within a loop."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        found = self.resolver.resolve(self.reader.read(path, data), model_profile=model)
        return found if found is None or isinstance(found, Prompt) else await found

    def tokens(self, path: str, body: Any, *, model: str | None = "m") -> list[int]:
        """The token ids of a body that has some, checked against their hashes."""
        prompt = self.prompt(path, body, model=model)
        assert prompt is not None
        words = bytes(prompt.token_ids)
        assert prompt.hash_list(16) == Prompt(words, salt=prompt.salt, lora=prompt.lora).hash_list(16)
        assert prompt.tokens == len(words) // 4
        return [int.from_bytes(words[at : at + 4], "little") for at in range(0, len(words), 4)]

    @property
    def fallbacks(self) -> dict[str, int]:
        """Reasons, and how often."""
        return self.resolver.statistics.fallbacks


def chat(*contents: str, **fields: Any) -> dict[str, Any]:
    """A body whose messages are these, user and assistant by turns."""
    roles = ["user", "assistant"]
    messages = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    return {"model": "m", "messages": messages, **fields}


def rendered(body: dict[str, Any], **options: Any) -> str:
    """The text of a body's messages."""
    return ChatTemplate(CHATML).render(body["messages"], **options)


def words_of(words: int, seed: int = 0) -> str:
    """A text of so many words."""
    return " ".join(
        random.Random(seed).choices(["alpha", "beta", "Hello", "world", "naïve", "12", "\n", "你好"], k=words)
    )
