"""All parts of one gateway process, made and put together from the settings. Opens nothing."""

import time
from collections.abc import Mapping
from typing import Any

from kvrouter.gateway.counters import GatewayCounters
from kvrouter.gateway.descriptors import load_descriptors
from kvrouter.gateway.endpoint import Endpoint, EndpointLimits, StreamSlots
from kvrouter.gateway.guard import Guard
from kvrouter.gateway.idempotency import AnswerStore
from kvrouter.gateway.nats_link import NatsLink
from kvrouter.gateway.nats_service import NatsService
from kvrouter.gateway.nats_settings import nats_servers, nats_tls
from kvrouter.gateway.route_table import Route, load_routes
from kvrouter.gateway.translation import Translation
from kvrouter.settings import Settings

__all__ = ["Gateway"]


class Gateway:
    """The parts; `process.py` starts and stops what runs."""

    def __init__(self, settings: Settings, *, credentials: Mapping[str, Any]) -> None:
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
        self.link = NatsLink(nats_servers(ours.nats_url), options=credentials, tls=nats_tls(ours), told=self._link_said)
        self.answers = AnswerStore(
            seconds=ours.idempotency_seconds,
            answers_max=ours.idempotency_answers_max,
            bytes_max=ours.idempotency_bytes_max,
            clock=time.monotonic,
        )
        # Rounded up: fewer than were asked for would be refused in a process while another one has room.
        self._slots = StreamSlots(-(-ours.streams_max // ours.processes), self.counters)
        self.endpoints = {route.name: self._endpoint(route) for route in self.table}
        self.stopping = False

    def not_ready_reason(self) -> str | None:
        """Say why new requests should go elsewhere; None if they should not."""
        if self.stopping:
            return "the gateway stops"
        return None if self.link.is_connected else "NATS cannot be reached"

    def _endpoint(self, route: Route) -> Endpoint:
        ours = self.settings.gateway
        service = NatsService(
            self.translations[route.name],
            self.link,
            timeout_seconds=route.timeout_seconds or ours.timeout_seconds,
            queue_messages_max=ours.stream_queue_max,
        )
        return Endpoint(
            route,
            service,
            answers=self.answers,
            slots=self._slots,
            counters=self.counters,
            limits=EndpointLimits(
                body_bytes_max=ours.body_bytes_max,
                body_seconds=ours.body_seconds,
                keep_alive_seconds=ours.keep_alive_seconds,
                slow_client_seconds=ours.slow_client_seconds,
            ),
        )

    def _link_said(self, event: str) -> None:
        self.counters.connected = int(event != "disconnected")
        self.counters.count("nats_events", event)
