"""Metrics of split requests and of conversations; plain numbers in, families out."""

from collections.abc import Iterator

from prometheus_client.core import Metric

from kvrouter.routing.sessions import SessionCounts, SessionTable
from kvrouter.service.disaggregation import SplitCounts, SplitSender
from kvrouter.service.metric_families import by_label, counter, gauge, histogram

__all__ = ["placement_metrics"]


def placement_metrics(splits: SplitSender | None, sessions: SessionTable | None) -> Iterator[Metric]:
    """Yield both; what is turned off is all zeros."""
    counts = SplitCounts() if splits is None else splits.counts
    yield counter(
        "split_verdicts",
        "Whether requests were split between prefill and decode workers, and if not, why.",
        ("verdict",),
        by_label(counts.verdicts),
    )
    yield counter("split_prefills", "How first stages ended.", ("outcome",), by_label(counts.prefills))
    yield counter(
        "split_fallbacks",
        "Split requests whose prompt was computed by the decode worker after all.",
        (),
        [((), counts.fallbacks)],
    )
    active = 0 if splits is None else len(splits)
    yield gauge("split_prefills_active", "First stages under way.", (), [((), active)])
    yield histogram("split_prefill_seconds", "How long first stages took.", counts.seconds)
    bound = {} if sessions is None else sessions.by_worker()
    yield gauge("sessions", "Conversations bound to a rank.", (), [((), 0 if sessions is None else len(sessions))])
    yield gauge("worker_sessions", "Conversations bound to a worker.", ("worker",), by_label(bound))
    events = (SessionCounts() if sessions is None else sessions.counts).as_labels()
    yield counter("session_events", "What became of conversations.", ("event",), by_label(events))
