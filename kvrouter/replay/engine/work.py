"""What a client asks for: OpenAI request bodies, read into prompts of token ids and limits.

Fields that change nothing for a simulated model (temperature, penalties, tools, …) are accepted and ignored.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from kvrouter.errors import RequestError
from kvrouter.replay.engine.cache import Namespace
from kvrouter.replay.engine.options import EngineOptions
from kvrouter.replay.engine.tokenizer import Tokenizer

__all__ = ["Prompt", "Work", "WorkReader"]

_COMPLETION_TOKENS = 16
"""OpenAI's default of `max_tokens` for /v1/completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt and the answer that it will get."""

    tokens: array[int]
    output_tokens: int
    finish_reason: str
    words: random.Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One request: its prompts, where they run, and how the answer is to be written."""

    model: str
    prompts: tuple[Prompt, ...]
    namespace: Namespace
    stream: bool = False
    include_usage: bool = False
    return_token_ids: bool = False
    base64: bool = False


class WorkReader:
    """Reads bodies for one engine. Every refusal is a `RequestError` that names the field."""

    def __init__(self, options: EngineOptions, tokenizer: Tokenizer) -> None:
        self._options, self._tokenizer = options, tokenizer

    def completion(self, body: Mapping[str, Any]) -> Work:
        """Read POST /v1/completions: text, token ids, or a list of either."""
        limit = _optional_int(body, "max_tokens", at_least=0)
        prompts = self._prompts(body.get("prompt"), "prompt")
        return self._work(body, prompts, _COMPLETION_TOKENS if limit is None else limit)

    def chat(self, body: Mapping[str, Any]) -> Work:
        """Read POST /v1/chat/completions."""
        limit = _optional_int(body, "max_completion_tokens", at_least=1)
        limit = _optional_int(body, "max_tokens", at_least=1) if limit is None else limit
        return self._work(body, [self.chat_tokens(body)], limit)

    def response(self, body: Mapping[str, Any]) -> Work:
        """Read POST /v1/responses: `input` is a text or a list of messages, `instructions` come before it."""
        given = body.get("input")
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if body.get("instructions"):
            messages = [{"role": "system", "content": body["instructions"]}, *(messages or ())]
        tokens = self._tokenizer.encode(self._tokenizer.chat(_messages(messages, "input")))
        return self._work(body, [tokens], _optional_int(body, "max_output_tokens", at_least=1))

    def embedding(self, body: Mapping[str, Any]) -> Work:
        """Read POST /v1/embeddings."""
        return self._work(body, self._prompts(body.get("input"), "input"), 0)

    def tokenize(self, body: Mapping[str, Any]) -> array[int]:
        """Read POST /tokenize: `prompt`, or `messages` with the chat template applied."""
        if "messages" in body:
            return self.chat_tokens(body)
        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            raise RequestError("prompt must be a text", param="prompt")
        return self._tokenizer.encode(prompt)

    def chat_tokens(self, body: Mapping[str, Any]) -> array[int]:
        """Return the tokens of `messages` under the chat template."""
        generation = body.get("add_generation_prompt", True) is not False
        messages = _messages(body.get("messages"), "messages")
        return self._tokenizer.encode(self._tokenizer.chat(messages, add_generation_prompt=generation))

    def _prompts(self, given: object, param: str) -> list[array[int]]:
        match given:
            case str():
                return [self._tokenizer.encode(given)]
            case [int(), *_]:
                return [_tokens(given, param)]
            case [str() | [int(), *_], *_]:
                return [self._tokenizer.encode(one) if isinstance(one, str) else _tokens(one, param) for one in given]
        raise RequestError(f"{param} must be a text, a list of token ids, or a list of either", param=param)

    def _work(self, body: Mapping[str, Any], prompts: Sequence[array[int]], limit: int | None) -> Work:
        if body.get("n", 1) not in (1, None):
            raise RequestError("this engine gives one choice for each prompt; n must be 1", param="n")
        model = body.get("model") or self._options.model
        adapter = self._adapter(model)
        stream_options = body.get("stream_options") or {}
        return Work(
            model=model,
            prompts=tuple(self._prompt(body, tokens, limit, model) for tokens in prompts),
            namespace=Namespace(
                lora_id=adapter, lora_name=model if adapter is not None else None, salt=_salt(body.get("cache_salt"))
            ),
            stream=bool(body.get("stream")),
            include_usage=bool(stream_options.get("include_usage")),
            return_token_ids=bool(body.get("return_token_ids")),
            base64=body.get("encoding_format") == "base64",
        )

    def _adapter(self, model: object) -> int | None:
        if model == self._options.model:
            return None
        if model in self._options.adapters:
            return 1 + self._options.adapters.index(str(model))
        raise RequestError(
            f"The model `{model}` does not exist.", status=404, kind="NotFoundError", param="model", code="404"
        )

    def _prompt(self, body: Mapping[str, Any], tokens: array[int], limit: int | None, model: str) -> Prompt:
        if not tokens:
            raise RequestError("the prompt is empty", param="prompt")
        allowed = self._room(tokens, limit)
        words = random.Random(_digest(tokens, model, self._options.seed, body.get("seed")))
        natural = max(words.randint(1, 2 * self._options.output_tokens), _optional_int(body, "min_tokens") or 0)
        ends = natural < allowed and not body.get("ignore_eos")
        return Prompt(
            tokens=tokens,
            output_tokens=natural if ends else allowed,
            finish_reason="stop" if ends else "length",
            words=words,
        )

    def _room(self, tokens: array[int], limit: int | None) -> int:
        """Return how many tokens the answer may have; a limit of 0 asks for none (an embedding)."""
        longest = self._options.tokens_max
        wanted = 1 if limit is None else limit
        if len(tokens) + wanted > longest:
            raise RequestError(
                f"This model's maximum context length is {longest} tokens. However, you requested "
                f"{len(tokens) + wanted} tokens ({len(tokens)} in the prompt, {wanted} for the answer).",
                param="prompt",
            )
        return longest - len(tokens) if limit is None else limit


def _digest(tokens: array[int], model: str, seed: int, request_seed: object) -> int:
    digest = blake2b(tokens.tobytes(), digest_size=8)
    digest.update(f"{model}/{seed}/{request_seed}".encode())
    return int.from_bytes(digest.digest(), "big")


def _tokens(given: object, param: str) -> array[int]:
    try:
        return array("I", given)  # type: ignore[call-overload,no-any-return]
    except (TypeError, OverflowError) as error:
        raise RequestError(f"{param} holds something that is not a token id: {error}", param=param) from error


def _messages(given: object, param: str) -> list[tuple[str, str]]:
    if not isinstance(given, list) or not given or not all(isinstance(message, dict) for message in given):
        raise RequestError(f"{param} must be a list of messages that is not empty", param=param)
    return [(str(message.get("role", "user")), _content(message.get("content"))) for message in given]


def _content(content: object) -> str:
    match content:
        case None:
            return ""
        case str():
            return content
        case [*parts]:
            return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in parts)
    raise RequestError("content must be a text or a list of parts", param="messages")


def _salt(given: object) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str) or not given:
        raise RequestError("cache_salt must be a text that is not empty", param="cache_salt")
    return given


def _optional_int(body: Mapping[str, Any], name: str, *, at_least: int = 0) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise RequestError(f"{name} must be at least {at_least}, got {value!r}", param=name)
    return value
