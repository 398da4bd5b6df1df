"""What the demo counts, and how it says it to programs."""

import math
import os
import platform
from collections.abc import Sequence
from typing import Any

from kvrouter import __version__
from kvrouter.demo.client import Answer

__all__ = ["Measures", "comparison", "percentile"]


class Measures:
    """Counts the answers of one policy, while they come and afterwards."""

    def __init__(self) -> None:
        self.first_token_seconds: list[float] = []
        self.prompt_tokens = self.cached_tokens = self.answer_tokens = 0
        self.elapsed_seconds = 0.0
        self.requests_by_worker: dict[str, int] = {}

    def add(self, answer: Answer) -> None:
        """Count one answer."""
        self.first_token_seconds.append(answer.first_token_seconds)
        self.prompt_tokens += answer.prompt_tokens
        self.cached_tokens += answer.cached_tokens
        self.answer_tokens += len(answer.tokens)
        self.requests_by_worker[answer.worker] = self.requests_by_worker.get(answer.worker, 0) + 1

    @property
    def requests(self) -> int:
        """Requests answered so far."""
        return len(self.first_token_seconds)

    @property
    def cached_token_share(self) -> float:
        """Share of all prompt tokens that the engines found in their caches."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def ttft_mean_seconds(self) -> float:
        """Mean time to first token."""
        return math.fsum(self.first_token_seconds) / self.requests if self.requests else 0.0

    def ttft_seconds(self, share: float) -> float:
        """Return the time to first token that `share` of the requests stay within."""
        return percentile(self.first_token_seconds, share)

    @property
    def requests_per_second(self) -> float:
        """Requests answered per second, from the first sent to the last answered."""
        return self.requests / self.elapsed_seconds if self.elapsed_seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain figures."""
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "cached_token_share": round(self.cached_token_share, 4),
            "ttft_mean_seconds": round(self.ttft_mean_seconds, 5),
            "ttft_p50_seconds": round(self.ttft_seconds(0.50), 5),
            "ttft_p99_seconds": round(self.ttft_seconds(0.99), 5),
            "requests_per_second": round(self.requests_per_second, 3),
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "requests_by_worker": dict(sorted(self.requests_by_worker.items())),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of `values` do not exceed; 0 of none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def comparison(first: Measures, second: Measures, *, policy: str, workload: dict[str, Any]) -> dict[str, Any]:
    """Return the object that `kvrouter demo --json` prints; a speed-up above 1 means that `policy` is faster."""
    return {
        "round_robin": first.as_dict(),
        policy.replace("-", "_"): second.as_dict(),
        "speedup_ttft_mean": _ratio(first.ttft_mean_seconds, second.ttft_mean_seconds),
        "speedup_ttft_p99": _ratio(first.ttft_seconds(0.99), second.ttft_seconds(0.99)),
        "workload": workload,
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "kvrouter": __version__,
        },
    }


def _ratio(before: float, after: float) -> float | None:
    return round(before / after, 2) if after else None
