"""The one thread of the service: it tokenises texts that would hold up the event loop.

The tokenizers wheel releases the interpreter while it works, so one thread beside the loop is a second core. Waiting
work is bounded. A piece that is already on its way is waited for, not tokenised twice: a burst of requests that share a
long system prompt costs it once. Whoever stops waiting takes nothing from the others.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeAlias

from kvrouter.errors import OverloadedError
from kvrouter.service.prompts.text_tokenizer import TextTokenizer, TokenizerError

__all__ = ["EncodeThread"]

_Job: TypeAlias = "Future[list[bytes | None]]"
_Answer: TypeAlias = "asyncio.Future[bytes | None]"
_Key: TypeAlias = tuple[int, bool, str]


class EncodeThread:
    """Tokenises in a thread of its own. Belongs to one event loop; `close` it before that loop ends."""

    def __init__(self, *, jobs_max: int = 256) -> None:
        self.jobs_max = jobs_max
        self.encoded_characters = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kvrouter-tokenizer")
        self._jobs: set[_Job] = set()
        self._running: dict[_Key, _Answer] = {}
        self._closed = False

    @property
    def waiting(self) -> int:
        """Jobs that are waiting or under way."""
        return len(self._jobs)

    async def encode(
        self, tokenizer: TextTokenizer, pieces: Sequence[str], *, add_special_tokens: bool = False
    ) -> list[bytes]:
        """Return the words of each piece, in order.

        Raises:
            OverloadedError: too much is waiting.
            TokenizerError: the tokenizer fails on a piece.
        """
        answers = self._start(tokenizer, pieces, add_special_tokens)
        # Unlike awaiting them, this does not cancel what others wait for too.
        await asyncio.wait(set(answers))
        words = [answer.result() for answer in answers]
        if None in words:
            raise TokenizerError("a piece of the text cannot be tokenised")
        return [each for each in words if each is not None]

    def close(self) -> None:
        """Finish what is under way, drop what waits."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _start(self, tokenizer: TextTokenizer, pieces: Sequence[str], special: bool) -> list[_Answer]:  # noqa: FBT001
        keys = [(id(tokenizer), special, piece) for piece in pieces]
        new = [key for key in dict.fromkeys(keys) if key not in self._running]
        if new:
            if self._closed or len(self._jobs) >= self.jobs_max:
                raise OverloadedError(f"{len(self._jobs)} texts are waiting to be tokenised")
            loop = asyncio.get_running_loop()
            for key in new:
                self._running[key] = loop.create_future()
            texts = [key[2] for key in new]
            self.encoded_characters += sum(map(len, texts))
            job = self._executor.submit(_encode_all, tokenizer, texts, special)
            self._jobs.add(job)
            job.add_done_callback(lambda job: self._report(loop, job, new))
        return [self._running[key] for key in keys]

    def _report(self, loop: asyncio.AbstractEventLoop, job: _Job, keys: Sequence[_Key]) -> None:
        """Hand a finished job over to the loop; called in the thread."""
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            loop.call_soon_threadsafe(self._finish, job, keys)

    def _finish(self, job: _Job, keys: Sequence[_Key]) -> None:
        self._jobs.discard(job)
        words = [None] * len(keys) if job.cancelled() else job.result()
        for key, each in zip(keys, words, strict=True):
            answer = self._running.pop(key)
            if not answer.done():
                answer.set_result(each)


def _encode_all(tokenizer: TextTokenizer, pieces: Sequence[str], special: bool) -> list[bytes | None]:  # noqa: FBT001
    return [_encode_one(tokenizer, piece, special) for piece in pieces]


def _encode_one(tokenizer: TextTokenizer, piece: str, special: bool) -> bytes | None:  # noqa: FBT001
    try:
        return tokenizer.encode(piece, add_special_tokens=special)
    except TokenizerError:
        return None
