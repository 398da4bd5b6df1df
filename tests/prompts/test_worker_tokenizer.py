"""What a worker is asked, and what becomes of its answers."""

import asyncio
import json
from typing import Any

import pytest

from kvrouter.blocks import token_bytes
from kvrouter.errors import NoWorkerError, WireError
from kvrouter.service.prompts import PrefixCache, RequestReader, WorkerLimits
from kvrouter.service.prompts.conversation import UnreadableConversationError
from kvrouter.service.prompts.worker_tokenizer import WorkerTokenizeError, WorkerTokenizer, tokenize_request

_MESSAGES = [{"role": "user", "content": "hé"}]
_TOOLS = [{"type": "function", "function": {"name": "f"}}]


def _request(path: str, body: dict[str, Any]) -> Any:
    read = RequestReader(PrefixCache(0)).read(path, json.dumps(body).encode())
    return json.loads(tokenize_request("llama", read))


class Worker:
    """Answers /tokenize as it is told to."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str | None, str, bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, model: str | None, path: str, payload: bytes) -> bytes:
        """Give the next answer, or raise it."""
        self.asked.append((model, path, payload))
        await self.gate.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def _tokenizer(worker: Worker, clock: Clock | None = None, **limits: Any) -> WorkerTokenizer:
    return WorkerTokenizer("llama", worker, WorkerLimits(**limits), clock=clock or Clock())


def _refusal(tokenizer: WorkerTokenizer) -> str | None:
    return tokenizer.refusal


def test_a_text_is_asked_for_with_special_tokens() -> None:
    """As completions have them; a body may say otherwise."""
    assert _request("/v1/completions", {"prompt": "hé"}) == {
        "model": "llama",
        "prompt": "hé",
        "add_special_tokens": True,
    }
    assert _request("/v1/completions", {"prompt": "x", "add_special_tokens": False})["add_special_tokens"] is False


def test_a_conversation_is_asked_for_as_it_was_sent() -> None:
    """Messages and tools word for word; what vLLM adds to the template's options is added."""
    asked = _request(
        "/v1/chat/completions",
        {
            "messages": _MESSAGES,
            "tools": _TOOLS,
            "chat_template": "mine",
            "chat_template_kwargs": {"x": 1},
            "documents": [{"text": "d"}],
            "reasoning_effort": "low",
            "temperature": 0.1,
        },
    )

    assert asked == {
        "model": "llama",
        "messages": _MESSAGES,
        "tools": _TOOLS,
        "chat_template": "mine",
        "chat_template_kwargs": {
            "x": 1,
            "documents": [{"text": "d"}],
            "reasoning_effort": "low",
            "enable_thinking": True,
        },
        "add_special_tokens": False,
        "add_generation_prompt": True,
    }


def test_a_conversation_left_open_has_no_generation_prompt() -> None:
    """VLLM refuses both at once."""
    asked = _request("/v1/chat/completions", {"messages": _MESSAGES, "continue_final_message": True})

    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)


def test_the_messages_keep_their_bytes() -> None:
    """Numbers, escapes and spaces: nothing is written anew."""
    messages = b'[ {"role":"user", "content":"\\u00e9 \\/", "x": 1.50e3} ]'
    body = RequestReader(PrefixCache(0)).read("/v1/chat/completions", b'{"messages": ' + messages + b"}")

    assert messages in tokenize_request(None, body)


def test_responses_are_asked_for_as_a_conversation() -> None:
    """What depends on an earlier response cannot be."""
    body = {"input": "hi", "instructions": "be brief", "tools": [{"type": "function", "name": "f"}]}
    asked = _request("/v1/responses", body)

    assert asked["tools"] == [{"type": "function", "function": {"type": "function", "name": "f"}}]
    assert asked["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    with pytest.raises(UnreadableConversationError):
        _request("/v1/responses", {"input": "hi", "previous_response_id": "r"})


def test_the_tokens_of_the_answer_are_the_prompt() -> None:
    """Other fields of the answer are ignored."""
    worker = Worker({"count": 3, "max_model_len": 10, "tokens": [1, 2, 3], "token_strs": None})

    assert asyncio.run(_tokenizer(worker).tokenize(b"{}")) == token_bytes([1, 2, 3])
    assert worker.asked == [("llama", "/tokenize", b"{}")]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (NoWorkerError("none"), "no_worker"),
        (WireError("no good answer"), "worker_failed"),
        (ConnectionResetError(), "worker_failed"),
        (TimeoutError(), "worker_timeout"),
        (b"<html>not found</html>", "worker_answer"),
        ({"error": {"message": "no"}}, "worker_answer"),
        ({"tokens": "abc"}, "worker_answer"),
        ({"tokens": [1.5]}, "worker_answer"),
        ({"tokens": [-1]}, "worker_answer"),
        ([1, 2], "worker_answer"),
        (b"\xff", "worker_answer"),
        (b"[" * 100_000, "worker_answer"),
        (b'{"x": ' + b"[" * 100_000, "worker_answer"),
    ],
)
def test_what_is_no_answer_is_one_error(answer: Any, reason: str) -> None:
    """With a reason that can be counted."""
    with pytest.raises(WorkerTokenizeError) as caught:
        asyncio.run(_tokenizer(Worker(answer)).tokenize(b"{}"))

    assert caught.value.reason == reason


def test_a_slow_worker_is_not_waited_for() -> None:
    """The request goes on without tokens."""

    async def scenario() -> None:
        worker = Worker({"tokens": [1]})
        worker.gate.clear()
        with pytest.raises(WorkerTokenizeError, match="worker_timeout"):
            await _tokenizer(worker, timeout_seconds=0.01).tokenize(b"{}")

    asyncio.run(scenario())


def test_a_worker_that_fails_is_left_alone_for_a_while() -> None:
    """Each failure would cost a client its time."""
    clock, worker = Clock(), Worker(OSError(), OSError(), {"tokens": [1]}, OSError())
    tokenizer = _tokenizer(worker, clock, failures_max=2, pause_seconds=5.0)

    for _ in range(2):
        assert _refusal(tokenizer) is None
        with pytest.raises(WorkerTokenizeError):
            asyncio.run(tokenizer.tokenize(b"{}"))
    assert _refusal(tokenizer) == "worker_paused"

    clock.now += 5.0
    assert _refusal(tokenizer) is None
    asyncio.run(tokenizer.tokenize(b"{}"))
    with pytest.raises(WorkerTokenizeError):
        asyncio.run(tokenizer.tokenize(b"{}"))
    assert _refusal(tokenizer) is None


def test_that_there_is_no_worker_is_nobodys_failure() -> None:
    """As soon as one is there it is asked."""
    tokenizer = _tokenizer(Worker(NoWorkerError("none")), failures_max=1)

    with pytest.raises(WorkerTokenizeError):
        asyncio.run(tokenizer.tokenize(b"{}"))

    assert _refusal(tokenizer) is None


def test_only_so_many_are_asked_at_once() -> None:
    """And whoever gives up makes room."""

    async def scenario() -> None:
        worker = Worker({"tokens": [1]})
        worker.gate.clear()
        tokenizer = _tokenizer(worker, requests_max=2)
        tasks = [asyncio.create_task(tokenizer.tokenize(b"{}")) for _ in range(2)]
        await asyncio.sleep(0)
        assert _refusal(tokenizer) == "worker_busy"
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        assert _refusal(tokenizer) is None
        worker.gate.set()
        assert await tasks[1] == token_bytes([1])

    asyncio.run(scenario())
