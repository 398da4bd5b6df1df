"""Continuous batching with chunked prefill for one rank: who computes how much in the next step.

Pure: no clock, no sockets. Whoever drives it alternates `begin` (decide, allocate, cache) and `finish` (emit
tokens, end requests), and waits for `Step.seconds` in between. The rules follow vLLM's: running requests first,
then waiting ones in order of arrival while the token budget lasts; when blocks run out, the request that arrived
last gives its own back and is computed again later.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kvrouter.replay.engine.cache import CachedSequence, Namespace, PrefixCache
from kvrouter.replay.engine.timing import Timing

__all__ = ["Job", "Scheduler", "Step"]


class Job:
    """One prompt on its way through the engine.

    `next_token()` gives one output token after the other. `emit(token)` is called with each of them, and with None
    at the end: after the last token, or at once after the prefill of a job without output (an embedding).
    """

    __slots__ = (
        "aborted", "cached_tokens", "emit", "lost", "next_token", "output_tokens", "output_tokens_max", "preemptions",
        "prompt_tokens", "sequence", "transferred",
    )  # fmt: skip

    def __init__(
        self,
        tokens: array[int],
        *,
        namespace: Namespace,
        output_tokens_max: int,
        next_token: Callable[[], int],
        emit: Callable[[int | None], None],
        transferred: int = 0,
    ) -> None:
        self.sequence = CachedSequence(tokens, namespace)
        self.prompt_tokens = len(tokens)
        self.output_tokens, self.output_tokens_max = 0, output_tokens_max
        self.next_token, self.emit = next_token, emit
        self.transferred = transferred
        """Leading prompt tokens that another engine has computed; the last one is always computed here."""
        self.cached_tokens: int | None = None
        """Prompt tokens that were found cached on first admission; None while the job waits."""
        self.preemptions = 0
        self.aborted = False
        self.lost = False
        """Set with the last `emit(None)` when the engine was restarted under the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One forward pass: its jobs, and how long it takes."""

    jobs: tuple[Job, ...]
    prefill_tokens: int
    decoding: int
    seconds: float


class Scheduler:
    """Decides steps over one rank's prefix cache."""

    def __init__(self, cache: PrefixCache, timing: Timing, *, running_max: int, step_tokens_max: int) -> None:
        self.cache, self.timing = cache, timing
        self.running: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.preemptions = self.queried_tokens = self.hit_tokens = 0
        self._running_max, self._step_tokens_max = running_max, step_tokens_max

    def submit(self, job: Job) -> None:
        """Queue a job. Its prompt and output must fit into the empty pool, or it could wait for ever."""
        self.waiting.append(job)

    def abort(self, job: Job) -> None:
        """Stop a job: a waiting one leaves at once, a running one before the next step. Idempotent."""
        job.aborted = True
        if job in self.waiting:
            self.waiting.remove(job)

    def lose_all(self) -> None:
        """Abandon every job, as a crash does, and tell each of them."""
        for job in [*self.running, *self.waiting]:
            self.abort(job)
            job.lost = True
            job.emit(None)

    def begin(self) -> Step | None:
        """Decide and allocate the next step; None if there is nothing to do."""
        self._drop_aborted()
        chunks: dict[Job, int] = {}
        preempted = self._continue_running(chunks)
        if not preempted:
            self._admit_waiting(chunks)
        if not chunks:
            return None
        decoding = sum(job.output_tokens > 0 and tokens == 1 for job, tokens in chunks.items())
        prefill_tokens = sum(chunks.values()) - decoding
        return Step(
            jobs=tuple(chunks),
            prefill_tokens=prefill_tokens,
            decoding=decoding,
            seconds=self.timing.seconds(prefill_tokens=prefill_tokens, decoding=decoding),
        )

    def finish(self, step: Step) -> None:
        """Emit one token for each job of `step` whose tokens are all computed, and end the jobs that are done."""
        for job in step.jobs:
            sequence = job.sequence
            if job.aborted or sequence.computed < len(sequence.tokens):
                continue
            if job.output_tokens < job.output_tokens_max:
                token = job.next_token()
                job.output_tokens += 1
                sequence.tokens.append(token)
                job.emit(token)
            if job.output_tokens == job.output_tokens_max:
                self._end(job)
                job.emit(None)
        self._drop_aborted()

    def _continue_running(self, chunks: dict[Job, int]) -> bool:
        """Give each running job its next chunk; tell whether one had to be preempted."""
        preempted = False
        for job in list(self.running):
            budget = self._step_tokens_max - sum(chunks.values())
            tokens = min(len(job.sequence.tokens) - job.sequence.computed, budget)
            if tokens <= 0 or job not in self.running:
                continue
            while not self.cache.advance(job.sequence, tokens):
                victim = self.running.pop()
                self._preempt(victim)
                preempted = True
                if victim is job:
                    break
            else:
                chunks[job] = tokens
        return preempted

    def _admit_waiting(self, chunks: dict[Job, int]) -> None:
        budget = self._step_tokens_max - sum(chunks.values())
        while self.waiting and budget > 0 and len(self.running) < self._running_max:
            job = self.waiting[0]
            hit = self.cache.hit(job.sequence)
            cached = len(hit) * self.cache.block_size
            given = max(0, min(job.transferred, len(job.sequence.tokens) - 1) - cached)
            tokens = min(len(job.sequence.tokens) - cached - given, budget)
            if not self.cache.admit(job.sequence, hit, given + tokens):
                break
            if job.cached_tokens is None:
                job.cached_tokens = cached + given
                self.queried_tokens += job.prompt_tokens
                self.hit_tokens += cached
            self.running.append(self.waiting.popleft())
            chunks[job] = tokens
            budget -= tokens

    def _preempt(self, job: Job) -> None:
        self.cache.release(job.sequence)
        job.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(job)

    def _end(self, job: Job) -> None:
        self.running.remove(job)
        self.cache.release(job.sequence)

    def _drop_aborted(self) -> None:
        for job in [job for job in self.running if job.aborted]:
            self._end(job)
