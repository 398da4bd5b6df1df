"""One request while it runs: its jobs on a rank, and what they have produced so far."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Self

from kvrouter.replay.engine.answers import usage
from kvrouter.replay.engine.metrics import EngineMetrics
from kvrouter.replay.engine.rank import Rank
from kvrouter.replay.engine.scheduler import Job
from kvrouter.replay.engine.work import Prompt, Work

__all__ = ["RunningWork"]


class RunningWork:
    """Runs one job for each prompt. Leaving the `with` block early aborts what still runs and frees its blocks."""

    def __init__(self, work: Work, rank: Rank, metrics: EngineMetrics, words: range, *, transferred: int = 0) -> None:
        self._work, self._rank, self._metrics, self._words = work, rank, metrics, words
        self._transferred = transferred
        # Bounded by the answers' own lengths.
        self._produced: asyncio.Queue[tuple[int, int | None]] = asyncio.Queue()
        self._jobs = [self._job(index, prompt) for index, prompt in enumerate(work.prompts)]
        self._received = [0] * len(self._jobs)
        self._unfinished = len(self._jobs)
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        for job in self._jobs:
            self._metrics.started(self._rank.number, job.prompt_tokens)
            self._rank.submit(job)
        return self

    def __exit__(self, *_: object) -> None:
        if self._unfinished:
            for job in self._jobs:
                self._rank.abort(job)
            self._metrics.finished(self._rank.number, "abort", time.monotonic() - self._began)

    @property
    def rank(self) -> int:
        """Where it runs."""
        return self._rank.number

    async def events(self) -> AsyncIterator[tuple[int, int, str | None]]:
        """Yield (prompt, token, finish reason) until every job has ended.

        Raises:
            ConnectionResetError: the engine has been restarted in the meantime.
        """
        last = self._began
        while self._unfinished:
            index, token = await self._produced.get()
            now = time.monotonic()
            prompt = self._work.prompts[index]
            if token is None:
                self._end(index, now)
                continue
            observe = self._metrics.first_token if last == self._began else self._metrics.next_token
            observe(self._rank.number, now - last)
            last = now
            self._received[index] += 1
            ended = self._received[index] == prompt.output_tokens
            yield index, token, prompt.finish_reason if ended else None

    def usage(self) -> dict[str, Any]:
        """Return what the whole request has used."""
        return usage(
            prompt_tokens=sum(job.prompt_tokens for job in self._jobs),
            completion_tokens=sum(job.output_tokens for job in self._jobs),
            cached_tokens=sum(job.cached_tokens or 0 for job in self._jobs),
        )

    def _end(self, index: int, now: float) -> None:
        if self._jobs[index].lost:
            raise ConnectionResetError("the engine has been restarted")
        self._unfinished -= 1
        self._metrics.finished(self._rank.number, self._work.prompts[index].finish_reason, now - self._began)

    def _job(self, index: int, prompt: Prompt) -> Job:
        def emit(token: int | None) -> None:
            self._produced.put_nowait((index, token))

        return Job(
            prompt.tokens[:],
            namespace=self._work.namespace,
            output_tokens_max=prompt.output_tokens,
            next_token=lambda: prompt.words.choice(self._words),
            emit=emit,
            transferred=self._transferred,
        )
