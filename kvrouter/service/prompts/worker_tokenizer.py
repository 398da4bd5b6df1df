"""Asks a worker how it tokenises a prompt: vLLM's `POST /tokenize`, which SGLang has too for plain text.

The request is put together from the bytes that the client sent, so the worker sees the same messages in both
requests. A worker that fails or is slow is left alone for a while; the caller then does without tokens. Which worker
is asked, and how, is the service's business: it gives a function.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from kvrouter.errors import KvrouterError, NoWorkerError, RequestError
from kvrouter.service.prompts.body import ChatFields, InferenceBody, ResponsesFields
from kvrouter.service.prompts.conversation import UnreadableConversationError, responses_messages, responses_tools
from kvrouter.service.prompts.token_array import token_words

__all__ = ["AskWorker", "WorkerLimits", "WorkerTokenizeError", "WorkerTokenizer", "tokenize_request"]

AskWorker: TypeAlias = Callable[[str | None, str, bytes], Awaitable[bytes]]
"""(model, path, JSON body) -> JSON answer of some worker that serves the model.

Raises NoWorkerError where there is none; another KvrouterError, OSError or TimeoutError where it gives no good answer.
"""

TOKENIZE_PATH = "/tokenize"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """Bounds on what is asked of workers, per model."""

    timeout_seconds: float = 2.0
    """Time for one answer."""
    requests_max: int = 64
    """Questions at a time."""
    failures_max: int = 3
    """Failures in a row after which nobody is asked for `pause_seconds`."""
    pause_seconds: float = 5.0
    models_max: int = 256
    """Models whose workers are asked; the names come from clients."""


class WorkerTokenizeError(KvrouterError):
    """No tokens from a worker; `reason` is a label for a counter."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class _Answer(msgspec.Struct, gc=False):
    tokens: list[int]


class WorkerTokenizer:
    """Asks the workers of one model, boundedly many times at once."""

    def __init__(self, model: str | None, ask: AskWorker, limits: WorkerLimits, *, clock: Callable[[], float]) -> None:
        self._model, self._ask, self._limits, self._clock = model, ask, limits, clock
        self.running = self._failures = 0
        self._paused_until = float("-inf")

    @property
    def refusal(self) -> str | None:
        """Why no worker would be asked now; None: one would."""
        if self.running >= self._limits.requests_max:
            return "worker_busy"
        if self._clock() < self._paused_until:
            return "worker_paused"
        return None

    async def tokenize(self, request: bytes) -> bytes:
        """Return the token ids as little-endian 32-bit integers.

        Raises:
            WorkerTokenizeError: there are none.
        """
        self.running += 1
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                answer = await self._ask(self._model, TOKENIZE_PATH, request)
        except TimeoutError:
            self._failed()
            raise WorkerTokenizeError("worker_timeout") from None
        except NoWorkerError as error:
            # Nobody has failed; the next worker may be there any moment.
            raise WorkerTokenizeError("no_worker", str(error)) from None
        except (KvrouterError, OSError) as error:
            self._failed()
            raise WorkerTokenizeError("worker_failed", str(error)) from None
        finally:
            self.running -= 1
        try:
            words = token_words(_decode_answer(answer).tokens, "tokens")
        except (msgspec.MsgspecError, RequestError, RecursionError, ValueError) as error:
            self._failed()
            raise WorkerTokenizeError("worker_answer", str(error)) from None
        self._failures = 0
        return words

    def _failed(self) -> None:
        self._failures += 1
        if self._failures >= self._limits.failures_max:
            self._failures = 0
            self._paused_until = self._clock() + self._limits.pause_seconds


_decode_answer = msgspec.json.Decoder(_Answer).decode
_encode = msgspec.json.encode


def tokenize_request(model: str | None, body: InferenceBody) -> bytes:
    """Return the body of `/tokenize` that gives the tokens which `body` will have.

    Raises:
        UnreadableConversationError: it cannot be asked.
    """
    request: dict[str, Any] = {"model": model} if model else {}
    chat = body.chat
    if chat is None:
        request["prompt"] = body.text
        request["add_special_tokens"] = body.add_special_tokens is not False
    elif isinstance(chat, ChatFields):
        _add_chat(request, chat)
    else:
        _add_responses(request, chat)
    return _encode(request)


def _add_chat(request: dict[str, Any], chat: ChatFields) -> None:
    request["messages"] = chat.messages
    request["add_special_tokens"] = chat.add_special_tokens is True
    if chat.continue_final_message:
        request["continue_final_message"] = True
    request["add_generation_prompt"] = chat.add_generation_prompt is not False and not chat.continue_final_message
    if chat.chat_template is not None:
        request["chat_template"] = chat.chat_template
    if memoryview(chat.tools).nbytes:
        request["tools"] = chat.tools
    options = template_options(chat)
    if options:
        request["chat_template_kwargs"] = options


def _add_responses(request: dict[str, Any], chat: ResponsesFields) -> None:
    if chat.previous_response_id is not None:
        raise UnreadableConversationError("previous_response")
    request["messages"] = responses_messages(decoded(chat.input), chat.instructions)
    tools = responses_tools(decoded(chat.tools))
    if tools:
        request["tools"] = tools
    request["add_special_tokens"] = False
    request["add_generation_prompt"] = True


def template_options(chat: ChatFields) -> dict[str, Any]:
    """Return what vLLM hands to the template beside messages and tools: `chat_template_kwargs` and three fields."""
    given = decoded(chat.chat_template_kwargs)
    options: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
    if chat.reasoning_effort is not None:
        options.setdefault("enable_thinking", chat.reasoning_effort != "none")
        options["reasoning_effort"] = chat.reasoning_effort
    documents = decoded(chat.documents)
    if documents is not None:
        options["documents"] = documents
    return options


def decoded(raw: msgspec.Raw) -> Any:
    """Return a raw field's value; None where it was not given.

    Raises:
        UnreadableConversationError: it is nested too deeply, or its text is not Unicode.
    """
    if not memoryview(raw).nbytes:
        return None
    try:
        return _decode_any(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnreadableConversationError("malformed_messages") from None


_decode_any = msgspec.json.Decoder().decode
