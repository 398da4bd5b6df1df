"""Metrics of several routers in front of one fleet; plain numbers in, families out."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import Metric

from kvrouter.routing.replicas import Elsewhere, ReplicaCounts
from kvrouter.service.metric_families import by_label, counter, gauge
from kvrouter.service.replica_state import ReplicaState, ReplicaStatistics

__all__ = ["replica_metrics"]


def replica_metrics(
    state: ReplicaState | None, shares: Sequence[tuple[tuple[str, str], Elsewhere]]
) -> Iterator[Metric]:
    """Yield them; where routers do not know of each other they are all zeros.

    `shares` are what the others have on each rank of all workers, with its labels.
    """
    counts = ReplicaCounts() if state is None else state.loads.counts
    statistics = ReplicaStatistics() if state is None else state.statistics
    known = 0 if state is None else len(state.loads)
    yield gauge("replicas", "Other routers whose bookings are known.", (), [((), known)])
    failing = float(statistics.last_error is not None)
    yield gauge("replica_store_failing", "1 while the other routers cannot be told.", (), [((), failing)])
    yield counter(
        "replica_records",
        "Records of bookings that routers tell each other.",
        ("event",),
        by_label(
            {
                "told": statistics.told,
                "not_told": statistics.failed,
                "taken": counts.taken,
                "outdated": counts.outdated,
                "refused": sum(counts.refused.values()),
            }
        ),
    )
    refused = by_label(counts.refused)
    yield counter("replica_records_refused", "Records that were refused, by the wrong field.", ("field",), refused)
    gone = {"silent": counts.expired, "left": counts.left}
    yield counter("replicas_gone", "Other routers that were forgotten.", ("reason",), by_label(gone))
    yield counter(
        "replica_unknown_ranks", "Ranks in records that this router does not know.", (), [((), counts.unknown_ranks)]
    )
    yield counter("replica_left_out_ranks", "Ranks for which our own records had no room.", (), [((), counts.left_out)])
    for name, text, values in (
        ("requests", "Requests that other routers have booked on a rank.", [each.requests for _, each in shares]),
        ("prefill_tokens", "Their prompt tokens to compute there.", [each.prefill_tokens for _, each in shares]),
        ("decode_blocks", "KV blocks that they occupy there.", [each.decode_blocks for _, each in shares]),
    ):
        rows = [(labels, float(value)) for (labels, _), value in zip(shares, values, strict=True)]
        yield gauge(f"rank_elsewhere_{name}", text, ("worker", "rank"), rows)
