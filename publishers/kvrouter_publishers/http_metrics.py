"""What a publisher serves under `/kv_metrics`: load reports and its own counters, as JSON or as Prometheus' text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

from kvrouter.events import Source
from kvrouter.events.load import LoadReport, load_record

__all__ = ["metrics_record", "metrics_text"]

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NOT_FIGURES = frozenset({"worker_id", "rank"})
_STATES = frozenset(
    {"running", "next_sequence", "outbox_batches", "replayable_batches", "replayable_bytes", "connections", "polls"}
)


def metrics_record(reports: Iterable[LoadReport]) -> dict[str, object]:
    """Return the JSON form."""
    return {"reports": [load_record(report) for report in reports]}


def metrics_text(reports: Sequence[LoadReport], statistics: Mapping[Source, Mapping[str, int]]) -> bytes:
    """Return the text form: one gauge per figure of a report, and what the publishers counted."""
    lines: list[str] = []
    for name in (each.name for each in fields(LoadReport) if each.name not in _NOT_FIGURES):
        known = [(report.source, getattr(report, name)) for report in reports if getattr(report, name) is not None]
        lines += _family(f"kvrouter_load_{name}", "gauge", known)
    names = dict.fromkeys(name for counts in statistics.values() for name in counts)
    for name in names:
        rows = [(source, counts[name]) for source, counts in statistics.items() if name in counts]
        kind, suffix = ("gauge", "") if name in _STATES else ("counter", "_total")
        lines += _family(f"kvrouter_publisher_{name}{suffix}", kind, rows)
    return ("\n".join(lines) + "\n").encode()


def _family(name: str, kind: str, rows: Sequence[tuple[Source, float]]) -> list[str]:
    if not rows:
        return []
    return [f"# TYPE {name} {kind}", *(f"{name}{_labels(source)} {value}" for source, value in rows)]


def _labels(source: Source) -> str:
    worker = source.worker_id.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{{worker_id="{worker}",rank="{source.rank}"}}'
