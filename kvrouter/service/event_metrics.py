"""The event plane's part of `/metrics`: sources, workers' own reports of their load, and kept state."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import Metric

from kvrouter.service.load_reports import LoadReports
from kvrouter.service.metric_families import by_label, counter, gauge
from kvrouter.service.state_keeper import KeeperStatistics, StateKeeper

__all__ = ["plane_metrics", "source_metrics"]

_SOURCE_STATES = ("live", "replaying", "suspect", "predicted")
_SOURCE_COUNTERS = {
    "applied_batches": "Event batches applied.",
    "gaps": "Gaps found in the numbers of event batches.",
    "gaps_lost": "Gaps that no replay filled, so that the rank's blocks were forgotten.",
    "duplicates": "Event batches that had been applied before.",
    "restarts": "Engine restarts seen in the events.",
    "quarantined": "Event batches that could not be read.",
    "snapshots_applied": "Snapshots of a publisher's whole state that were taken over.",
    "snapshots_missed": "Snapshots that were wanted and could not be had.",
    "snapshots_refused": "Snapshots that could not be used.",
    "digests_matched": "Publishers' digests that confirmed what is known.",
    "digest_mismatches": "Publishers' digests that disproved what is known.",
    "orphans_dropped": "Blocks given up because their parent was never announced.",
    "unresolved_dropped": "Blocks given up because their tokens were never announced.",
}
_SOURCE_GAUGES = {
    "lag": "Event batches known to exist beyond the applied ones.",
    "orphans": "Blocks that wait for their parent.",
    "unresolved": "Blocks that wait for their tokens.",
    "buffered_batches": "Event batches that wait for a replay.",
    "last_event_age": "Time since the last event.",
}
_TRANSPORT_COUNTERS = {
    "messages": "Event messages received.",
    "bytes": "Bytes of event messages received.",
    "malformed": "Event messages that are not of the wire.",
    "connects": "Event connections made.",
    "disconnects": "Event connections lost.",
    "replays": "Replays asked for.",
    "replays_failed": "Replays that failed.",
    "tail_losses": "Lost last messages found by asking.",
}
_LOAD_GAUGES = {
    "request_active_slots": "Running requests, as the worker says.",
    "request_total_slots": "Requests that may run at once, as the worker says.",
    "num_requests_waiting": "Waiting requests, as the worker says.",
    "prefill_tokens_waiting": "Prompt tokens that wait to be computed, as the worker says.",
    "kv_active_blocks": "KV blocks in use, as the worker says.",
    "kv_total_blocks": "KV blocks there are, as the worker says.",
    "gpu_cache_usage_perc": "Share of the KV cache in use, 0 to 1, as the worker says.",
    "gpu_prefix_cache_hit_rate": "Share of prompt tokens found cached, 0 to 1, as the worker says.",
}


def source_metrics(rows_of_sources: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Yield the families of `GET /sources`."""
    labels = ("worker", "rank")
    sources = [((row["worker_id"], str(row["rank"])), row) for row in rows_of_sources]
    yield gauge(
        "source_state",
        "1 for the state that an event source is in.",
        (*labels, "state"),
        [((*name, state), float(row["state"] == state)) for name, row in sources for state in _SOURCE_STATES],
    )
    for field, text in _SOURCE_GAUGES.items():
        suffix = "_seconds" if field == "last_event_age" else ""
        rows = [(name, float(row[field])) for name, row in sources if row.get(field) is not None]
        yield gauge(f"source_{field}{suffix}", text, labels, rows)
    for counters in (_SOURCE_COUNTERS, _TRANSPORT_COUNTERS):
        for field, text in counters.items():
            rows = [(name, float(row[field])) for name, row in sources if row.get(field) is not None]
            yield counter(f"source_{field}", text, labels, rows)
    for field, text in (
        ("skipped", "Events that could not be read, by what was wrong."),
        ("ignored", "Events that mean nothing to routing, by what they were."),
    ):
        totals: Counter[str] = Counter()
        for _, row in sources:
            totals.update(row[field])
        yield counter(f"{field}_events", text, ("reason",), by_label(totals))


def plane_metrics(loads: LoadReports, keeper: StateKeeper | None) -> Iterator[Metric]:
    """Yield what workers say of their load, and how the keeping of what is known goes."""
    labels = ("worker", "rank")
    reports = [((report.worker_id, str(report.rank)), report, age) for report, age in loads.rows()]
    for field, text in _LOAD_GAUGES.items():
        rows = [(name, float(value)) for name, report, _ in reports if (value := getattr(report, field)) is not None]
        yield gauge(f"reported_{field}", text, labels, rows)
    rows = [(name, age) for name, _, age in reports]
    yield gauge("load_report_age_seconds", "Time since a rank's last report of its load.", labels, rows)
    yield counter("load_polls", "Questions to workers how busy they are.", (), [((), loads.polls)])
    yield counter("load_polls_failed", "Vain ones, by reason.", ("reason",), by_label(loads.failures))
    told = {"taken": loads.taken, "refused": loads.refused}
    yield counter("load_reports", "Load reports that came beside events, by outcome.", ("outcome",), by_label(told))
    statistics = KeeperStatistics() if keeper is None else keeper.statistics
    outcomes = {"saved": statistics.saved, "not_leader": statistics.not_leader, "failed": statistics.failed}
    yield counter("snapshot_saves", "Attempts to keep what is known, by outcome.", ("outcome",), by_label(outcomes))
    yield counter("snapshot_load_failures", "Kept states that could not be used.", (), [((), statistics.load_failed)])
    yield gauge("snapshot_last_saved_seconds", "When it was kept last.", (), [((), statistics.last_saved_at)])
    yield gauge("snapshot_last_saved_bytes", "Its size then.", (), [((), statistics.last_saved_bytes)])
    yield gauge(
        "snapshot_restored_blocks", "Blocks known from it since the start.", (), [((), statistics.restored_blocks)]
    )
