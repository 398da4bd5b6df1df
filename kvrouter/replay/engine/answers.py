"""What the engine answers: OpenAI's shapes with vLLM's additions. Plain dictionaries; nothing is sent here."""

from __future__ import annotations

import base64
import struct
import time
from array import array
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

__all__ = ["Answer", "ChatAnswer", "CompletionAnswer", "ResponseAnswer", "embeddings", "sse", "usage"]

_DIMENSIONS = 16
_DONE = b"data: [DONE]\n\n"


class Answer(Protocol):
    """Writes one kind of answer, in pieces or as a whole."""

    def begin(self) -> bytes:
        """Return what a stream starts with, before any token."""
        ...

    def token(self, index: int, text: str, token: int, finish_reason: str | None) -> bytes:
        """Return the chunk of one token of choice `index`; the last one says why it ends."""
        ...

    def end(self, usage: dict[str, Any] | None) -> bytes:
        """Return what a stream ends with."""
        ...

    def whole(self, choices: Sequence[tuple[str, array[int], str]], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the answer that is not streamed; `choices` are (text, tokens, finish reason)."""
        ...


def sse(value: object, event: str = "") -> bytes:
    """Return one server-sent event."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + msgspec.json.encode(value) + b"\n\n"


def usage(*, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Return OpenAI's usage, which is how an engine says what it found in its cache."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


class CompletionAnswer:
    """/v1/completions."""

    def __init__(self, request_id: str, model: str, *, return_token_ids: bool) -> None:
        self._common = {"id": f"cmpl-{request_id}", "object": "text_completion", "created": _now(), "model": model}
        self._return_token_ids = return_token_ids

    def begin(self) -> bytes:
        """Return what a stream starts with."""
        return b""

    def token(self, index: int, text: str, token: int, finish_reason: str | None) -> bytes:
        """Return the chunk of one token."""
        return sse({**self._common, "choices": [self._choice(index, text, [token], finish_reason)]})

    def end(self, usage: dict[str, Any] | None) -> bytes:
        """Return what a stream ends with."""
        return (sse({**self._common, "choices": [], "usage": usage}) if usage else b"") + _DONE

    def whole(self, choices: Sequence[tuple[str, array[int], str]], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the answer in one piece."""
        written = [self._choice(index, text, tokens, reason) for index, (text, tokens, reason) in enumerate(choices)]
        return {**self._common, "choices": written, "usage": usage}

    def _choice(self, index: int, text: str, tokens: Sequence[int], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
        return {**choice, "token_ids": list(tokens)} if self._return_token_ids else choice


class ChatAnswer:
    """/v1/chat/completions."""

    def __init__(self, request_id: str, model: str, *, return_token_ids: bool) -> None:
        self._id = {"id": f"chatcmpl-{request_id}"}
        self._common = {"created": _now(), "model": model}
        self._return_token_ids = return_token_ids

    def begin(self) -> bytes:
        """Return what a stream starts with."""
        return self._chunk([self._choice(0, {"role": "assistant", "content": ""}, None)])

    def token(self, index: int, text: str, token: int, finish_reason: str | None) -> bytes:
        """Return the chunk of one token."""
        choice = self._choice(index, {"content": text}, finish_reason)
        return self._chunk([{**choice, "token_ids": [token]} if self._return_token_ids else choice])

    def end(self, usage: dict[str, Any] | None) -> bytes:
        """Return what a stream ends with."""
        return (self._chunk([], usage=usage) if usage else b"") + _DONE

    def whole(self, choices: Sequence[tuple[str, array[int], str]], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the answer in one piece."""
        written = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
                "stop_reason": None,
                **({"token_ids": list(tokens)} if self._return_token_ids else {}),
            }
            for index, (text, tokens, reason) in enumerate(choices)
        ]
        return {**self._id, "object": "chat.completion", **self._common, "choices": written, "usage": usage}

    def _choice(self, index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def _chunk(self, choices: list[dict[str, Any]], **more: object) -> bytes:
        return sse({**self._id, "object": "chat.completion.chunk", **self._common, "choices": choices, **more})


class ResponseAnswer:
    """/v1/responses: one message of text, streamed as OpenAI's typed events."""

    def __init__(self, request_id: str, model: str) -> None:
        self._response = {"id": f"resp_{request_id}", "object": "response", "created_at": _now(), "model": model}
        self._item_id = f"msg_{request_id}"
        self._sequence = 0
        self._text: list[str] = []
        self._incomplete = False

    def begin(self) -> bytes:
        """Return what a stream starts with."""
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return (
            self._event("response.created", response=self._whole("in_progress", [], None))
            + self._event("response.output_item.added", output_index=0, item=self._item("", "in_progress"))
            + self._event("response.content_part.added", **place, part=_part(""))
        )

    def token(self, index: int, text: str, token: int, finish_reason: str | None) -> bytes:  # noqa: ARG002
        """Return the event of one token; its id is not shown here."""
        self._text.append(text)
        self._incomplete = finish_reason == "length"
        place = {"item_id": self._item_id, "output_index": index, "content_index": 0}
        return self._event("response.output_text.delta", **place, delta=text, logprobs=[])

    def end(self, usage: dict[str, Any] | None) -> bytes:
        """Return what a stream ends with."""
        text = "".join(self._text)
        status = "incomplete" if self._incomplete else "completed"
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        item = self._item(text, status)
        return (
            self._event("response.output_text.done", **place, text=text, logprobs=[])
            + self._event("response.content_part.done", **place, part=_part(text))
            + self._event("response.output_item.done", output_index=0, item=item)
            + self._event(f"response.{status}", response=self._whole(status, [item], usage))
        )

    def whole(self, choices: Sequence[tuple[str, array[int], str]], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the answer in one piece."""
        ((text, _tokens, reason),) = choices
        status = "incomplete" if reason == "length" else "completed"
        return self._whole(status, [self._item(text, status)], usage)

    def _whole(self, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            **self._response,
            "status": status,
            "incomplete_details": incomplete,
            "error": None,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage and _response_usage(usage),
        }

    def _item(self, text: str, status: str) -> dict[str, Any]:
        content = [_part(text)] if text else []
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _event(self, name: str, **fields: object) -> bytes:
        self._sequence += 1
        return sse({"type": name, "sequence_number": self._sequence - 1, **fields}, event=name)


def embeddings(model: str, prompts: Sequence[array[int]], usage: dict[str, Any], *, encoded: bool) -> dict[str, Any]:
    """Return the answer of /v1/embeddings: a short vector that depends on the tokens alone."""
    data = []
    for index, tokens in enumerate(prompts):
        vector = [((sum(tokens[at::_DIMENSIONS]) * 2_654_435_761) % 2000 - 1000) / 1000 for at in range(_DIMENSIONS)]
        value = base64.b64encode(struct.pack(f"<{_DIMENSIONS}f", *vector)).decode() if encoded else vector
        data.append({"object": "embedding", "index": index, "embedding": value})
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response_usage(usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": usage["prompt_tokens_details"],
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }


def _now() -> int:
    return int(time.time())
