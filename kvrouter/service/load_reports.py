"""Asks workers how busy they are: their own Prometheus page, or our `/kv_metrics` where nothing else is there.

Keeps the newest `LoadReport` of every rank and how old it is; what the figures are for is others' to decide. One task
looks at who is due and asks each as a child task, as `health.py` does. Reports that come over an event plane are
handed to `take` and count like asked ones; who tells its load that way is not asked. The names on engines' pages are
`prometheus_load.py`.
"""

import asyncio
import dataclasses
import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from kvrouter.errors import WireError
from kvrouter.events import Source
from kvrouter.events.load import LoadReport, load_from_record
from kvrouter.service.health import Fetch, FetchedResponse
from kvrouter.service.logs import log_event
from kvrouter.service.prometheus_load import RankCounters, RankFigures, read_page
from kvrouter.service.proxy import UpstreamError
from kvrouter.service.workers import Worker, WorkerRegistry

__all__ = ["LoadReports", "LoadRow", "report_of"]

PAGE_BYTES_MAX: Final = 8 * 1024 * 1024
"""An engine with many adapters and histograms shows a megabyte."""
REPORTS_MAX: Final = 1024
JITTER_SHARE: Final = 0.1
SLOWER_MOST: Final = 16.0
"""A worker that cannot be asked is asked ever more seldom, down to every so many intervals."""
TOLD_SECONDS: Final = 12.0
"""A worker of which every rank told its load so lately is not asked; our publishers do so every five seconds."""
PATHS: Final = ("/metrics", "/kv_metrics", "/prometheus/metrics")
"""Asked in this order until one of them tells a load; then that one alone. The last is trtllm-serve's."""

_log = logging.getLogger("kvrouter.loads")


class LoadRow(NamedTuple):
    """A report and how many seconds ago it came."""

    report: LoadReport
    age: float


class _Asked:
    """What is remembered of one worker between two questions."""

    __slots__ = ("counters", "due", "failures_in_row", "paths")

    def __init__(self, due: float) -> None:
        self.due = due
        self.paths: tuple[str, ...] = PATHS
        self.failures_in_row = 0
        self.counters: dict[int, RankCounters] = {}


