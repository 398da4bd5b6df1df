"""No request fails for want of tokens: what cannot be tokenised is routed by its bytes, and counted."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvrouter.errors import NoWorkerError, RequestError
from kvrouter.service.prompts import TextLimits, WorkerLimits
from tests.prompts.desk import CHAT, COMPLETIONS, RESPONSES, Desk, chat, words_of
from tests.prompts.models import CHATML, save_model, tokenizer_of
from tests.prompts.test_worker_tokenizer import Worker


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (CHAT, {"messages": [{"role": "user", "content": 7}]}, "malformed_messages"),
        (CHAT, {"messages": ["hi"]}, "malformed_messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "content_part"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "tools": [7]}, "malformed_tools"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "chat_template": "{{ 1 }}"}, "request_template"),
        (CHAT, {"messages": [{"role": "refused", "content": "x"}]}, "template_error"),
        (RESPONSES, {"input": "x", "previous_response_id": "r"}, "previous_response"),
        (RESPONSES, {"input": [{"type": "computer_call"}]}, "responses_item"),
        (RESPONSES, {"input": "x", "tools": 7}, "malformed_tools"),
    ],
)
def test_what_cannot_be_tokenised_falls_back(tmp_path: Path, path: str, body: dict[str, Any], reason: str) -> None:
    """The request is routed by its bytes, and the reason is counted."""
    desk = Desk()
    source = "{% if messages[0].role == 'refused' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    desk.resolver.add_model("m", tokenizer=save_model(tmp_path, tokenizer_of("chatml"), chat_template=source))

    prompt = desk.prompt(path, {"model": "m", **body})

    assert prompt is not None
    assert not prompt.exact
    assert desk.fallbacks == {reason: 1}
    assert desk.resolver.counts()[f"fallback_{reason}"] == desk.resolver.statistics.byte_blocks == 1
    desk.resolver.close()


def test_half_characters_within_arguments_fall_back(tmp_path: Path) -> None:
    """JSON within JSON may hold what no text can."""
    desk = Desk()
    source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    desk.resolver.add_model("m", tokenizer=save_model(tmp_path, tokenizer_of("chatml"), chat_template=source))
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": "\\ud800"}'}}

    prompt = desk.prompt(CHAT, {"messages": [{"role": "assistant", "tool_calls": [call]}]})

    assert prompt is not None
    assert desk.fallbacks == {"tokenizer_error": 1}
    desk.resolver.close()


def test_deep_messages_are_refused_or_fall_back(desk: Desk) -> None:
    """Whether the reader or the resolver meets the depth first, it is never a crash."""
    refusals = set()
    for depth in range(600, 1100, 10):
        nested = b"[" * depth + b"]" * depth
        body = b'{"messages": [{"role": "user", "content": "x", "y": ' + nested + b"}]}"
        try:
            assert desk.prompt(CHAT, body) is not None
        except RequestError as error:
            refusals.add(error.message)

    assert refusals <= {"the request body is nested too deeply"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RESPONSES, b'{"input": "\xff"}'),
        (RESPONSES, b'{"input": "\\ud800"}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "\xff"}]}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "tools": ["\xff"]}'),
    ],
)
@pytest.mark.parametrize("mode", ["tokenizer", "worker"])
def test_bytes_that_are_no_text_are_refused_or_fall_back(folder: Path, path: str, body: bytes, mode: str) -> None:
    """Neither a tokenizer here nor one behind a worker turns them into a crash."""
    desk = Desk(worker=Worker({"tokens": [1, 2]}) if mode == "worker" else None)
    if mode == "tokenizer":
        desk.resolver.add_model("m", tokenizer=folder)

    with suppress(RequestError):
        assert desk.prompt(path, body) is not None
    desk.resolver.close()


@pytest.mark.parametrize(
    "limits", [TextLimits(new_characters_max=100), TextLimits(messages_bytes_max=100)], ids=["text", "messages"]
)
def test_too_much_text_falls_back(folder: Path, limits: TextLimits) -> None:
    """One client's novel must not hold up everyone else."""
    desk = Desk(text_limits=limits)
    desk.resolver.add_model("m", tokenizer=folder)

    prompt = desk.prompt(CHAT, chat(words_of(100)))

    assert prompt is not None
    assert desk.fallbacks == {"too_long": 1}
    desk.resolver.close()


