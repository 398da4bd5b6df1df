"""Asks every worker, again and again, whether it is alive and what it serves.

One task looks at which worker is due and starts its check as a child task; there is no task per worker, so adding and
removing workers is only a matter of the registry. A check is `GET /health` (an engine without it answers 404: then
`GET /v1/models` must do), followed by `GET /v1/models`. What follows from the answers is `workers.py`.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from kvrouter.service.logs import log_event
from kvrouter.service.proxy import UpstreamError
from kvrouter.service.workers import Worker, WorkerRegistry

__all__ = ["Fetch", "FetchedResponse", "HealthMonitor"]

STARTING_INTERVAL_SECONDS = 0.25
STARTING_INTERVAL_GROWTH = 1.5
JITTER_SHARE = 0.1
MODELS_BYTES_MAX = 1024 * 1024
MODEL_NAME_CHARACTERS_MAX = 512
CARD_BRACKETS_MAX = 256
_NO_HEALTH_ROUTE = frozenset({404, 405, 501})

_log = logging.getLogger("kvrouter.health")


class FetchedResponse(Protocol):
    """What a check reads of an answer."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def body(self) -> bytes:
        """The whole body."""
        ...


class Fetch(Protocol):
    """A small GET to a worker; raises UpstreamError when there is no whole answer."""

    async def __call__(self, worker: Worker, path: str, *, timeout_seconds: float, max_bytes: int) -> FetchedResponse:
        """Return the answer."""
        ...


class HealthMonitor:
    """Runs the checks. `run` never returns by itself; cancel it."""

    def __init__(
        self,
        registry: WorkerRegistry,
        fetch: Fetch,
        *,
        interval_seconds: float,
        timeout_seconds: float,
        clock: Callable[[], float],
        jitter: random.Random,
    ) -> None:
        self._registry, self._fetch = registry, fetch
        self._interval, self._timeout = interval_seconds, timeout_seconds
        self._clock, self._jitter = clock, jitter
        self._checking: set[str] = set()

    async def run(self) -> None:
        """Check whoever is due, sleep until the next one is, for ever."""
        async with asyncio.TaskGroup() as checks:
            while True:
                now = self._clock()
                for worker in self._due(now):
                    self._checking.add(worker.spec.worker_id)
                    checks.create_task(self._check(worker), name=f"check {worker.spec.worker_id}")
                await self._sleep(now)

    def change(self, *, interval_seconds: float, timeout_seconds: float) -> None:
        """Look as often as this; who would be looked at only after that is looked at then."""
        self._interval, self._timeout = interval_seconds, timeout_seconds
        latest = self._clock() + interval_seconds
        for worker in self._registry:
            worker.next_check_at = min(worker.next_check_at, max(latest, worker.ejected_until))
        self._registry.check_due.set()

    def _due(self, now: float) -> list[Worker]:
        return [
            worker
            for worker in self._registry
            if worker.endpoint is not None
            and worker.next_check_at <= now
            and worker.spec.worker_id not in self._checking
        ]

    async def _sleep(self, now: float) -> None:
        """Wait until the next check is due, or somebody asks for one earlier."""
        due = [
            worker.next_check_at
            for worker in self._registry
            if worker.endpoint is not None and worker.spec.worker_id not in self._checking
        ]
        seconds = max(0.0, min(due, default=now + self._interval) - now)
        self._registry.check_due.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._registry.check_due.wait()
        except TimeoutError:
            pass

    async def _check(self, worker: Worker) -> None:
        generation = worker.spec
        error: str | None
        cards: list[dict[str, Any]] | None
        try:
            error, cards = await self._ask(worker)
        except Exception as bug:  # noqa: BLE001 - supervised edge: one worker's answer must not end all checks
            error, cards = f"the check failed: {type(bug).__name__}: {bug}", None
            log_event(_log, logging.ERROR, "check_error", worker=worker.spec.worker_id, error=repr(bug))
        finally:
            self._checking.discard(worker.spec.worker_id)
            self._registry.check_due.set()
        now = self._clock()
        if self._registry.get(worker.spec.worker_id) is not worker or worker.spec is not generation:
            return  # removed or changed meanwhile: the answer is about something else
        if error is not None:
            self._registry.check_failed(worker, error, now=now)
        else:
            if cards is not None:
                self._registry.models_found(worker, cards, now=now)
            self._registry.check_passed(worker, now=now)
        worker.next_check_at = max(now + self._next_interval(worker), worker.ejected_until)

    async def _ask(self, worker: Worker) -> tuple[str | None, list[dict[str, Any]] | None]:
        """Return what is wrong, or None and the models if the worker told them."""
        try:
            health = await self._get(worker, "/health", max_bytes=64 * 1024)
            if health.status not in _NO_HEALTH_ROUTE and health.status >= 300:
                return f"GET /health answered {health.status}", None
            models = await self._get(worker, "/v1/models", max_bytes=MODELS_BYTES_MAX)
        except UpstreamError as error:
            return str(error), None
        if health.status in _NO_HEALTH_ROUTE and models.status != 200:
            return f"GET /health answered {health.status} and GET /v1/models {models.status}", None
        return None, _cards(models)

    async def _get(self, worker: Worker, path: str, *, max_bytes: int) -> FetchedResponse:
        return await self._fetch(worker, path, timeout_seconds=self._timeout, max_bytes=max_bytes)

    def _next_interval(self, worker: Worker) -> float:
        """Look often at a worker that is starting, so that it is found as soon as it is there."""
        interval = self._interval
        if worker.health == "starting":
            growth = STARTING_INTERVAL_GROWTH ** min(worker.failures_in_row, 32)
            interval = min(interval, STARTING_INTERVAL_SECONDS * growth)
        return interval * self._jitter.uniform(1 - JITTER_SHARE, 1 + JITTER_SHARE)


class _Listing(msgspec.Struct):
    """The answer to `GET /v1/models`; its entries are read one by one."""

    data: list[msgspec.Raw]


_decode_listing = msgspec.json.Decoder(_Listing).decode


def _cards(response: FetchedResponse) -> list[dict[str, Any]] | None:
    """The entries of `/v1/models`, or None where the answer is not such a list.

    Entries are told on to our own clients. What could not be written again, or only just, is left out.
    """
    if response.status != 200:
        return None
    try:
        entries = _decode_listing(response.body).data
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    cards = (_card(bytes(entry)) for entry in entries)
    return [card for card in cards if card is not None]


def _card(entry: bytes) -> dict[str, Any] | None:
    """One entry that names a model; None for any other, or one that is nested so deeply that it can only be hostile."""
    if entry.count(b"[") + entry.count(b"{") > CARD_BRACKETS_MAX:
        return None
    try:
        card = msgspec.json.decode(entry)
    except (msgspec.MsgspecError, ValueError):
        return None
    name = card.get("id") if isinstance(card, dict) else None
    return card if isinstance(name, str) and 1 <= len(name) <= MODEL_NAME_CHARACTERS_MAX else None
