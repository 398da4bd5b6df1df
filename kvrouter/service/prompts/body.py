"""What the router needs to know of an inference request, and nothing else of it.

An `InferenceBody` is read once by `RequestReader`; the bytes themselves go to the worker untouched. Fields that we do
not know are not looked at, so an engine's own fields and tomorrow's reach it as they were sent.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from kvrouter.service.prompts.prefix_cache import PrefixNode

__all__ = ["ChatFields", "InferenceBody", "PromptKind", "ResponsesFields"]

PromptKind: TypeAlias = Literal["token_ids", "text", "messages", "none"]

_NOTHING = msgspec.Raw()


class ModelField(msgspec.Struct, gc=False):
    """The one field that a path which we do not interpret may have."""

    model: str | None = None


class CommonFields(msgspec.Struct, gc=False):
    """Fields that every inference endpoint may carry."""

    model: str | None = None
    stream: bool | None = None
    max_tokens: int | float | None = None
    cache_salt: str | None = None
    priority: int | float | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | float | None = None
    # Who is asking; read where it is text, and otherwise left to the engine.
    session_id: Any = None
    prompt_cache_key: Any = None
    user: Any = None
    # vLLM's own arguments, one of which must not reach it.
    vllm_xargs: msgspec.Raw = _NOTHING


class ChatFields(CommonFields, gc=False):
    """`/v1/chat/completions`: what the chat template sees, still as it was sent."""

    messages: msgspec.Raw = _NOTHING
    tools: msgspec.Raw = _NOTHING
    documents: msgspec.Raw = _NOTHING
    chat_template: str | None = None
    chat_template_kwargs: msgspec.Raw = _NOTHING
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: str | None = None
    max_completion_tokens: int | float | None = None


class CompletionFields(CommonFields, gc=False):
    """`/v1/completions`."""

    prompt: str | list[Any] | None = None


class EmbeddingFields(CommonFields, gc=False):
    """`/v1/embeddings`; engines also take a conversation."""

    input: str | list[Any] | None = None
    messages: msgspec.Raw = _NOTHING


class ResponsesFields(CommonFields, gc=False):
    """`/v1/responses`."""

    input: msgspec.Raw = _NOTHING
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: msgspec.Raw = _NOTHING
    max_output_tokens: int | float | None = None


class InferenceBody(msgspec.Struct, eq=False, gc=False):
    """One request body, read."""

    kind: PromptKind
    model: str | None
    stream: bool = False
    cache_salt: str | None = None
    session: str | None = None
    """Who is asking: `session_id`, else `prompt_cache_key`, else `user`."""
    max_tokens: int | None = None
    priority: int = 0
    batch: int = 1
    """Prompts in the body; routing looks at the first one only."""
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    text: str = ""
    """The prompt, where it is one text."""
    nodes: Sequence[PrefixNode] = ()
    """The remembered beginning of a prompt given as token ids."""
    words: bytes = b""
    """The token ids after `nodes`, as little-endian 32-bit integers."""
    chat: ChatFields | ResponsesFields | None = None
    """What a conversation consists of, where the prompt is one."""
    has_engine_arguments: bool = False
    """Whether there are `vllm_xargs`."""
    user: str | None = None
    is_usual: bool = False
    """Whether it is one array of token ids, all in `words`, and nothing else decides what they mean."""