def test_a_full_queue_falls_back(folder: Path) -> None:
    """Waiting work is bounded; the requests go on without tokens."""

    async def scenario() -> None:
        desk = Desk(text_limits=TextLimits(inline_characters_max=0, jobs_max=1))
        desk.resolver.add_model("m", tokenizer=folder)
        prompts = await asyncio.gather(*(desk.later(CHAT, chat(words_of(50, seed))) for seed in range(5)))

        assert sorted(prompt.exact for prompt in prompts if prompt is not None) == [False] * 4 + [True]
        assert desk.fallbacks == {"thread_busy": 4}
        assert desk.resolver.waiting == 0
        desk.resolver.close()

    asyncio.run(scenario())


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "name"]), inner),
    ),
    max_leaves=12,
)


@given(messages=st.one_of(_JSON, st.lists(_JSON)), tools=_JSON, options=_JSON, documents=_JSON)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_no_conversation_ever_fails(desk: Desk, messages: Any, tools: Any, options: Any, documents: Any) -> None:
    """Any JSON in place of messages is a prompt, none, or a clear refusal of the reader."""
    body = {"tools": tools, "chat_template_kwargs": options, "documents": documents}
    if isinstance(messages, list):
        assert desk.prompt(CHAT, {**body, "messages": messages}) is not None
        assert desk.prompt(RESPONSES, {**body, "input": messages}) is not None
    else:
        assert desk.prompt(CHAT, body) is None


def test_a_model_without_a_tokenizer_is_tokenised_by_its_worker() -> None:
    """Once for each prompt; the same prompt again is known."""
    worker = Worker({"tokens": list(range(3000)), "count": 3000})
    desk = Desk(worker=worker)

    for _ in range(3):
        assert desk.tokens(CHAT, chat("hi"), model="other") == list(range(3000))

    assert desk.resolver.mode("other") == "worker"
    assert [asked[:2] for asked in worker.asked] == [("other", "/tokenize")]
    assert desk.resolver.statistics.worker == 3
    desk.resolver.close()


@pytest.mark.parametrize("answer", [NoWorkerError("none"), OSError(), TimeoutError(), b"not json", {"tokens": None}])
def test_a_worker_that_cannot_tell_is_done_without(answer: Any) -> None:
    """The request is routed by its bytes, and is not remembered as such."""
    worker = Worker(answer, {"tokens": [1, 2, 3]})
    desk = Desk(worker=worker)

    first, second = desk.prompt(CHAT, chat("hi")), desk.prompt(CHAT, chat("hi"))

    assert first is not None
    assert second is not None
    assert (first.exact, second.exact, second.tokens) == (False, True, 3)
    assert sum(desk.fallbacks.values()) == 1
    desk.resolver.close()


def test_a_failing_worker_is_not_asked_each_time() -> None:
    """After some failures nobody waits for it, for a while."""
    worker = Worker(OSError())
    desk = Desk(worker=worker, worker_limits=WorkerLimits(failures_max=2), clock=lambda: 0.0)

    for number in range(5):
        assert desk.prompt(COMPLETIONS, {"prompt": f"text {number}"}) is not None

    assert len(worker.asked) == 2
    assert desk.fallbacks == {"worker_failed": 2, "worker_paused": 3}
    desk.resolver.close()


def test_invented_models_do_not_fill_the_memory() -> None:
    """Names come from clients; the ones that nobody waits for make room."""
    worker = Worker(NoWorkerError("none"))
    desk = Desk(worker=worker, worker_limits=WorkerLimits(models_max=3))
    for number in range(10):
        assert desk.prompt(COMPLETIONS, {"prompt": "x"}, model=f"invented {number}") is not None
    worker.answers = [{"tokens": [1, 2]}]

    assert desk.tokens(COMPLETIONS, {"prompt": "x"}, model="real") == [1, 2]
    assert len(desk.resolver._workers) == 3
    desk.resolver.close()


def test_more_models_than_may_be_asked_at_once_fall_back() -> None:
    """Those that are being waited for are not pushed out."""

    async def scenario() -> None:
        worker = Worker({"tokens": [1, 2]})
        worker.gate.clear()
        desk = Desk(worker=worker, worker_limits=WorkerLimits(models_max=1, requests_max=1))
        waiting = asyncio.create_task(desk.later(COMPLETIONS, {"prompt": "x"}, model="one"))
        await asyncio.sleep(0)
        other = await desk.later(COMPLETIONS, {"prompt": "x"}, model="two")
        more = await desk.later(COMPLETIONS, {"prompt": "y"}, model="one")
        worker.gate.set()
        first = await waiting

        assert [prompt.exact for prompt in (other, more, first) if prompt is not None] == [False, False, True]
        assert desk.fallbacks == {"worker_models": 1, "worker_busy": 1}
        desk.resolver.close()

    asyncio.run(scenario())
