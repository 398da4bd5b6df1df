"""What one run looked like over time and over its requests, in as few points as a plot can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvrouter.replay.outcome import Outcome

__all__ = ["Curves", "curves_of"]

POINTS: Final = 72
_PERCENTILES: Final = (*range(100), 99.5, 99.9, 100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Points of one run; those over time belong to `times`, the middles of equal parts of the run, in seconds.

    None where no request arrived in that part.
    """

    times: tuple[float, ...]
    hit_share: tuple[float | None, ...]
    ttft_mean: tuple[float | None, ...]
    arrivals_per_second: tuple[float, ...]
    ttft_percentiles: tuple[tuple[float, float], ...]
    """(percentile, seconds)"""
    worker_busy_share: tuple[float, ...]
    worker_prefill_share: tuple[float, ...]
    worker_requests: tuple[int, ...]
    worker_hit_share: tuple[float, ...]


def curves_of(outcome: Outcome) -> Curves:
    """Return the curves of a run that had at least one request."""
    arrival = outcome.arrival
    begin, end = float(arrival.min()), float(arrival.max())
    width = max(end - begin, 1e-9) / POINTS
    parts = np.minimum(((arrival - begin) / width).astype(np.int64), POINTS - 1)
    counts = np.bincount(parts, minlength=POINTS)
    tokens = np.bincount(parts, weights=outcome.input_tokens, minlength=POINTS)
    cached = np.bincount(parts, weights=outcome.cached_tokens, minlength=POINTS)
    ttft = np.bincount(parts, weights=outcome.ttft, minlength=POINTS)
    workers = len(outcome.workers)
    own_tokens = np.bincount(outcome.worker, weights=outcome.input_tokens, minlength=workers)
    own_cached = np.bincount(outcome.worker, weights=outcome.cached_tokens, minlength=workers)
    duration = max(float(outcome.end.max()) - begin, 1e-9)
    return Curves(
        times=tuple(begin + (part + 0.5) * width for part in range(POINTS)),
        hit_share=_ratios(cached, tokens),
        ttft_mean=_ratios(ttft, counts),
        arrivals_per_second=tuple((counts / width).tolist()),
        ttft_percentiles=tuple(zip(_PERCENTILES, np.percentile(outcome.ttft, _PERCENTILES).tolist(), strict=True)),
        worker_busy_share=tuple(worker.busy_seconds / duration for worker in outcome.workers),
        worker_prefill_share=tuple(worker.prefill_seconds / duration for worker in outcome.workers),
        worker_requests=tuple(worker.requests for worker in outcome.workers),
        worker_hit_share=tuple((own_cached / np.maximum(own_tokens, 1)).tolist()),
    )


def _ratios(above: NDArray[Any], below: NDArray[Any]) -> tuple[float | None, ...]:
    return tuple(float(a) / float(b) if b else None for a, b in zip(above, below, strict=True))
