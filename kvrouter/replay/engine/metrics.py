"""The engine's /metrics: vLLM's names and labels, so that scrapers and routers read it like the real thing.

The colons in the names are vLLM's. kvrouter's own metrics never look like this.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from kvrouter.replay.engine.options import EngineOptions
from kvrouter.replay.engine.rank import Rank

__all__ = ["EngineMetrics", "Histogram"]

_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)


class Histogram:
    """Counts values into buckets; rendered cumulatively."""

    def __init__(self, bounds: Sequence[float] = _SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterable[str]:
        """Yield the sample lines."""
        for bound, count in zip([*map(str, self._bounds), "+Inf"], accumulate(self._counts), strict=True):
            yield f'{name}_bucket{{le="{bound}",{labels}}} {count}'
        yield f"{name}_count{{{labels}}} {sum(self._counts)}"
        yield f"{name}_sum{{{labels}}} {self._sum}"


class _RankCounters:
    def __init__(self) -> None:
        self.prompt_tokens = self.generation_tokens = 0
        self.finished = {"stop": 0, "length": 0, "abort": 0}
        self.first_token = Histogram()
        self.between_tokens = Histogram()
        self.whole = Histogram()


class EngineMetrics:
    """Counters of every rank, and the text that shows them."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._ranks = [_RankCounters() for _ in range(options.ranks)]

    def started(self, rank: int, prompt_tokens: int) -> None:
        """Count a request's prompt."""
        self._ranks[rank].prompt_tokens += prompt_tokens

    def first_token(self, rank: int, seconds: float) -> None:
        """Count a first token, so long after the request came."""
        self._ranks[rank].first_token.observe(seconds)
        self._ranks[rank].generation_tokens += 1

    def next_token(self, rank: int, seconds: float) -> None:
        """Count a further token, so long after the one before."""
        self._ranks[rank].between_tokens.observe(seconds)
        self._ranks[rank].generation_tokens += 1

    def finished(self, rank: int, reason: str, seconds: float) -> None:
        """Count the end of a request."""
        self._ranks[rank].finished[reason] += 1
        self._ranks[rank].whole.observe(seconds)

    def render(self, ranks: Sequence[Rank]) -> bytes:
        """Return the page in Prometheus' text format."""
        lines: list[str] = []
        for kind, name, values in self._samples(ranks):
            lines.append(f"# TYPE {name} {kind}")
            lines += [f"{name}{{{self._labels(number)}}} {value}" for number, value in enumerate(values)]
        lines.append("# TYPE vllm:request_success_total counter")
        for number, counters in enumerate(self._ranks):
            for reason, count in counters.finished.items():
                labels = f'finished_reason="{reason}",{self._labels(number)}'
                lines.append(f"vllm:request_success_total{{{labels}}} {count}")
        for name, attribute in (
            ("vllm:time_to_first_token_seconds", "first_token"),
            ("vllm:inter_token_latency_seconds", "between_tokens"),
            ("vllm:e2e_request_latency_seconds", "whole"),
        ):
            lines.append(f"# TYPE {name} histogram")
            for number, counters in enumerate(self._ranks):
                lines += getattr(counters, attribute).lines(name, self._labels(number))
        lines += ["# TYPE vllm:cache_config_info gauge", self._cache_config()]
        return ("\n".join(lines) + "\n").encode()

    def _samples(self, ranks: Sequence[Rank]) -> Iterable[tuple[str, str, list[float]]]:
        schedulers = [rank.scheduler for rank in ranks]
        pools = [scheduler.cache.pool for scheduler in schedulers]
        yield "gauge", "vllm:num_requests_running", [len(scheduler.running) for scheduler in schedulers]
        yield "gauge", "vllm:num_requests_waiting", [len(scheduler.waiting) for scheduler in schedulers]
        yield "gauge", "vllm:kv_cache_usage_perc", [pool.used / pool.blocks for pool in pools]
        yield "counter", "vllm:prefix_cache_queries_total", [each.queried_tokens for each in schedulers]
        yield "counter", "vllm:prefix_cache_hits_total", [each.hit_tokens for each in schedulers]
        yield "counter", "vllm:num_preemptions_total", [each.preemptions for each in schedulers]
        yield "counter", "vllm:prompt_tokens_total", [each.prompt_tokens for each in self._ranks]
        yield "counter", "vllm:generation_tokens_total", [each.generation_tokens for each in self._ranks]

    def _labels(self, rank: int) -> str:
        return f'engine="{rank}",model_name="{self._options.model}"'

    def _cache_config(self) -> str:
        options = self._options
        labels = f'block_size="{options.block_size}",num_gpu_blocks="{options.blocks}",enable_prefix_caching="True"'
        return f"vllm:cache_config_info{{{labels}}} 1"
