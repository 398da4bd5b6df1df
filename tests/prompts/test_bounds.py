"""Many requests at once, little memory, no cache: every prompt is still its own."""

import asyncio
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from kvrouter.blocks import Prompt, token_bytes
from kvrouter.errors import SettingsError
from kvrouter.service.prompts import TextLimits
from tests.prompts.desk import CHAT, COMPLETIONS, Desk, chat, rendered, words_of
from tests.prompts.test_worker_tokenizer import Worker


def test_many_at_once_each_get_their_own(folder: Path, plain: Tokenizer) -> None:
    """Shared beginnings, in the thread and on the loop, some of them leaving."""

    async def scenario() -> None:
        desk = Desk(text_limits=TextLimits(inline_characters_max=50))
        desk.resolver.add_model("m", tokenizer=folder)
        shared = words_of(300)
        bodies = [chat(shared, "yes", words_of(number % 7, number)) for number in range(40)]
        tasks = [asyncio.create_task(desk.later(CHAT, body)) for body in bodies]
        await asyncio.sleep(0)
        for task in tasks[::5]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)

        for number, (body, prompt) in enumerate(zip(bodies, found, strict=True)):
            if number % 5 == 0 and not isinstance(prompt, Prompt):
                assert isinstance(prompt, asyncio.CancelledError)
                continue
            assert isinstance(prompt, Prompt)
            assert prompt.token_ids == token_bytes(plain.encode(rendered(body)).ids)
        assert desk.resolver.waiting == 0
        desk.resolver.close()

    asyncio.run(scenario())


def test_memory_is_bounded_and_every_answer_right(folder: Path, plain: Tokenizer) -> None:
    """A cache that is far too small changes speed only."""
    desk = Desk(cache_bytes=30_000)
    desk.resolver.add_model("m", tokenizer=folder)
    for number in range(60):
        body = chat(words_of(60, number % 9), "ok", words_of(60, number))
        assert desk.tokens(CHAT, body) == plain.encode(rendered(body)).ids
        assert desk.cache.bytes_used <= 30_000

    assert desk.cache.generations > 3
    desk.resolver.close()


@pytest.mark.parametrize("cache_bytes", [0, 1000])
def test_everything_works_without_a_cache(folder: Path, plain: Tokenizer, cache_bytes: int) -> None:
    """It is an optimisation."""
    desk = Desk(cache_bytes=cache_bytes, worker=Worker({"tokens": [1, 2]}))
    desk.resolver.add_model("m", tokenizer=folder)
    body = chat(words_of(500), "ok", "next")

    for _ in range(2):
        assert desk.tokens(CHAT, body) == plain.encode(rendered(body)).ids
        assert desk.tokens(COMPLETIONS, {"prompt": list(range(3000))}) == list(range(3000))
        assert desk.tokens(COMPLETIONS, {"prompt": "x"}, model="other") == [1, 2]
    desk.resolver.close()


def test_modes_are_told_in_words(desk: Desk) -> None:
    """For /readyz and the log."""
    without = Desk()

    assert desk.resolver.describe("m").startswith("tokenizer: ")
    assert without.resolver.mode("m") == "byte-blocks"
    assert "not workers' events" in without.resolver.describe("m")
    assert Desk(worker=Worker(OSError())).resolver.describe("m").startswith("worker: ")


def test_a_tokenizer_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """The operator named it."""
    with pytest.raises(SettingsError, match="tokenizer"):
        Desk().resolver.add_model("m", tokenizer=tmp_path)
