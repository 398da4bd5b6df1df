"""The measuring client, against an engine that does what it should and one that does not."""

import asyncio

import pytest

from kvrouter.demo.client import Answer, AnswerError, StreamingClient
from tests.replay.serving import engine, run


async def ask(client: StreamingClient, *, model: str = "simulated", tokens: int = 5) -> Answer:
    """Send one prompt."""
    return await client.complete(list(range(40)), model=model, answer_tokens=tokens, session="s")


def test_an_answer_has_its_tokens_and_its_usage() -> None:
    """And times in the right order."""

    async def work() -> None:
        async with engine("--decode-seconds", "0.002") as (_, simulated):
            client = StreamingClient("127.0.0.1", simulated.port, timeout_seconds=60)
            first, again = await ask(client), await ask(client)
            client.close()

        assert (len(first.tokens), first.prompt_tokens, first.cached_tokens) == (5, 40, 0)
        assert (again.tokens, again.cached_tokens) == (first.tokens, 32)
        assert 0 < first.first_token_seconds < first.seconds

    run(work)


def test_connections_are_kept_and_used_again() -> None:
    """As many as requests overlap."""

    async def work() -> None:
        async with engine() as (_, simulated):
            client = StreamingClient("127.0.0.1", simulated.port, timeout_seconds=60)
            await asyncio.gather(*(ask(client) for _ in range(3)))
            kept = len(client._idle)
            await ask(client)

            assert (kept, len(client._idle)) == (3, 3)
            client.close()

    run(work)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "error", "status": 503}, "HTTP 503: .*a fault was asked for"),
        ({"kind": "garbage"}, "not HTTP"),
        ({"kind": "cut", "after_chunks": 2}, "closed before the end"),
        ({"kind": "stall"}, "within 0.3 seconds"),
    ],
)
def test_what_goes_wrong_is_said(fault: dict[str, object], words: str) -> None:
    """One clear error for each way to fail."""

    async def work() -> None:
        async with engine("--decode-seconds", "0.002") as (http, simulated):
            await http.post("/fault", json=fault)
            patience = 0.3 if fault["kind"] == "stall" else 60
            client = StreamingClient("127.0.0.1", simulated.port, timeout_seconds=patience)
            with pytest.raises(AnswerError, match=words):
                await ask(client)
            client.close()

    run(work)


def test_a_refusal_is_told_with_its_reason() -> None:
    """So that a wrong set-up explains itself."""

    async def work() -> None:
        async with engine() as (_, simulated):
            client = StreamingClient("127.0.0.1", simulated.port, timeout_seconds=60)
            with pytest.raises(AnswerError, match=r"HTTP 404: .*does not exist"):
                await ask(client, model="other")
            client.close()

    run(work)


def test_nobody_there_is_an_error_too() -> None:
    """With the address."""

    async def work() -> None:
        async with engine() as (_, simulated):
            port = simulated.port
        client = StreamingClient("127.0.0.1", port, timeout_seconds=60)
        with pytest.raises(AnswerError, match=rf"cannot connect to 127\.0\.0\.1:{port}"):
            await ask(client)

    run(work)
