"""Prompts without a tokenizer: the bytes of the request itself, four of them counted as one token.

Two requests that begin with the same bytes share a prefix, which is enough to send them to the same worker. The hashes
match each other and never a worker's events (four bytes of text are a number far above any vocabulary), so only what
this router has sent counts as cached: `Prompt.exact` is False.
"""

from kvrouter.service.prompts.body import ChatFields, InferenceBody, ResponsesFields
from kvrouter.service.prompts.prefix_cache import CachedPrompt, PrefixCache, PrefixNode

__all__ = ["byte_prompt"]

BYTES_MAX = 4 * 1024 * 1024
"""What is beyond counts neither for the prefix nor for the length; no engine has a longer context."""


def byte_prompt(
    cache: PrefixCache, root: PrefixNode, body: InferenceBody, salt: bytes, lora: str | None
) -> CachedPrompt:
    """Return the prompt of a text or a conversation, in bytes."""
    data = _canonical(body)[:BYTES_MAX]
    # The last, partial word is left out: it would change as the conversation grows.
    nodes, tail = cache.walk_words(root, data[: len(data) - len(data) % 4])
    return CachedPrompt(cache, nodes, tail, salt=salt, lora=lora, exact=False)


def _canonical(body: InferenceBody) -> bytes:
    """What a longer conversation repeats, in the order in which templates use it: tools, instructions, messages."""
    chat = body.chat
    if chat is None:
        return body.text.encode("utf-8", "surrogatepass")
    tools = bytes(memoryview(chat.tools))
    if isinstance(chat, ChatFields):
        return tools + _open_ended(chat.messages)
    return _responses(tools, chat)


def _responses(tools: bytes, chat: ResponsesFields) -> bytes:
    instructions = (chat.instructions or "").encode("utf-8", "surrogatepass")
    earlier = (chat.previous_response_id or "").encode("utf-8", "surrogatepass")
    return tools + instructions + earlier + _open_ended(chat.input)


def _open_ended(raw: object) -> bytes:
    """Return JSON without its closing bracket, where the next turn goes on."""
    return bytes(memoryview(raw))[:-1].rstrip()  # type: ignore[arg-type]
