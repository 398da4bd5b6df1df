"""Requests that a client makes again under the same key: answered from memory, or together with the first one.

Bounded by number, bytes and age. What is kept is what a service decided; a failure on the way is forgotten, so that
trying again tries again.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from kvrouter.errors import GatewayError
from kvrouter.gateway.answers import Answer

__all__ = ["AnswerStore", "RequestKey", "body_digest"]


class RequestKey(NamedTuple):
    """Whose key it is, and for what: keys of different callers and routes are different keys."""

    tenant_id: str
    user_id: str
    route: str
    key: str


class _Kept(NamedTuple):
    digest: bytes
    answer: Answer
    until: float


class _Running(NamedTuple):
    digest: bytes
    task: "asyncio.Task[Answer]"


def body_digest(path: str, body: bytes) -> bytes:
    """Return what tells two requests under one key apart."""
    return hashlib.blake2b(path.encode() + b"\0" + body, digest_size=16).digest()


class AnswerStore:
    """Answers by key, the oldest given up first. Lives on one event loop."""

    def __init__(
        self,
        *,
        seconds: float,
        answers_max: int,
        bytes_max: int,
        clock: Callable[[], float],
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`count` is told what became of requests: kept, replayed, joined, conflict; and of answers: evicted."""
        self._seconds, self._answers_max, self._bytes_max = seconds, answers_max, bytes_max
        self._clock, self._count = clock, count
        self._kept: OrderedDict[RequestKey, _Kept] = OrderedDict()
        self._running: dict[RequestKey, _Running] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def answer(self, key: RequestKey, digest: bytes, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the answer of the first request under `key`: kept, awaited, or got by `work`.

        The work goes on when whoever asked for it is gone: others may have joined, and it will be asked for again.

        Raises:
            GatewayError: 409, the same key was used with another body; or what `work` raises.
        """
        self._forget_old()
        kept, running = self._kept.get(key), self._running.get(key)
        known = kept or running
        if known is not None and known.digest != digest:
            self._count("conflict")
            raise GatewayError("this idempotency key was used with another request before", status=409, code="CONFLICT")
        if kept is not None:
            self._count("replayed")
            return kept.answer.replayed()
        if running is not None:
            self._count("joined")
            return (await asyncio.shield(running.task)).replayed()
        task = asyncio.ensure_future(self._work(key, digest, work))
        self._running[key] = _Running(digest, task)
        task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End what still runs."""
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, key: RequestKey, digest: bytes, work: Callable[[], Awaitable[Answer]]) -> Answer:
        answer = await work()
        if answer.is_decision and answer.bytes <= self._bytes_max:
            self._kept[key] = _Kept(digest, answer, self._clock() + self._seconds)
            self.bytes += answer.bytes
            self._count("kept")
            while len(self._kept) > self._answers_max or self.bytes > self._bytes_max:
                self._drop_oldest()
                self._count("evicted")
        return answer

    def _forget_old(self) -> None:
        """All are kept equally long, so the oldest are first."""
        now = self._clock()
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, oldest = self._kept.popitem(last=False)
        self.bytes -= oldest.answer.bytes
