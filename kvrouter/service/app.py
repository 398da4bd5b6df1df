"""The composition root: builds every part of the router process and gives each what it needs.

Nothing is decided here, and nothing is opened or started: that is `process.py`. Only these two know `Settings`.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from kvrouter.errors import RequestError, SettingsError
from kvrouter.events import Source
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest, IngestLimits
from kvrouter.routing import Router
from kvrouter.routing.audit import Verdict
from kvrouter.routing.disaggregation import SplitPlanner
from kvrouter.service.admin import GuardedApplication, WorkerRecords, build_admin
from kvrouter.service.admission import Admission
from kvrouter.service.admission_setup import admission_bounds
from kvrouter.service.applying import default_constraints, prepare, proxy_limits, routing_settings, session_table
from kvrouter.service.auth import Authenticator
from kvrouter.service.configuration.desk import ConfigDesk
from kvrouter.service.configuration.following import open_config_key
from kvrouter.service.configuration.running import RunningSettings
from kvrouter.service.decisions import DecisionRing
from kvrouter.service.disaggregation import SplitSender
from kvrouter.service.dispatcher import ModelRoutes, RequestDispatcher
from kvrouter.service.dispatchers import Dispatchers
from kvrouter.service.embedded import EmbeddedServer
from kvrouter.service.event_transports import event_subscriber, nats_options, purge_streams, stream_positions
from kvrouter.service.event_watch import EventWatch
from kvrouter.service.fleet_view import FleetViews
from kvrouter.service.health import HealthMonitor
from kvrouter.service.listening import listen
from kvrouter.service.load_reports import LoadReports
from kvrouter.service.logs import log_event
from kvrouter.service.metrics import Metrics, MetricsSources
from kvrouter.service.placement import PlacementReader
from kvrouter.service.planes.request_planes import RequestPlanes
from kvrouter.service.planes.ways import PlaneChoices
from kvrouter.service.probes import ProbeRoutes
from kvrouter.service.promises import PromiseKeeper
from kvrouter.service.prompts import PrefixCache, PromptResolver, RequestReader, model_paths
from kvrouter.service.proxy import Endpoint, ProxyServer, UpstreamPool
from kvrouter.service.questions import WorkerQuestions
from kvrouter.service.rates import client_rates
from kvrouter.service.replica_state import open_replica_state
from kvrouter.service.selection import SelectionRoutes
from kvrouter.service.selection_choice import SelectionChoice
from kvrouter.service.selection_loads import PoolViews
from kvrouter.service.selection_tokens import SelectionReader
from kvrouter.service.sources import SourceReport
from kvrouter.service.state_keeper import RestoringIntake, open_state_keeper
from kvrouter.service.state_snapshots import Positions
from kvrouter.service.traffic import TrafficCounters
from kvrouter.service.workers import Worker, WorkerRegistry, WorkerSpec
from kvrouter.settings import Settings
from kvrouter.settings_sources import LoadedSettings

__all__ = ["Service"]

HOUSEKEEPING_SECONDS = 0.5

_log = logging.getLogger("kvrouter.service")


class Service:
    """All parts of one router process, wired together. Building it opens nothing."""

    def __init__(
        self,
        settings: Settings,
        *,
        admin_socket: str | None = None,
        planes: PlaneChoices | None = None,
        loaded: LoadedSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = self.started_with = settings
        self.clock, self.log_level_at_start = clock, logging.getLogger().level
        self.config = RunningSettings(loaded or LoadedSettings(settings, {}, None), partial(prepare, self))
        limits = proxy_limits(settings)
        self._wire_knowledge()
        self._wire_fleet()
        self._wire_placement()
        self.pool = UpstreamPool(limits, clock=clock)
        self.splits = self._split_sender()
        self.sources = SourceReport(registry=self.registry, ingest=self.ingest, transport=self.subscriber, clock=clock)
        cache = PrefixCache(settings.tokens.cache_bytes_max)
        self._wire_prompts(cache)
        self._wire_load()
        self._wire_views()
        self.planes = self._request_planes(planes)
        shared = None if self.planes is None else self.planes.store
        self._config_store, self.config_key = open_config_key(settings, shared, self.config)
        self.dispatchers = self._make_dispatchers(RequestReader(cache), admin_socket)
        self.proxy = ProxyServer(self.dispatcher, limits, pool=self.pool, on_error=_report_bug, clock=clock)
        self.health = HealthMonitor(
            self.registry,
            self.questions.get,
            interval_seconds=settings.health.interval_seconds,
            timeout_seconds=settings.health.timeout_seconds,
            clock=clock,
            jitter=random.Random(),
        )
        self.admin = self._admin_server(admin_socket)

    def load_tokenizers(self) -> None:
        """Read the tokenizers that the settings name.

        Raises:
            SettingsError: a file is missing or damaged, or a template has no tokenizer.
        """
        tokens = self.settings.tokens
        tokenizers = model_paths(tokens.tokenizers, "--tokenizer")
        templates = model_paths(tokens.chat_templates, "--chat-template")
        for model in templates.keys() - tokenizers.keys():
            raise SettingsError(f"--chat-template names {model!r}, which has no --tokenizer")
        for model, path in tokenizers.items():
            self.resolver.add_model(model, tokenizer=path, chat_template=templates.get(model))

    def add_workers(self, specs: list[WorkerSpec]) -> None:
        """Register the workers that the settings name.

        Raises:
            SettingsError: two of them share an address or an event endpoint, or they are too many.
        """
        for spec in specs:
            try:
                self.registry.upsert(spec, now=self.clock())
            except RequestError as error:
                raise SettingsError(f"worker {spec.worker_id!r}: {error.message}") from None

    async def work_off_backlogs(self) -> None:
        """Apply what waits for its turn only, a little at a time, for ever."""
        while True:
            await self.backlog_due.wait()
            self.backlog_due.clear()
            try:
                if self.ingest.work(now=self.clock()):
                    self.backlog_due.set()
                    await asyncio.sleep(0)
            except Exception as error:  # noqa: BLE001 - supervised edge, as below
                _report_bug("backlog", error)

    async def keep_queue(self) -> None:
        """End what waits too long for a rank with room, for ever."""
        admission = await self.dispatchers.bounded()
        while True:
            await admission.due()
            try:
                self.dispatcher.advance(self.clock())
                admission.work()
            except Exception as error:  # noqa: BLE001 - supervised edge, as below
                _report_bug("queue", error)
                await asyncio.sleep(HOUSEKEEPING_SECONDS)

    async def follow_config(self) -> None:
        """Follow the settings of the store, for ever."""
        assert self.config_key is not None
        try:
            await self.config_key.run()
        finally:
            if self._config_store is not None:
                await self._config_store.close()

    async def housekeeping(self) -> None:
        """End leases, forget dead workers' blocks and tell of missing events, now and then, for ever."""
        while True:
            try:
                now, connected = self.clock(), self.sources.connected()
                self.selection.expire(now)
                self.dispatcher.advance(now)
                if self.sessions is not None:
                    self.sessions.expire(now)
                self.registry.forget_dead(connected)
                self.event_watch.look(connected, now=now)
                if self.admission is not None:
                    self.admission.tell()
            except Exception as error:  # noqa: BLE001 - supervised edge: one bug must not end the whole service
                _report_bug("housekeeping", error)
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    @property
    def dispatcher(self) -> RequestDispatcher:
        """What the data plane asks now."""
        return self.dispatchers.current

    @property
    def admission(self) -> Admission | None:
        """The queue; None where nobody ever had to wait."""
        return self.dispatchers.admission

    @property
    def uses_sessions(self) -> bool:
        """Whether anybody looks at the session of a request."""
        return self.router.uses_sessions or self.sessions is not None

    # -- wiring, in the order in which `__init__` needs it -------------------------------------------------------------

    def _wire_knowledge(self) -> None:
        """What is known of caches, who decides by it, and how it comes in."""
        settings = self.settings
        self.index = PrefixIndex(bytes_max=settings.index.bytes_max)
        self.backlog_due = asyncio.Event()
        limits = IngestLimits(block_size=settings.tokens.block_size)
        self.ingest = Ingest(self.index, limits=limits, on_backlog=self.backlog_due.set)
        self.router = _router(settings, self.ingest)
        self.replicas = open_replica_state(settings, self.router, clock=self.clock)
        self.keeper = open_state_keeper(
            settings.events,
            self.ingest,
            positions=lambda: stream_positions(self.subscriber),
            saved=self._purge_streams,
            clock=self.clock,
        )
        self.subscriber = event_subscriber(
            self.ingest,
            settings.events,
            token_of=lambda source: self.registry.find(source.worker_id).spec.api_key,
            positions=lambda: self.keeper.positions if self.keeper is not None else {},
            on_load=lambda report: self.loads.take(report),  # noqa: PLW0108 - it is made below
            clock=self.clock,
        )

    def _wire_fleet(self) -> None:
        """Who serves, and what a request asks of its worker where it says nothing."""
        settings = self.settings
        self.registry = WorkerRegistry(
            routing=self.router,
            events=RestoringIntake(self.subscriber, self.keeper),
            forget_blocks=self._forget_blocks,
            changed=self._fleet_changed,
            failures=settings.health.failures,
            successes=settings.health.successes,
            default_authorization=_default_authorization(settings),
        )
        self.router.fleet.set_defaults(default_constraints(settings.placement))

    def _wire_placement(self) -> None:
        """What a decision looks at besides caches and load, and what is kept of it."""
        settings = self.settings
        self.placement = PlacementReader(self.router.fleet.defaults)
        self.sessions = session_table(settings.placement, self.router.fleet.defaults)
        self.promises = PromiseKeeper(self.ingest, resync=self.subscriber.resync)
        self.router.learning.audit.told = self._judged
        self.event_watch = EventWatch(self.registry)
        self.views = FleetViews(self.registry)
        self.decisions = DecisionRing(settings.routing.decisions_kept)
        self.traffic = TrafficCounters()
        self.authenticator = Authenticator(api_keys=settings.auth.api_keys, admin_keys=settings.auth.admin_keys)
        self.rates = client_rates(settings, self.clock)

    def _wire_prompts(self, cache: PrefixCache) -> None:
        """How a prompt becomes tokens, for what we send on and for who asks only where to send it."""
        self.questions = WorkerQuestions(self.pool, self.registry, self.views)
        self.resolver = PromptResolver(
            cache,
            ask_worker=self.questions.tokenize if self.settings.tokens.worker_tokenize else None,
            clock=self.clock,
        )
        self._modes_told: dict[str, str] = {}
        self.selection = self._selection_routes(SelectionReader(cache))

    def _wire_load(self) -> None:
        """What workers say of their load, and who waits for it to fall."""
        settings = self.settings
        self.loads = LoadReports(
            self.registry,
            self.questions.get,
            interval_seconds=settings.events.load_seconds,
            timeout_seconds=settings.health.timeout_seconds,
            clock=self.clock,
            jitter=random.Random(),
        )

    def _wire_views(self) -> None:
        """What can be looked at from outside."""
        self.metrics = Metrics(
            MetricsSources(
                registry=self.registry,
                router=self.router,
                index=self.index,
                traffic=self.traffic,
                sources=self.sources,
                proxy=lambda: self.proxy.statistics,
                prompts=self.resolver.counts,
                reservations=lambda: self.selection.reservations,
                auth_refused=lambda: self.authenticator.refused,
                rate_limited=lambda: 0 if self.rates is None else self.rates.refused,
                policy=lambda: self.settings.routing.policy,
                config=self.config,
                loads=self.loads,
                keeper=self.keeper,
                admission=lambda: self.admission,
                clock=self.clock,
                splits=self.splits,
                sessions=self.sessions,
                replicas=self.replicas,
            )
        )
        self.probes = ProbeRoutes(
            registry=self.registry,
            router=self.router,
            views=self.views,
            discovery=self._discovery_trouble,
            prompt_mode=self.resolver.describe,
            metrics_text=self.metrics.text,
        )

    def _request_planes(self, choices: PlaneChoices | None) -> RequestPlanes | None:
        """Workers that discovery finds, if any are looked for."""
        if choices is None:
            return None
        settings = self.settings.planes
        return RequestPlanes(
            choices,
            store=settings.discovery,
            nats_options=nats_options(self.settings.events),
            names=(settings.namespace, settings.component, settings.endpoint),
            overload_status=settings.overload_status,
            authorization=_default_authorization(self.settings),
            workers=self.registry,
            figures=self.metrics.registry,
            clock=self.clock,
        )

    def _discovery_trouble(self) -> str | None:
        """What probes say of it; of a store that settings are followed in too is heard every few seconds."""
        if self.planes is None:
            return None
        return self.planes.trouble(store_answers=self.config.store_up or self.settings.config.store != "")

    def _split_sender(self) -> SplitSender | None:
        settings = self.settings
        if not settings.placement.split:
            return None
        return SplitSender(
            registry=self.registry,
            planner=SplitPlanner(self.router, tokens_min=settings.placement.split_tokens_min),
            pool=self.pool,
            timeout_seconds=settings.limits.first_byte_seconds,
            attempts_max=settings.limits.attempts_max,
            clock=self.clock,
            randomness=random.Random(),
        )

    def _make_dispatchers(self, reader: RequestReader, admin_socket: str | None) -> Dispatchers:
        """Requests wait only where the settings say so; otherwise nothing of it is on their way."""
        parts: dict[str, Any] = {
            "registry": self.registry,
            "router": self.router,
            "reader": reader,
            "resolver": self.resolver,
            "views": self.views,
            "authenticator": self.authenticator,
            "decisions": self.decisions,
            "traffic": self.traffic,
            "placement": self.placement,
            "sessions": self.sessions,
            "splits": self.splits,
            "local": (self.selection, ModelRoutes(self.views), self.probes),
            "admin": Endpoint("localhost", 0, unix_path=admin_socket) if admin_socket else None,
            "uses_sessions": self.uses_sessions,
            "clock": self.clock,
            "rates": self.rates,
        }
        return Dispatchers(
            parts,
            admission_bounds(self.settings.queue),
            router=self.router,
            unproxied=lambda: self.registry.unproxied,
            clock=self.clock,
        )

    def _fleet_changed(self) -> None:
        """What is served decides how prompts are read, which is said once per model; who is dead holds nothing."""
        if self.sessions is not None:
            for gone in self.sessions.by_worker().keys() - self.registry.workers.keys():
                self.sessions.drop_worker(gone)
        self.promises.retain(self.registry.workers)
        self.registry.forget_dead(self.sources.connected())
        view = self.views.current()
        self.resolver.set_adapters(view.parents)
        for model in view.models:
            mode = self.resolver.describe(model)
            if self._modes_told.get(model) != mode:
                self._modes_told[model] = mode
                log_event(_log, logging.INFO, "prompt_mode", model=model, mode=mode)
        if self.admission is not None:
            self.admission.fleet_changed()

    def _judged(self, dense_rank: int, verdict: Verdict, now: float) -> None:
        """What a rank says it has cached was compared with what it had."""
        target = self.router.fleet.ranks[dense_rank]
        if target is not None:
            self.promises.judged(target.source, verdict, now)

    def _forget_blocks(self, worker: Worker) -> None:
        """The worker's process is dead, and its cache with it."""
        now = self.clock()
        for position, dense_rank in enumerate(worker.ranks):
            source = Source(worker.spec.worker_id, worker.spec.first_rank + position)
            self.ingest.reset(source, now=now, reason="the worker is dead")
            self.router.knowledge.forget(dense_rank)
            self.router.learning.audit.begin_anew(dense_rank)

    async def _purge_streams(self, covered: Positions) -> None:
        endpoints = [endpoint for worker in self.registry for endpoint in worker.spec.events.values()]
        await purge_streams(endpoints, covered, self.settings.events)

    def _selection_routes(self, reader: SelectionReader) -> SelectionRoutes:
        registry, router, ingest = self.registry, self.router, self.ingest
        choice = SelectionChoice(
            registry=registry,
            router=router,
            ingest=ingest,
            views=self.views,
            placement=self.placement,
            sessions=self.sessions,
            default_block_size=self.settings.tokens.block_size,
        )
        pools = PoolViews(
            registry=registry, router=router, ingest=ingest, reader=reader, choice=choice, clock=self.clock
        )
        return SelectionRoutes(
            registry=registry,
            router=router,
            index=self.index,
            ingest=ingest,
            reader=reader,
            choice=choice,
            pools=pools,
            decisions=self.decisions,
            traffic=self.traffic,
            lease_seconds=self.settings.routing.reservation_seconds,
            clock=self.clock,
            wall_clock=time.time,
        )

    def _admin_server(self, admin_socket: str | None) -> EmbeddedServer:
        app = build_admin(
            registry=self.registry,
            records=WorkerRecords(router=self.router, replicas=self.replicas, clock=self.clock),
            sources=self.sources,
            decisions=self.decisions,
            loads=self.loads,
            admission=lambda: self.admission,
            index=self.index,
            sessions=self.sessions,
            planes=self.planes,
            config=ConfigDesk(self.config, self.config_key),
            replicas=self.replicas,
            clock=self.clock,
        )
        if admin_socket:
            return EmbeddedServer(app, unix_path=admin_socket)
        server = self.settings.server
        return EmbeddedServer(
            GuardedApplication(app, self.authenticator),
            listener=listen(server.host, server.admin_port),
            certificate=server.tls_certificate,
            key=server.tls_key,
        )


def _router(settings: Settings, ingest: Ingest) -> Router:
    try:
        return Router(policy=settings.routing.policy, ingest=ingest, settings=routing_settings(settings))
    except ValueError as error:  # a policy that is nobody's, or cannot be loaded
        raise SettingsError(f"routing.policy: {error}") from error


def _default_authorization(settings: Settings) -> bytes | None:
    """With keys of our own, a client's token is ours: workers get theirs from `api_key=` or none."""
    return b"" if settings.auth.api_keys else None


def _report_bug(where: str, error: Exception) -> None:
    """A dispatcher that raised what it should not: the client got 500, the operator gets the traceback."""
    _log.error("internal_error", exc_info=error, extra={"fields": {"where": where}})
