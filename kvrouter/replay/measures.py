"""What one run was worth, in numbers that runs can be compared by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvrouter.replay.bounds import Bounds
from kvrouter.replay.outcome import Outcome

__all__ = ["Goal", "Measures", "measure"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a request must reach to count as good: seconds to the first token, and seconds per token after it."""

    ttft_seconds: float = 2.0
    token_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """One run. Shares are 0..1, times in seconds.

    Attributes:
        requests: turns that were played.
        duration: from the first arrival to the last end.
        hit_share: prompt tokens that were cached where they came to, of all.
        pooled_share: the same for one cache of all workers' size, which is about the most that is possible; None if
            nobody asked.
        ideal_share: the same for a cache without end.
        ttft_mean: time to first token; also at the 50th, 90th and 99th percentile.
        token_mean: time per output token after the first, mean over requests; also at the 99th percentile.
        goodput: requests that reached the goal, of all.
        busy_share: time in which workers computed, of all.
        imbalance: busiest worker's busy time over the mean.
        prefill_variation: standard deviation of the time that each worker spent on prompts, over the mean.
        promise_error: mean difference of promised and found cached tokens, of the prompt's tokens.
        promise_bias: the same with its sign: above 0 the router promised too much.
        prediction_error: mean difference of predicted and real time to first token, of the mean real one.
        prediction_bias: the same with its sign: above 0 the router predicted too long a time.
        preemptions: how often a request lost its blocks to others and was computed again.
        full_workers: workers whose cache was ever full; where there are none, larger caches would change nothing.
        retries: how often one was sent again because its worker restarted.
    """

    requests: int
    duration: float
    hit_share: float
    pooled_share: float | None
    ideal_share: float | None
    ttft_mean: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    token_mean: float
    token_p99: float
    goodput: float
    busy_share: float
    imbalance: float
    prefill_variation: float
    promise_error: float
    promise_bias: float
    prediction_error: float
    prediction_bias: float
    preemptions: int
    full_workers: int
    retries: int

    @property
    def pooled_efficiency(self) -> float | None:
        """Hit share, as a share of what one pooled cache reaches; 1 where there is nothing to hit."""
        if self.pooled_share is None:
            return None
        return self.hit_share / self.pooled_share if self.pooled_share else 1.0


def measure(outcome: Outcome, *, goal: Goal, bounds: Bounds | None = None) -> Measures:
    """Sum a run up."""
    ttft = outcome.ttft
    per_token = seconds_per_token(outcome)
    tokens = max(1, int(outcome.input_tokens.sum()))
    busy = np.array([worker.busy_seconds for worker in outcome.workers])
    prefill = np.array([worker.prefill_seconds for worker in outcome.workers])
    duration = float(outcome.end.max() - outcome.arrival.min())
    mean_ttft = float(ttft.mean())
    promise = (outcome.promised_tokens - outcome.cached_tokens) / np.maximum(outcome.input_tokens, 1)
    prediction = outcome.predicted_seconds - ttft
    p50, p90, p99 = (float(value) for value in np.percentile(ttft, (50, 90, 99)))
    return Measures(
        requests=len(ttft),
        duration=duration,
        hit_share=float(outcome.cached_tokens.sum()) / tokens,
        pooled_share=bounds.pooled_share if bounds else None,
        ideal_share=bounds.ideal_share if bounds else None,
        ttft_mean=mean_ttft,
        ttft_p50=p50,
        ttft_p90=p90,
        ttft_p99=p99,
        token_mean=float(per_token.mean()) if len(per_token) else 0.0,
        token_p99=float(np.percentile(per_token, 99)) if len(per_token) else 0.0,
        goodput=float(reached(outcome, goal).mean()),
        busy_share=float(busy.mean()) / duration if duration else 0.0,
        imbalance=float(busy.max() / busy.mean()) if busy.any() else 1.0,
        prefill_variation=float(prefill.std() / prefill.mean()) if prefill.any() else 0.0,
        promise_error=float(np.abs(promise).mean()),
        promise_bias=float(promise.mean()),
        prediction_error=float(np.abs(prediction).mean()) / mean_ttft if mean_ttft else 0.0,
        prediction_bias=float(prediction.mean()) / mean_ttft if mean_ttft else 0.0,
        preemptions=sum(worker.preemptions for worker in outcome.workers),
        full_workers=sum(worker.was_full for worker in outcome.workers),
        retries=outcome.retries,
    )


def seconds_per_token(outcome: Outcome) -> _Floats:
    """Return the time per output token after the first, of the requests that have more than one."""
    several = outcome.output_tokens > 1
    after: _Floats = (outcome.end - outcome.first_token)[several] / (outcome.output_tokens[several] - 1)
    return after


def reached(outcome: Outcome, goal: Goal) -> NDArray[np.bool_]:
    """Tell of each request whether it reached the goal."""
    good: NDArray[np.bool_] = outcome.ttft <= goal.ttft_seconds
    if goal.token_seconds is not None:
        after = (outcome.end - outcome.first_token) / np.maximum(outcome.output_tokens - 1, 1)
        good &= after <= goal.token_seconds
    return good
