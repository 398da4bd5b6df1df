"""Metrics of what was promised and predicted, and of what came of it; and the same of one rank as JSON."""

from collections.abc import Iterator
from typing import Any, Final

from prometheus_client.core import Metric

from kvrouter.routing import Router
from kvrouter.service.metric_families import counter, gauge, histogram
from kvrouter.service.traffic import TrafficCounters
from kvrouter.service.workers import WorkerRegistry

__all__ = ["audit_metrics", "audit_record"]

_COUNTERS: Final = (
    ("audited_answers", "answers", "Answers whose cached tokens a rank had promised and then told."),
    ("promised_tokens", "promised_tokens", "Cached tokens that a rank had promised for them."),
    ("kept_tokens", "kept_tokens", "Those of them that were cached."),
    ("demotions", "demotions", "Times a rank was demoted because most of what it promised was not cached."),
    ("promotions", "promotions", "Times it was believed again."),
)
_TIMES: Final = (
    ("first_tokens", "first_tokens", "First tokens of a rank whose time had been predicted."),
    ("predicted_ttft_seconds", "predicted_seconds", "Their times to first token as predicted, from the decision on."),
    ("observed_ttft_seconds", "observed_seconds", "And as they were."),
    ("ttft_error_seconds", "error_seconds", "And the differences, all taken as positive."),
)


def audit_metrics(router: Router, registry: WorkerRegistry, traffic: TrafficCounters) -> Iterator[Metric]:
    """Read everything once."""
    learning = router.learning
    ranks = [
        ((worker.spec.worker_id, str(worker.spec.first_rank + position)), dense_rank)
        for worker in registry
        for position, dense_rank in enumerate(worker.ranks)
    ]
    audits = [(labels, learning.audit.rank(dense_rank)) for labels, dense_rank in ranks]
    for name, field, text in _COUNTERS:
        rows = [(labels, float(getattr(each, field))) for labels, each in audits]
        yield counter(f"rank_{name}", text, ("worker", "rank"), rows)
    loads = [(labels, router.book.load(dense_rank)) for labels, dense_rank in ranks]
    for name, field, text in _TIMES:
        rows = [(labels, float(getattr(each, field))) for labels, each in loads]
        yield counter(f"rank_{name}", text, ("worker", "rank"), rows)
    beliefs = [(labels, load.belief) for labels, load in loads]
    yield gauge("rank_belief", "Share of what a rank promises that is believed.", ("worker", "rank"), beliefs)
    text = "Learnt: how many times longer than all ranks of its models together a rank takes for its work."
    slow = [(labels, router.learning.slowness(dense_rank)) for labels, dense_rank in ranks]
    yield gauge("rank_slowness", text, ("worker", "rank"), slow)
    text = "Times to first token from the decision on, as multiples of the predicted ones."
    yield histogram("ttft_prediction_ratio", text, traffic.ttft_ratio)


def audit_record(router: Router, dense_rank: int) -> dict[str, Any]:
    """What the admin API tells of one rank."""
    noted, load = router.learning.audit.rank(dense_rank), router.book.load(dense_rank)
    return {
        "demoted": noted.demoted,
        "belief": load.belief,
        "promised_tokens": noted.promised_tokens,
        "kept_tokens": noted.kept_tokens,
        "predicted_ttft_seconds": load.predicted_seconds,
        "observed_ttft_seconds": load.observed_seconds,
        "first_tokens": load.first_tokens,
        "slowness": router.learning.slowness(dense_rank),
    }