class LoadReports:
    """The newest report of every rank. `run` never returns by itself; cancel it. All else is plain and cheap.

    Args:
        registry: who there is; workers come and go without our being told.
        get: a small GET to a worker, bounded in time and size; raises UpstreamError.
        interval_seconds: between two questions to one worker, give or take a tenth.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        get: Fetch,
        *,
        interval_seconds: float,
        timeout_seconds: float,
        clock: Callable[[], float],
        jitter: random.Random,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry, self._get = registry, get
        self._interval, self.timeout_seconds = interval_seconds, timeout_seconds
        self._clock, self._jitter, self._wall_clock = clock, jitter, wall_clock
        self._asked: dict[str, _Asked] = {}
        self._asking: set[str] = set()
        self._reports: dict[Source, tuple[float, LoadReport]] = {}
        self._told: dict[Source, float] = {}
        self.polls = self.taken = self.refused = 0
        self.failures: Counter[str] = Counter()
        """Vain questions by reason: `unreachable`, `no_load`, `bug`."""

    def latest(self, source: Source) -> LoadReport | None:
        """Return the newest report of a rank, however old."""
        known = self._reports.get(source)
        return None if known is None else known[1]

    def age(self, source: Source) -> float | None:
        """Return how many seconds ago the newest report of a rank came."""
        known = self._reports.get(source)
        return None if known is None else max(0.0, self._clock() - known[0])

    def rows(self) -> Iterator[LoadRow]:
        """Yield the newest report of every rank that has one."""
        self._forget_absent()  # Without questions nobody else does.
        now = self._clock()
        for came, report in self._reports.values():
            yield LoadRow(report, max(0.0, now - came))

    def as_json(self) -> list[dict[str, Any]]:
        """Return what an admin API shows: one row per rank, with the age of what it says."""
        return [{**dataclasses.asdict(report), "age_seconds": age} for report, age in self.rows()]

    def take(self, report: LoadReport) -> None:
        """Take a report that came over an event plane.

        One that says nothing is refused and counted, and so is that of a rank that nobody has.
        """
        worker = self._registry.get(report.worker_id)
        is_known = worker is not None and 0 <= report.rank - worker.spec.first_rank < worker.spec.ranks
        if not is_known or not report.says_anything:
            self.refused += 1
            return
        self.taken += 1
        now = self._told[report.source] = self._clock()
        self._reports[report.source] = (now, report)

    async def run(self) -> None:
        """Ask whoever is due, then rest, for ever."""
        async with asyncio.TaskGroup() as asking:
            while True:
                now = self._clock()
                self._forget_absent()
                for worker in self._due(now):
                    self._asking.add(worker.spec.worker_id)
                    asking.create_task(self._ask(worker), name=f"load {worker.spec.worker_id}")
                await asyncio.sleep(self._interval / 4)

    def _due(self, now: float) -> list[Worker]:
        due = []
        for worker in self._registry:
            name = worker.spec.worker_id
            # The first question comes at any time within an interval: a fleet that starts at once is not asked at once.
            asked = self._asked.setdefault(name, _Asked(now + self._jitter.random() * self._interval))
            if (
                worker.endpoint is not None
                and worker.health == "ready"
                and asked.due <= now
                and name not in self._asking
                and not self._tells(worker, now)
            ):
                due.append(worker)
        return due

    def _tells(self, worker: Worker, now: float) -> bool:
        """Whether every rank of a worker told its load lately without being asked."""
        spec = worker.spec
        ranks = (Source(spec.worker_id, spec.first_rank + position) for position in range(spec.ranks))
        return all(now - self._told.get(source, -math.inf) <= TOLD_SECONDS for source in ranks)

    def _forget_absent(self) -> None:
        """What a worker said goes with it, as do ranks that it no longer has."""
        for name in [name for name in self._asked if self._registry.get(name) is None]:
            del self._asked[name]
        for source in list(self._reports):
            worker = self._registry.get(source.worker_id)
            if worker is None or not 0 <= source.rank - worker.spec.first_rank < worker.spec.ranks:
                del self._reports[source]
                self._told.pop(source, None)

    async def _ask(self, worker: Worker) -> None:
        name = worker.spec.worker_id
        asked = self._asked[name]
        self.polls += 1
        reason: str | None = "bug"
        try:
            reason = await self._question(worker, asked)
        except Exception as bug:  # noqa: BLE001 - supervised edge: one worker's page must not end all questions
            log_event(_log, logging.ERROR, "load_report_error", worker=name, error=repr(bug))
        finally:
            self._asking.discard(name)
        if reason is None:
            asked.failures_in_row = 0
        else:
            self.failures[reason] += 1
            asked.failures_in_row += 1
        slower = min(SLOWER_MOST, 2.0 ** min(asked.failures_in_row, 16))
        pause = self._interval * slower * self._jitter.uniform(1 - JITTER_SHARE, 1 + JITTER_SHARE)
        asked.due = self._clock() + pause

    async def _question(self, worker: Worker, asked: _Asked) -> str | None:
        """Ask a worker for its load wherever it may tell it; returns why there is none, or None."""
        for path in asked.paths:
            try:
                answer = await self._get(worker, path, timeout_seconds=self.timeout_seconds, max_bytes=PAGE_BYTES_MAX)
            except UpstreamError:
                asked.paths = PATHS
                return "unreachable"
            if self._registry.get(worker.spec.worker_id) is not worker:
                return None  # removed or replaced meanwhile: the answer is about something else
            reports = self._reports_of(worker, path, asked, answer)
            if reports:
                now = self._clock()
                for report in reports:
                    self._reports[report.source] = (now, report)
                asked.paths = (path,)
                return None
        asked.paths = PATHS
        return "no_load"

    def _reports_of(self, worker: Worker, path: str, asked: _Asked, answer: FetchedResponse) -> list[LoadReport]:
        if answer.status != 200:
            return []
        if path == "/kv_metrics":
            return _own_reports(worker, answer.body)
        first, ranks, now = worker.spec.first_rank, worker.spec.ranks, self._wall_clock()
        reports = []
        for number, figures in read_page(answer.body).items():
            # A worker of one rank may count it as it likes; of several, from its first one or from 0.
            rank = first if ranks == 1 else number if first <= number < first + ranks else first + number
            if first <= rank < first + ranks:
                reports.append(report_of(worker.spec.worker_id, rank, figures, asked.counters, now))
        return [report for report in reports if report.says_anything]


def report_of(
    worker_id: str, rank: int, figures: RankFigures, counters: dict[int, RankCounters], now: float
) -> LoadReport:
    """Make a report of one rank's figures; its hit rate is that since the last question, which the engine counts on."""
    hit_rate = figures.hit_rate
    if hit_rate is None and figures.counters is not None:
        hit_rate = figures.counters.hit_rate_since(counters.get(rank))
        counters[rank] = figures.counters
    usage, total = figures.usage, figures.total_blocks
    active = figures.active_blocks
    if active is None and usage is not None and total is not None:
        active = round(usage * total)
    return LoadReport(
        worker_id=worker_id,
        rank=rank,
        timestamp=now,
        request_active_slots=figures.running,
        num_requests_waiting=figures.waiting,
        kv_active_blocks=active,
        kv_total_blocks=total,
        gpu_cache_usage_perc=usage,
        gpu_prefix_cache_hit_rate=hit_rate,
    )


def _own_reports(worker: Worker, body: bytes) -> list[LoadReport]:
    """Read a publisher's `/kv_metrics`; what is not of this worker's ranks is left out."""
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return []
    records = record.get("reports") if isinstance(record, dict) else None
    if not isinstance(records, list):
        return []
    reports = []
    for each in records[:REPORTS_MAX]:
        try:
            report = load_from_record(each)
        except WireError:
            continue
        # The publisher may know itself by another name; whom we asked is what counts.
        report = dataclasses.replace(report, worker_id=worker.spec.worker_id)
        if report.says_anything and 0 <= report.rank - worker.spec.first_rank < worker.spec.ranks:
            reports.append(report)
    return reports
