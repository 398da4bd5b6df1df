"""Reads load figures off an engine's own Prometheus page: vLLM's, SGLang's and trtllm-serve's names, per rank.

A line reader, not a Prometheus client: pages have thousands of lines of histograms, of which a dozen matter, and
whatever cannot be read is passed over. Figures come per data-parallel rank, as the page's labels number them.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["RankCounters", "RankFigures", "read_page"]

_RANKS_MAX: Final = 1024
_LINES_MAX: Final = 4096
"""Lines of an engine's own names that are looked at."""
_LINE_CHARACTERS_MAX: Final = 4096
_SAMPLE: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*")
_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_RANK_LABELS: Final = ("engine", "dp_rank")
_SLICE_LABELS: Final = ("tp_rank", "pp_rank")
_OURS: Final = re.compile(rb"^(?:ray_)?(?:vllm|sglang|trtllm)[:_][^\r\n]*", re.MULTILINE)

_GAUGES: Final = {
    "vllm_num_requests_running": "running",
    "vllm_num_requests_waiting": "waiting",
    "vllm_kv_cache_usage_perc": "usage",
    "vllm_gpu_cache_usage_perc": "usage",
    "sglang_num_running_reqs": "running",
    "sglang_num_queue_reqs": "waiting",
    "sglang_token_usage": "usage",
    "sglang_cache_hit_rate": "hit_rate",
    "sglang_num_used_tokens": "used_tokens",
    "sglang_max_total_num_tokens": "total_tokens",
    "sglang_num_pages": "total_blocks",
    "sglang_page_size": "block_size",
    "trtllm_num_requests_running": "running",
    "trtllm_num_requests_waiting": "waiting",
    "trtllm_kv_cache_utilization": "usage",
    "trtllm_kv_cache_hit_rate": "hit_rate",
    "trtllm_kv_cache_max_blocks": "total_blocks",
    "trtllm_kv_cache_tokens_per_block": "block_size",
}
_COUNTERS: Final = {
    "vllm_prefix_cache_queries": "queries",
    "vllm_prefix_cache_hits": "hits",
    "vllm_gpu_prefix_cache_queries": "queries",
    "vllm_gpu_prefix_cache_hits": "hits",
}
_CONFIGURATIONS: Final = {
    "vllm_cache_config_info": ("num_gpu_blocks", "block_size"),
    "sglang_cache_config_info": ("num_pages", "page_size"),
}


@dataclass(frozen=True, slots=True)
class RankCounters:
    """Prefix cache lookups of one rank since its engine started, in tokens or blocks."""

    queries: float
    hits: float

    def hit_rate_since(self, before: "RankCounters | None") -> float | None:
        """Return the share of hits since `before`, or ever where it is of another life; None without lookups."""
        if before is None or before.queries > self.queries or before.hits > self.hits:
            before = RankCounters(0.0, 0.0)
        queries = self.queries - before.queries
        return min(1.0, (self.hits - before.hits) / queries) if queries > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFigures:
    """What a page says about one rank; None where it says nothing."""

    running: int | None = None
    waiting: int | None = None
    usage: float | None = None
    hit_rate: float | None = None
    active_blocks: int | None = None
    total_blocks: int | None = None
    counters: RankCounters | None = None


def read_page(page: bytes) -> dict[int, RankFigures]:
    """Return the figures of each rank that the page names; never raises, whatever the bytes."""
    figures: dict[int, dict[str, float]] = {}
    blocks: dict[int | None, tuple[float | None, float | None]] = {}
    for name, labels, value in _samples(page):
        rank = _rank(labels)
        if name in _CONFIGURATIONS:
            total, size = _CONFIGURATIONS[name]
            blocks[rank] = _number(labels.get(total)), _number(labels.get(size))
            continue
        kind = _GAUGES.get(name) or _COUNTERS.get(name.removesuffix("_total"))
        if kind is None or any(labels.get(label, "0") not in {"0", ""} for label in _SLICE_LABELS):
            continue
        if value < 0 or len(figures) >= _RANKS_MAX:
            continue
        known = figures.setdefault(rank or 0, {})
        known[kind] = max(value, known.get(kind, 0.0))  # Several adapters or front ends of one rank say the same.
    return {rank: _figures(known, *blocks.get(rank, blocks.get(None, (None, None)))) for rank, known in figures.items()}


def _samples(page: bytes) -> Iterator[tuple[str, dict[str, str], float]]:
    for number, match in enumerate(_OURS.finditer(page)):
        if number >= _LINES_MAX:
            return
        line = match.group()
        if len(line) > _LINE_CHARACTERS_MAX or b"_bucket{" in line:
            continue
        sample = _SAMPLE.fullmatch(line.decode("utf-8", "replace"))
        if sample is None:
            continue
        value = _number(sample.group(3))
        if value is not None:
            name = sample.group(1).removeprefix("ray_").replace(":", "_", 1)
            yield name, dict(_LABEL.findall(sample.group(2) or "")), value


def _rank(labels: dict[str, str]) -> int | None:
    """Return the data-parallel rank that a sample is of; None where it names none."""
    for label in _RANK_LABELS:
        text = labels.get(label, "")
        if text.isascii() and text.isdigit() and len(text) <= 6:
            return int(text)
    return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _figures(known: dict[str, float], total_blocks: float | None, block_size: float | None) -> RankFigures:
    total_blocks, block_size = known.get("total_blocks", total_blocks), known.get("block_size", block_size)
    if total_blocks is None and block_size and "total_tokens" in known:
        total_blocks = known["total_tokens"] // block_size
    active = known["used_tokens"] / block_size if block_size and "used_tokens" in known else None
    usage = known.get("usage")
    queries, hits = known.get("queries"), known.get("hits")
    return RankFigures(
        running=_count(known.get("running")),
        waiting=_count(known.get("waiting")),
        usage=None if usage is None else min(1.0, usage),
        hit_rate=None if "hit_rate" not in known else min(1.0, known["hit_rate"]),
        active_blocks=_count(active),
        total_blocks=_count(total_blocks),
        counters=None if queries is None or hits is None else RankCounters(queries, hits),
    )


def _count(value: float | None) -> int | None:
    return None if value is None or not 0 <= value <= 2**53 else round(value)
