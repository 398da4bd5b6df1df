"""The tokenizer thread: bounded, in order, shared, and nobody's leaving disturbs the others."""

import asyncio
import threading
import time

import pytest
from tokenizers import Tokenizer

from kvrouter.errors import OverloadedError
from kvrouter.service.prompts.encode_thread import EncodeThread
from kvrouter.service.prompts.text_tokenizer import TextTokenizer, TokenizerError
from tests.prompts.models import tokenizer_of

_SECONDS = 10.0


class GatedTokenizer(TextTokenizer):
    """Tokenises when it is let; remembers what it was asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[str] = []
        super().__init__(tokenizer)
        self.asked.clear()

    def encode(self, text: str, *, add_special_tokens: bool = False) -> bytes:
        """Wait for the gate, then tokenise."""
        assert self.gate.wait(_SECONDS)
        self.asked.append(text)
        return super().encode(text, add_special_tokens=add_special_tokens)


@pytest.fixture
def tokenizer() -> GatedTokenizer:
    """A tokenizer whose gate is open."""
    return GatedTokenizer(tokenizer_of("chatml"))


async def _until(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def test_pieces_come_back_in_order(tokenizer: GatedTokenizer) -> None:
    """Also when one comes twice, and whatever else is asked at the same time."""

    async def scenario() -> None:
        thread = EncodeThread()
        asked = [["one", "two", "one"], ["three"], ["two", "four"]]
        found = await asyncio.gather(*(thread.encode(tokenizer, pieces) for pieces in asked))
        thread.close()

        plain = TextTokenizer(tokenizer_of("chatml"))
        assert found == [[plain.encode(piece) for piece in pieces] for pieces in asked]

    asyncio.run(scenario())


def test_the_loop_runs_on_meanwhile(tokenizer: GatedTokenizer) -> None:
    """That is what the thread is for."""

    async def scenario() -> None:
        thread = EncodeThread()
        tokenizer.gate.clear()
        waiting = asyncio.create_task(thread.encode(tokenizer, ["text"]))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        assert thread.waiting == 1
        tokenizer.gate.set()
        await waiting
        assert thread.waiting == 0
        thread.close()

    asyncio.run(scenario())


def test_a_piece_that_is_on_its_way_is_not_tokenised_twice(tokenizer: GatedTokenizer) -> None:
    """A burst of siblings costs their common beginning once."""

    async def scenario() -> None:
        thread = EncodeThread()
        tokenizer.gate.clear()
        tasks = [asyncio.create_task(thread.encode(tokenizer, ["shared", f"own {number}"])) for number in range(5)]
        await _until(lambda: thread.waiting == 5)
        tokenizer.gate.set()
        found = await asyncio.gather(*tasks)
        thread.close()

        assert tokenizer.asked.count("shared") == 1
        assert len({words[0] for words in found}) == 1
        assert len({words[1] for words in found}) == 5

    asyncio.run(scenario())


def test_whoever_stops_waiting_takes_nothing_from_the_others(tokenizer: GatedTokenizer) -> None:
    """A client that goes away cancels its own waiting only."""

    async def scenario() -> None:
        thread = EncodeThread()
        tokenizer.gate.clear()
        leaving = asyncio.create_task(thread.encode(tokenizer, ["shared"]))
        staying = asyncio.create_task(thread.encode(tokenizer, ["shared"]))
        await _until(lambda: thread.waiting == 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        tokenizer.gate.set()

        assert leaving.cancelled()
        assert await staying == [TextTokenizer(tokenizer_of("chatml")).encode("shared")]
        assert tokenizer.asked == ["shared"]
        thread.close()

    asyncio.run(scenario())


def test_too_much_waiting_is_refused(tokenizer: GatedTokenizer) -> None:
    """The queue has a bound; what is under way already may still be shared."""

    async def scenario() -> None:
        thread = EncodeThread(jobs_max=2)
        tokenizer.gate.clear()
        tasks = [asyncio.create_task(thread.encode(tokenizer, [f"text {number}"])) for number in range(2)]
        await _until(lambda: thread.waiting == 2)
        with pytest.raises(OverloadedError):
            await thread.encode(tokenizer, ["one more"])
        shared = asyncio.create_task(thread.encode(tokenizer, ["text 0"]))
        await asyncio.sleep(0)
        tokenizer.gate.set()
        await asyncio.gather(*tasks, shared)
        await thread.encode(tokenizer, ["one more"])
        thread.close()

    asyncio.run(scenario())


def test_one_bad_text_fails_alone(tokenizer: GatedTokenizer) -> None:
    """Its own waiters get an error, the next text its tokens."""

    async def scenario() -> None:
        thread = EncodeThread()
        with pytest.raises(TokenizerError):
            await thread.encode(tokenizer, ["good", "\ud800"])
        assert await thread.encode(tokenizer, ["good"])
        assert thread.waiting == 0
        thread.close()

    asyncio.run(scenario())


def test_a_closed_thread_refuses(tokenizer: GatedTokenizer) -> None:
    """Work that waited is dropped, and no more is taken."""

    async def scenario() -> None:
        thread = EncodeThread()
        tokenizer.gate.clear()
        running = asyncio.create_task(thread.encode(tokenizer, ["running"]))
        waiting = asyncio.create_task(thread.encode(tokenizer, ["waiting"]))
        await _until(lambda: thread.waiting == 2)
        threading.Timer(0.01, tokenizer.gate.set).start()
        thread.close()

        assert await running
        with pytest.raises(TokenizerError):
            await waiting
        with pytest.raises(OverloadedError):
            await thread.encode(tokenizer, ["late"])

    asyncio.run(scenario())


def test_special_tokens_are_added_on_request(tokenizer: GatedTokenizer) -> None:
    """The same text with and without them are two."""

    async def scenario() -> None:
        with_bos = TextTokenizer(tokenizer_of("chatml-bos"))
        thread = EncodeThread()
        plain = await thread.encode(with_bos, ["text"])
        special = await thread.encode(with_bos, ["text"], add_special_tokens=True)
        thread.close()

        assert special[0] == with_bos.encode("text", add_special_tokens=True) != plain[0]

    asyncio.run(scenario())
