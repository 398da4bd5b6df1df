"""The fleet: which workers there are, which of them may take requests, and if not, why not.

The registry is the only writer of a worker's state and tells the router and the event subscriber about every change.
It does no I/O and reads no clock: `health.py` asks the workers and reports here, the dispatcher reports what happened
to requests, the admin API and the settings add and remove. What a worker is said to be is `worker_spec.py`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from kvrouter.errors import RequestError
from kvrouter.events import Source
from kvrouter.events.endpoints import transport_of, without_password
from kvrouter.index import RANKS_MAX
from kvrouter.routing.constraints import Traits
from kvrouter.service.logs import log_event
from kvrouter.service.worker_spec import WorkerSpec, parse_worker_spec, worker_spec_from_fields
from kvrouter.service.worker_state import Worker

__all__ = [
    "EventIntake",
    "RoutingTable",
    "Worker",
    "WorkerRegistry",
    "WorkerSpec",
    "parse_worker_spec",
    "worker_spec_from_fields",
]

WORKERS_MAX = 4096
EJECTION_SECONDS_FIRST = 0.5
EJECTION_SECONDS_MAX = 30.0
LOSSES_BEFORE_EJECTION = 3

_log = logging.getLogger("kvrouter.workers")


class RoutingTable(Protocol):
    """What the registry needs of `kvrouter.routing.Router`."""

    def add_worker(
        self,
        worker_id: str,
        *,
        ranks: int,
        first_rank: int,
        models: tuple[str, ...],
        block_size: int | None,
        routable: bool,
        now: float,
    ) -> list[int]:
        """Take a worker in and return the dense numbers of its ranks."""
        ...

    def remove_worker(self, worker_id: str, *, now: float) -> None:
        """Forget the worker, its blocks and its load."""
        ...

    def set_routable(self, worker_id: str, routable: bool, *, now: float) -> None:  # noqa: FBT001 - the contract
        """Allow or forbid new requests."""
        ...

    def set_models(self, worker_id: str, models: tuple[str, ...]) -> None:
        """Say what the worker serves."""
        ...

    def set_traits(self, worker_id: str, traits: Traits) -> None:
        """Say what the worker is besides."""
        ...


class EventIntake(Protocol):
    """What the registry needs of an event subscriber; one source is one rank of one worker."""

    def add(self, source: Source, endpoint: str, *, replay_endpoint: str | None = None, topic: str = "") -> None:
        """Begin to follow a source; reconnects for ever."""
        ...

    def remove(self, source: Source) -> None:
        """Stop following it."""
        ...

    def refusal(self, endpoint: str) -> str | None:
        """Say why an endpoint cannot be followed here, or return None."""
        ...


class WorkerRegistry:
    """All workers by id. Lives on the event loop; every method is synchronous and cheap."""

    def __init__(
        self,
        *,
        routing: RoutingTable,
        events: EventIntake,
        forget_blocks: Callable[[Worker], None],
        changed: Callable[[], None],
        failures: int = 3,
        successes: int = 1,
        default_authorization: bytes | None = None,
    ) -> None:
        self._default_authorization = default_authorization
        self._routing, self._events, self._forget_blocks = routing, events, forget_blocks
        self._failures, self._successes = failures, successes
        self._told = changed
        self.workers: dict[str, Worker] = {}
        """By id, for the hot path; only the registry changes it."""
        self.check_due = asyncio.Event()
        """Set when a worker's `next_check_at` has moved closer."""
        self.version = 0
        """Grows with every change that could be seen from outside; what is derived from the fleet is cached by it."""
        self.unproxied: frozenset[str] = frozenset()
        """Selectable workers that our own data plane must not use: registered for a gateway and not known good."""
        self.prefillers: frozenset[str] = frozenset()
        """Workers that may compute prompts for others; while there are none, no request is split."""

    def judge_by(self, *, failures: int, successes: int) -> None:
        """Take other numbers of checks in a row, beginning with the next check."""
        self._failures, self._successes = failures, successes

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.workers.values())

    def __len__(self) -> int:
        return len(self.workers)

    def get(self, worker_id: object) -> Worker | None:
        """Return the worker with this id, given as text or number."""
        return self.workers.get(str(worker_id))

    def find(self, worker_id: object) -> Worker:
        """Return the worker with this id.

        Raises:
            RequestError: 404, it is not registered.
        """
        worker = self.workers.get(str(worker_id))
        if worker is None:
            raise RequestError(f"worker {worker_id} not found", status=404, code="worker_not_found", param="worker_id")
        return worker

    # -- membership --------------------------------------------------------------------------------------------------

    def upsert(self, spec: WorkerSpec, *, now: float) -> Worker:
        """Register a worker, or take a new description of a registered one; the same one again changes nothing.

        Raises:
            RequestError: the address belongs to another worker (409), or the fleet is full (422).
        """
        self._refuse_conflict(spec)
        self._refuse_transport(spec)
        worker = self.workers.get(spec.worker_id)
        if worker is not None and (worker.spec.ranks, worker.spec.first_rank, worker.spec.block_size) != (
            spec.ranks,
            spec.first_rank,
            spec.block_size,
        ):
            self.remove(spec.worker_id, now=now)
            worker = None
        if worker is None:
            worker = self._add(spec, now=now)
        else:
            self._update(worker, spec, now=now)
        self._apply(worker, now=now)
        return worker

    def remove(self, worker_id: object, *, now: float) -> Worker:
        """Forget a worker: its blocks leave the index, requests that it is answering go on.

        Raises:
            RequestError: 404, it is not registered.
        """
        worker = self.find(worker_id)
        spec = worker.spec
        for rank in spec.events:
            self._events.remove(Source(spec.worker_id, rank))
        self._routing.remove_worker(spec.worker_id, now=now)
        del self.workers[spec.worker_id]
        worker.draining = True
        self._changed()
        log_event(_log, logging.INFO, "worker_removed", worker=spec.worker_id, active=worker.active)
        return worker

    def set_draining(self, worker_id: object, *, draining: bool, now: float) -> Worker:
        """Stop or resume sending new requests; those in flight finish either way.

        Raises:
            RequestError: 404, it is not registered.
        """
        worker = self.find(worker_id)
        if worker.draining is not draining:
            worker.draining = draining
            event = "worker_draining" if draining else "worker_resumed"
            log_event(_log, logging.INFO, event, worker=worker.spec.worker_id, active=worker.active)
        self._apply(worker, now=now)
        return worker

    # -- what was observed -------------------------------------------------------------------------------------------

    def check_passed(self, worker: Worker, *, now: float) -> None:
        """A health check was answered well."""
        worker.counters.checks += 1
        worker.checked_at = now
        worker.failures_in_row = 0
        worker.successes_in_row += 1
        needed = 1 if worker.health == "starting" else self._successes
        if worker.health != "ready" and worker.successes_in_row >= needed and now >= worker.ejected_until:
            self._move(worker, "ready", None, now=now)

    def check_failed(self, worker: Worker, error: str, *, now: float) -> None:
        """A health check was refused, timed out or answered badly."""
        counters = worker.counters
        counters.checks += 1
        counters.checks_failed += 1
        worker.checked_at = now
        worker.successes_in_row = 0
        worker.failures_in_row += 1
        worker.last_error = error
        if worker.health in ("ready", "ejected") and worker.failures_in_row >= self._failures:
            self._move(worker, "unhealthy", error, now=now)
        elif worker.health == "starting" and worker.failures_in_row == 1:
            # Once: an engine that loads its weights may take minutes, and an address may be misspelt.
            log_event(_log, logging.WARNING, "worker_not_reached", worker=worker.spec.worker_id, error=error)

    def models_found(self, worker: Worker, cards: list[dict[str, Any]], *, now: float) -> None:
        """Take the entries of the worker's own `GET /v1/models`; names given at registration win."""
        cards = [card for card in cards if isinstance(card.get("id"), str)][:WORKERS_MAX]
        models = worker.spec.models or tuple(dict.fromkeys(card["id"] for card in cards))
        if tuple(cards) == worker.cards and models == worker.models:
            return
        worker.cards, worker.models = tuple(cards), models
        worker.tell_ranks()
        self._routing.set_models(worker.spec.worker_id, models)
        log_event(_log, logging.INFO, "worker_models", worker=worker.spec.worker_id, models=list(models))
        self._apply(worker, now=now)

    def connect_failed(self, worker: Worker, *, now: float) -> None:
        """A request could not reach the worker: leave it out at once, longer each time, until a check passes."""
        self._eject(worker, "connection failed", now=now)

    def upstream_lost(self, worker: Worker, *, now: float) -> None:
        """The worker closed the connection before its answer was complete: look at it now, eject if it goes on."""
        worker.losses_in_row += 1
        if worker.losses_in_row >= LOSSES_BEFORE_EJECTION:
            self._eject(worker, f"{worker.losses_in_row} answers in a row were cut short", now=now)
        else:
            self.check_soon(worker, now=now)

    def check_soon(self, worker: Worker, *, now: float) -> None:
        """Ask for a health check before its turn."""
        if worker.next_check_at > now:
            worker.next_check_at = now
            self.check_due.set()

    def answered(self, worker: Worker) -> None:
        """A request was answered: earlier failures are history."""
        worker.losses_in_row = worker.ejections_in_row = 0

    def forget_dead(self, connected: Mapping[Source, bool]) -> None:
        """Drop the blocks of workers that are unhealthy and whose events have stopped too.

        A stopped process keeps its cache and its event connection; a dead one has neither.
        """
        for worker in self.workers.values():
            if worker.health != "unhealthy" or worker.forgotten or (worker.spec.trusted and not worker.was_ready):
                continue
            sources = [
                Source(worker.spec.worker_id, worker.spec.first_rank + each) for each in range(worker.spec.ranks)
            ]
            if any(connected.get(source, False) for source in sources):
                continue
            worker.forgotten = True
            self._forget_blocks(worker)
            log_event(_log, logging.WARNING, "worker_blocks_forgotten", worker=worker.spec.worker_id)

    # -- private -----------------------------------------------------------------------------------------------------

    def _refuse_conflict(self, spec: WorkerSpec) -> None:
        for other in self.workers.values():
            if other.spec.worker_id == spec.worker_id:
                continue
            if spec.url is not None and other.spec.url == spec.url and not (spec.trusted and other.spec.trusted):
                raise RequestError(
                    f"url {spec.url} is already registered as worker {other.spec.worker_id}",
                    status=409,
                    code="duplicate_url",
                    param="url",
                )
            shared = {
                endpoint
                for endpoint in set(spec.events.values()) & set(other.spec.events.values())
                if transport_of(endpoint) == "zmq"  # Elsewhere each batch says whose it is.
            }
            if shared and spec.topic == other.spec.topic:
                raise RequestError(
                    f"event endpoint {min(shared)} already belongs to worker {other.spec.worker_id}",
                    status=409,
                    code="duplicate_event_endpoint",
                    param="kv_events_endpoint",
                )
        others = [worker for worker in self.workers.values() if worker.spec.worker_id != spec.worker_id]
        if len(others) >= WORKERS_MAX:
            raise RequestError(f"no more than {WORKERS_MAX} workers can be registered", status=422, code="fleet_full")
        if sum(len(worker.ranks) for worker in others) + spec.ranks > RANKS_MAX:
            raise RequestError(
                f"{spec.ranks} more ranks would exceed the {RANKS_MAX} that one router serves",
                status=422,
                code="fleet_full",
                param="data_parallel_size",
            )

    def _refuse_transport(self, spec: WorkerSpec) -> None:
        for endpoint in spec.events.values():
            reason = self._events.refusal(endpoint)
            if reason is not None:
                raise RequestError(
                    f"{without_password(endpoint)}: {reason}",
                    status=422,
                    code="events_not_possible",
                    param="kv_events_endpoint",
                )

    def _add(self, spec: WorkerSpec, *, now: float) -> Worker:
        ranks = self._routing.add_worker(
            spec.worker_id,
            ranks=spec.ranks,
            first_rank=spec.first_rank,
            models=spec.models,
            block_size=spec.block_size,
            routable=False,
            now=now,
        )
        worker = self.workers[spec.worker_id] = Worker(
            spec, ranks, now=now, default_authorization=self._default_authorization
        )
        self._routing.set_traits(spec.worker_id, spec.traits)
        self._follow(spec)
        self.check_due.set()
        log_event(
            _log,
            logging.INFO,
            "worker_added",
            worker=spec.worker_id,
            address=spec.address,
            ranks=spec.ranks,
            events=[without_password(endpoint) for endpoint in spec.events.values()],
        )
        return worker

    def _update(self, worker: Worker, spec: WorkerSpec, *, now: float) -> None:
        old = worker.spec
        if dict(old.fields) == dict(spec.fields):
            worker.draining = False
            return
        if (old.events, old.replay, old.topic) != (spec.events, spec.replay, spec.topic):
            for rank in old.events:
                self._events.remove(Source(old.worker_id, rank))
            self._follow(spec)
        if old.url != spec.url:
            worker.cards = ()
        worker.adopt(spec)
        worker.draining = False
        if old.url != spec.url or old.api_key != spec.api_key:
            worker.start(now)
        else:
            worker.next_check_at = now
        self.check_due.set()
        self._routing.set_models(spec.worker_id, worker.models)
        self._routing.set_traits(spec.worker_id, spec.traits)
        log_event(_log, logging.INFO, "worker_updated", worker=spec.worker_id)

    def _follow(self, spec: WorkerSpec) -> None:
        for rank, endpoint in spec.events.items():
            self._events.add(
                Source(spec.worker_id, rank), endpoint, replay_endpoint=spec.replay.get(rank), topic=spec.topic
            )

    def _eject(self, worker: Worker, error: str, *, now: float) -> None:
        if worker.health not in ("ready", "ejected") or now < worker.ejected_until:
            return
        seconds = min(EJECTION_SECONDS_FIRST * 2**worker.ejections_in_row, EJECTION_SECONDS_MAX)
        worker.ejections_in_row = min(worker.ejections_in_row + 1, 16)
        worker.counters.ejections += 1
        worker.successes_in_row = 0
        worker.ejected_until = now + seconds
        worker.next_check_at = now + seconds
        self.check_due.set()
        self._move(worker, "ejected", error, now=now)

    def _move(self, worker: Worker, health: str, error: str | None, *, now: float) -> None:
        previous, worker.health = worker.health, health
        worker.since, worker.last_error = now, error
        if health == "ready":
            worker.was_ready, worker.forgotten = True, False
        level = logging.INFO if health == "ready" else logging.WARNING
        log_event(
            _log, level, "worker_health", worker=worker.spec.worker_id, health=health, previous=previous, error=error
        )
        self._apply(worker, now=now)

    def _apply(self, worker: Worker, *, now: float) -> None:
        """Tell the router what follows from the worker's state."""
        self._routing.set_routable(worker.spec.worker_id, not worker.reasons(), now=now)
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self.unproxied = frozenset(
            each.spec.worker_id
            for each in self.workers.values()
            if each.spec.trusted and (each.endpoint is None or each.health != "ready")
        )
        self.prefillers = frozenset(
            name for name, each in self.workers.items() if each.spec.traits.role in ("prefill", "both")
        )
        self._told()
