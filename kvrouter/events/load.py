"""Load reports: how busy one rank of one worker is, as it travels beside the cache events.

A report is a state, not an event: the newest one replaces all before it, and losing one costs nothing but age. The
fields and their names are those of Dynamo's `ForwardPassMetrics`, so its consumers read ours; what a sender does not
know is None. Pure: no clocks, no sockets. docs/load-reports.md is its page.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal, cast

import msgpack

from kvrouter.errors import WireError
from kvrouter.events.model import Source

__all__ = [
    "KV_METRICS_TOPIC",
    "LOAD_BYTES_MAX",
    "LoadOutbox",
    "LoadReport",
    "decode_load",
    "encode_load",
    "load_from_record",
    "load_record",
]

KV_METRICS_TOPIC: Final = "kv_metrics"
"""The topic, subject or stream suffix of load reports on every transport."""

LOAD_BYTES_MAX: Final = 16 * 1024
WORKER_ID_CHARACTERS_MAX: Final = 256
_RANK_MAX: Final = 2**32 - 1
_COUNT_MAX: Final = 2**53
_SHARES: Final = frozenset({"gpu_cache_usage_perc", "gpu_prefix_cache_hit_rate"})
_GROUPS: Final = {
    "worker_stats": (
        "request_active_slots",
        "request_total_slots",
        "num_requests_waiting",
        "prefill_tokens_waiting",
    ),
    "kv_stats": ("kv_active_blocks", "kv_total_blocks", "gpu_cache_usage_perc", "gpu_prefix_cache_hit_rate"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """The load of one rank at `timestamp`, in seconds since the epoch; None is "not known".

    `request_active_slots` are running requests, of `request_total_slots` that may run at once;
    `prefill_tokens_waiting` are prompt tokens that wait to be computed. `kv_active_blocks` of `kv_total_blocks` are in
    use. The two shares are from 0 to 1, whatever their names say.
    """

    worker_id: str
    rank: int = 0
    timestamp: float = 0.0
    request_active_slots: int | None = None
    request_total_slots: int | None = None
    num_requests_waiting: int | None = None
    prefill_tokens_waiting: int | None = None
    kv_active_blocks: int | None = None
    kv_total_blocks: int | None = None
    gpu_cache_usage_perc: float | None = None
    gpu_prefix_cache_hit_rate: float | None = None

    @property
    def source(self) -> Source:
        """Whose load it is."""
        return Source(self.worker_id, self.rank)

    @property
    def says_anything(self) -> bool:
        """Whether any figure is known."""
        return any(getattr(self, name) is not None for group in _GROUPS.values() for name in group)


def load_record(report: LoadReport) -> dict[str, object]:
    """Return a report as the nested record that travels; figures that are not known are left out."""
    data = {
        group: {name: getattr(report, name) for name in names if getattr(report, name) is not None}
        for group, names in _GROUPS.items()
    }
    data["worker_stats"]["data_parallel_rank"] = report.rank
    return {"worker_id": report.worker_id, "timestamp": report.timestamp, "data": data}


def encode_load(report: LoadReport, *, encoding: Literal["msgpack", "json"] = "msgpack") -> bytes:
    """Encode one report; `decode_load` reads both encodings.

    Raises:
        WireError: a field is out of bounds, so that no reader would take it.
    """
    record = load_record(report)
    if load_from_record(record) != report:
        raise WireError("a figure of the load report is out of its bounds", reason="bad_load")
    if encoding == "json":
        return json.dumps(record, separators=(",", ":")).encode()
    return cast("bytes", msgpack.packb(record))


def decode_load(payload: bytes) -> LoadReport:
    """Decode one report, in either encoding.

    Unknown fields are passed over, and a figure that cannot be meant (negative, not a number) counts as not known.

    Raises:
        WireError: it is too long, not a record, or does not say whose load it is. Nothing else is ever raised.
    """
    if len(payload) > LOAD_BYTES_MAX:
        raise WireError(f"a load report of {len(payload)} bytes exceeds {LOAD_BYTES_MAX}", reason="too_large")
    try:
        if payload[:1] == b"{":
            record: object = json.loads(payload)
        else:
            record = msgpack.unpackb(payload, use_list=False, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError("a load report is neither JSON nor msgpack", reason="not_msgpack") from error
    return load_from_record(record)


def load_from_record(record: object) -> LoadReport:
    """Read a decoded record; figures may stand in their groups, in `data`, or beside `worker_id`.

    Raises:
        WireError: it is not a record, or does not say whose load it is.
    """
    if not isinstance(record, Mapping):
        raise WireError("a load report is a record", reason="bad_load")
    flat = _flattened(record)
    worker_id, rank = record.get("worker_id"), flat.get("data_parallel_rank", flat.get("rank", 0))
    if isinstance(worker_id, int) and not isinstance(worker_id, bool):
        worker_id = str(worker_id)  # Dynamo numbers its workers.
    if not isinstance(worker_id, str) or not 1 <= len(worker_id) <= WORKER_ID_CHARACTERS_MAX:
        raise WireError("`worker_id` of a load report is a text that is not empty", reason="bad_worker")
    rank = 0 if rank is None else rank
    if not _is_count(rank) or cast("int", rank) > _RANK_MAX:
        raise WireError("`data_parallel_rank` of a load report is a number", reason="bad_rank")
    figures = {
        name: _figure(name, flat.get(name))
        for names in _GROUPS.values()
        for name in names
        if flat.get(name) is not None
    }
    timestamp = record.get("timestamp")
    seconds = float(cast("float", timestamp)) if _is_amount(timestamp) else 0.0
    return LoadReport(worker_id=worker_id, rank=cast("int", rank), timestamp=seconds, **figures)  # type: ignore[arg-type]


class LoadOutbox:
    """Decides when a rank's load is worth sending: once it stands still after a change, else now and then.

    For any transport. `offer` is called by the engine's thread, all else by the transport's; the newest report is all
    that is kept.

    Args:
        settle_seconds: a change is sent when no figure has changed for so long, so that an engine's step that touches
            several of them is one report.
        least_seconds: between two reports; what never stands still goes out so often.
        most_seconds: after so long an unchanged report is sent again: the publisher lives, and it is still true.
    """

    __slots__ = (
        "_changed_at",
        "_changed_first_at",
        "_least",
        "_most",
        "_offered",
        "_seen",
        "_sent",
        "_sent_at",
        "_settle",
    )

    def __init__(self, *, settle_seconds: float = 0.001, least_seconds: float = 0.1, most_seconds: float = 5.0) -> None:
        self._settle, self._least, self._most = settle_seconds, least_seconds, most_seconds
        self._offered: LoadReport | None = None
        self._seen: LoadReport | None = None
        self._sent: LoadReport | None = None
        self._sent_at = self._changed_at = -math.inf
        self._changed_first_at = math.inf
        """When the oldest change came that was not sent; infinity if there is none."""

    @property
    def latest(self) -> LoadReport | None:
        """The newest report, sent or not."""
        return self._offered

    def offer(self, report: LoadReport) -> None:
        """Take a report; an earlier one that was not sent is forgotten."""
        self._offered = report

    def take(self, now: float) -> LoadReport | None:
        """Return the report that is to be sent now, if any; `now` is monotonic seconds."""
        report = self._offered
        if report is None:
            return None
        if report is not self._seen:
            self._see(report, now)
        if now < self._due():
            return None
        self._sent, self._sent_at = report, now
        self._changed_first_at = math.inf
        return report

    def idle_seconds(self, now: float) -> float:
        """Return after how long `take` is to be called unless something is offered; infinity if never."""
        if self._offered is None:
            return math.inf
        return 0.0 if self._offered is not self._seen else max(0.0, self._due() - now)

    def _see(self, report: LoadReport, now: float) -> None:
        if self._seen is None or _figures(report) != _figures(self._seen):
            self._changed_at = now
        self._seen = report
        if self._sent is not None and _figures(report) == _figures(self._sent):
            self._changed_first_at = math.inf
        else:
            self._changed_first_at = min(self._changed_first_at, now)

    def _due(self) -> float:
        if self._changed_first_at == math.inf:
            return self._sent_at + self._most
        settled = min(self._changed_at + self._settle, self._changed_first_at + self._least)
        return max(settled, self._sent_at + self._least)


def _figures(report: LoadReport) -> tuple[object, ...]:
    return tuple(getattr(report, each.name) for each in fields(report) if each.name != "timestamp")


def _flattened(record: Mapping[object, object]) -> dict[object, object]:
    flat = dict(record)
    data = record.get("data")
    for group in (
        data,
        *(holder.get(name) for holder in (record, data) if isinstance(holder, Mapping) for name in _GROUPS),
    ):
        if isinstance(group, Mapping):
            flat.update(group)
    return flat


def _figure(name: str, value: object) -> float | int | None:
    if not _is_amount(value):
        return None
    amount = cast("float", value)
    if name in _SHARES:
        return min(float(amount), 1.0)
    return int(amount)


def _is_amount(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= cast("float", value) <= _COUNT_MAX  # A NaN is not either.


def _is_count(value: object) -> bool:
    return isinstance(value, int) and _is_amount(value)
