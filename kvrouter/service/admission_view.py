"""What is told of the admission queue: `GET /queue` for people, and families of metrics.

Tenants are in `GET /queue` only: their names are clients' words, and metrics have no labels that clients choose.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import Metric

from kvrouter.routing.queue_shares import Tenant
from kvrouter.service.admission import Admission
from kvrouter.service.admission_counts import ENDS, REASONS, AdmissionCounters
from kvrouter.service.metric_families import by_label, counter, gauge, histogram

__all__ = ["admission_metrics", "admission_record"]

LISTED_MAX = 100


def admission_record(admission: Admission | None, *, now: float) -> dict[str, Any]:
    """Return the queue as JSON-ready fields; of lanes and tenants those with most waiting."""
    if admission is None:
        return {"enabled": False}
    queue, room, counters = admission.queue, admission.room, admission.counters
    settings, shares = queue.settings, queue.shares
    tenants = sorted(shares, key=lambda each: (-each.requests, -each.served_tokens, each.name))
    lanes = sorted(admission.lanes(), key=lambda each: each["requests"], reverse=True)
    return {
        "enabled": True,
        "order": settings.order.kind,
        "waiting": {
            "requests": queue.requests,
            "bytes": queue.bytes,
            "tokens": queue.tokens,
            "oldest_seconds": round(admission.oldest_seconds(now), 3),
        },
        "limits": {
            "rank_requests_max": room.requests_max,
            "rank_prefill_tokens_max": room.prefill_tokens_max,
            "ttft_seconds_max": None if admission.ttft_seconds_max == float("inf") else admission.ttft_seconds_max,
            "requests_max": settings.requests_max,
            "bytes_max": settings.bytes_max,
            "seconds_max": admission.wait_seconds_max,
            "quantum_tokens": settings.quantum_tokens,
            "tenants_max": settings.tenants_max,
        },
        "counts": {"queued": counters.queued, "ended": dict(counters.ended), "shed": dict(counters.shed)},
        "lanes": lanes[:LISTED_MAX],
        "tenants": [_tenant(each, shares.counter(each)) for each in tenants[:LISTED_MAX]],
        "tenants_known": len(shares),
    }


def admission_metrics(admission: Admission | None, *, now: float) -> Iterator[Metric]:
    """Yield the queue's families; all zero where there is none."""
    queue = None if admission is None else admission.queue
    counters = AdmissionCounters() if admission is None else admission.counters
    oldest = 0.0 if admission is None else admission.oldest_seconds(now)
    for name, text, value in (
        ("queue_requests", "Requests that wait for a rank with room.", 0 if queue is None else queue.requests),
        ("queue_bytes", "Bytes of the bodies that wait.", 0 if queue is None else queue.bytes),
        ("queue_tokens", "Prefill tokens that those who wait will be charged.", 0 if queue is None else queue.tokens),
        ("queue_tenants", "Tenants that the queue knows now.", 0 if queue is None else len(queue.shares)),
        ("queue_oldest_seconds", "How long the longest waiting request has waited.", oldest),
    ):
        yield gauge(name, text, (), [((), value)])
    yield counter("queued_requests", "Requests that had to wait.", (), [((), counters.queued)])
    ended = {how: counters.ended[how] for how in ENDS}
    yield counter("queue_ends", "How waiting ended.", ("how",), by_label(ended))
    shed = {reason: counters.shed[reason] for reason in REASONS}
    yield counter("shed_requests", "Requests turned away before they cost anything.", ("reason",), by_label(shed))
    yield histogram("queue_wait_seconds", "How long those waited that were admitted.", counters.wait_seconds)


def _tenant(tenant: Tenant, counter: float) -> dict[str, Any]:
    return {
        "tenant": tenant.name,
        "weight": tenant.weight,
        "requests": tenant.requests,
        "tokens": tenant.tokens,
        "bytes": tenant.bytes,
        "deficit_tokens": round(counter),
        "served_tokens": tenant.served_tokens,
    }
