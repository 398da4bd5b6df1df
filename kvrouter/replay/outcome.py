"""What became of every turn of one simulated run, and what the workers did; `measures.py` sums it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvrouter.replay.trace import Trace
from kvrouter.replay.worker import Worker

__all__ = ["Outcome", "OutcomeRows", "WorkerTotals"]

_Floats = NDArray[np.float64]
_Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTotals:
    """One worker over the whole run."""

    requests: int
    busy_seconds: float
    prefill_seconds: float
    prefilled_tokens: int
    evicted_blocks: int
    preemptions: int
    was_full: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row for each turn, in the order of the trace. Times are in seconds since the beginning of the trace.

    Attributes:
        arrival: when it came to the router.
        first_token: when its first token left the worker.
        end: when its last one did.
        input_tokens: of its prompt.
        output_tokens: of its answer.
        promised_tokens: of the prompt that the router thought the worker had cached.
        cached_tokens: of the prompt that the worker did have cached.
        predicted_seconds: to the first token, as the router predicted when it chose.
        worker: position of the chosen worker.
        reasons: how often the policy gave each reason.
        retries: turns that were lost with a worker and sent again.
        workers: what each worker did.
        end_seconds: when the last turn ended.
    """

    arrival: _Floats
    first_token: _Floats
    end: _Floats
    input_tokens: _Integers
    output_tokens: _Integers
    promised_tokens: _Integers
    cached_tokens: _Integers
    predicted_seconds: _Floats
    worker: _Integers
    reasons: dict[str, int]
    retries: int
    workers: tuple[WorkerTotals, ...]
    end_seconds: float

    @property
    def ttft(self) -> _Floats:
        """Seconds to the first token of each turn."""
        return self.first_token - self.arrival


class OutcomeRows:
    """Collects an outcome while the simulation runs."""

    def __init__(self, turns: int) -> None:
        self._arrival = [0.0] * turns
        self._first = [-1.0] * turns
        self._end = [0.0] * turns
        self._promised = [0] * turns
        self._cached = [0] * turns
        self._predicted = [0.0] * turns
        self._worker = [0] * turns
        self._reasons: dict[str, int] = {}
        self._retries = self._preemptions = 0

    def arrived(self, number: int, now: float) -> None:
        """Note an arrival."""
        self._arrival[number] = now

    def placed(self, number: int, *, worker: int, promised: int, cost: float, reason: str) -> None:
        """Note what the router chose."""
        self._worker[number] = worker
        self._promised[number] = promised
        self._predicted[number] = cost
        self._reasons[reason] = self._reasons.get(reason, 0) + 1

    def first_token(self, number: int, now: float) -> None:
        """Note the first token that the client got; what came before a restart counts."""
        if self._first[number] < 0:
            self._first[number] = now

    def ended(self, number: int, now: float, *, cached: int, preemptions: int) -> None:
        """Note the end, and what the worker had cached."""
        self._end[number] = now
        self._cached[number] = cached
        self._preemptions += preemptions

    def retried(self, number: int) -> None:
        """Note that a turn is sent again from its beginning."""
        self._retries += 1
        self._first[number] = -1.0

    def outcome(self, trace: Trace, workers: Sequence[Worker], *, end: float) -> Outcome:
        """Return what was collected."""
        chosen = np.array(self._worker, dtype=np.int64)
        requests = np.bincount(chosen, minlength=len(workers))
        totals = tuple(
            WorkerTotals(
                requests=int(count),
                busy_seconds=worker.busy_seconds,
                prefill_seconds=worker.prefill_seconds,
                prefilled_tokens=worker.prefilled_tokens,
                evicted_blocks=worker.cache.evicted_blocks,
                preemptions=worker.preemptions,
                was_full=worker.cache.was_full or worker.preemptions > 0,
            )
            for worker, count in zip(workers, requests, strict=True)
        )
        return Outcome(
            arrival=np.array(self._arrival),
            first_token=np.array(self._first),
            end=np.array(self._end),
            input_tokens=np.array([turn.input_tokens for turn in trace.turns], dtype=np.int64),
            output_tokens=np.array([turn.output_tokens for turn in trace.turns], dtype=np.int64),
            promised_tokens=np.array(self._promised, dtype=np.int64),
            cached_tokens=np.array(self._cached, dtype=np.int64),
            predicted_seconds=np.array(self._predicted),
            worker=chosen,
            reasons=dict(self._reasons),
            retries=self._retries,
            workers=totals,
            end_seconds=end,
        )
