"""All parts of one gateway process, made and put together from the settings. Opens nothing."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvrouter.gateway.bodies import BodyReader
from kvrouter.gateway.counters import GatewayCounters
from kvrouter.gateway.cutover import BUCKET, Cutover
from kvrouter.gateway.descriptors import load_descriptors
from kvrouter.gateway.endpoint import Endpoint, EndpointParts, StreamSlots
from kvrouter.gateway.guard import Guard
from kvrouter.gateway.idempotency import AnswerStore
from kvrouter.gateway.legacy import LegacyClient, LegacyService
from kvrouter.gateway.nats_link import NatsLink
from kvrouter.gateway.nats_service import NatsService
from kvrouter.gateway.nats_settings import nats_servers, nats_tls
from kvrouter.gateway.quiet_log import QuietLog
from kvrouter.gateway.route_table import Route, load_routes
from kvrouter.gateway.shadow import Shadow
from kvrouter.gateway.siblings import Siblings
from kvrouter.gateway.translation import Translation
from kvrouter.settings import Settings
from kvrouter.store.key_values import open_key_value_store

__all__ = ["FIGURES", "Gateway", "Place"]

FIGURES: Final = "figures"
"""What processes ask each other for when somebody asks one of them."""

_log = logging.getLogger("kvrouter.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which of several processes this is; `folder` is where they find each other."""

    number: int = 0
    count: int = 1
    folder: Path | None = None


class Gateway:
    """The parts; `process.py` starts and stops what runs."""

    def __init__(self, settings: Settings, *, credentials: Mapping[str, Any], place: Place) -> None:
        """Read the tables and make the parts; `credentials` are options of the NATS client.

        Raises:
            SettingsError: a file, an address or a row of the table cannot be used.
        """
        ours = settings.gateway
        self.settings = settings
        self.table = load_routes(ours.routes)
        self.descriptors = load_descriptors(ours.descriptors)
        self.translations = {route.name: Translation(route, self.descriptors) for route in self.table}
        self.counters = GatewayCounters()
        self.guard = Guard(
            api_keys=settings.auth.api_keys, admin_keys=settings.auth.admin_keys, insecure=settings.auth.insecure
        )
        self._log = QuietLog(_log)
        self.link = NatsLink(
            nats_servers(ours.nats_url),
            options=credentials,
            tls=nats_tls(ours),
            told=self._link_said,
            failed=lambda error: self._log.tell(logging.WARNING, "nats_error", "", error=str(error)),
        )
        self.store = open_key_value_store(ours.store)
        self.cutover = Cutover(self.table, self.store.bucket(BUCKET))
        self.siblings = Siblings(place.folder, place.number, place.count, self._answer_sibling)
        self.legacy = LegacyClient(sends_authorization=not self.guard.asks_for_keys) if self.cutover.is_needed else None
        self._parts = self._make_parts(place)
        self.answers, self.shadow = self._parts.answers, self._parts.shadow
        self.endpoints = {route.name: self._endpoint(route) for route in self.table}
        self.stopping = False

    def not_ready_reason(self) -> str | None:
        """Say why new requests should go elsewhere; None if they should not."""
        if self.stopping:
            return "the gateway stops"
        return None if self.link.is_connected else "NATS cannot be reached"

    def _make_parts(self, place: Place) -> EndpointParts:
        ours, counters, log = self.settings.gateway, self.counters, self._log
        return EndpointParts(
            bodies=BodyReader(bytes_max=ours.body_bytes_max, seconds=ours.body_seconds),
            answers=AnswerStore(
                seconds=ours.idempotency_seconds,
                answers_max=ours.idempotency_answers_max,
                bytes_max=ours.idempotency_bytes_max,
                clock=time.monotonic,
                count=lambda event: counters.count("idempotency", event),
            ),
            # Rounded up: fewer than were asked for would be refused in a process while another one has room.
            slots=StreamSlots(-(-ours.streams_max // place.count), counters),
            cutover=self.cutover,
            siblings=self.siblings,
            shadow=Shadow(
                requests_max=ours.shadow_requests_max,
                samples_max=ours.shadow_samples_max,
                count=lambda route, result: counters.count("shadow", route, result),
                log=log,
            ),
            counters=counters,
            log=log,
            keep_alive_seconds=ours.keep_alive_seconds,
            slow_client_seconds=ours.slow_client_seconds,
        )

    def _endpoint(self, route: Route) -> Endpoint:
        ours = self.settings.gateway
        timeout = route.timeout_seconds or ours.timeout_seconds
        nats = NatsService(
            self.translations[route.name],
            self.link,
            timeout_seconds=timeout,
            queue_messages_max=ours.stream_queue_max,
        )
        legacy = None
        if self.legacy is not None and route.legacy is not None:
            legacy = LegacyService(self.legacy, timeout_seconds=timeout)
        return Endpoint(route, nats, legacy, self._parts)

    async def _answer_sibling(self, kind: str, question: Any) -> Any:
        """Answer a process beside us."""
        if kind == FIGURES:
            return self._told()
        route, packed = question
        return await self.endpoints[route].answer_sibling(packed)

    def _told(self) -> dict[str, Any]:
        """What this process says of itself."""
        self.counters.gauges.update(
            idempotency_answers=len(self.answers),
            idempotency_bytes=self.answers.bytes,
            cutover_refused=self.cutover.refused,
        )
        return {"counters": self.counters.as_json(), "samples": self.shadow.samples()}

    def _link_said(self, event: str) -> None:
        self.counters.connected = int(event != "disconnected")
        self.counters.count("nats_events", event)
        level = logging.WARNING if event == "disconnected" else logging.INFO
        _log.log(level, f"nats_{event}", extra={"fields": {}})
