"""Puts changed settings in force: the other half of the composition root, for what may change while it runs.

First everything is made that could fail, then it is all put in place in one turn of the event loop: a request sees the
settings of before or of after, never some of both. What is under way keeps its worker, its booking and its place.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvrouter.errors import SettingsError
from kvrouter.routing import RoutingSettings
from kvrouter.routing.constraints import Constraints
from kvrouter.routing.policies import ENTRY_POINTS
from kvrouter.routing.policy import Policy
from kvrouter.routing.sessions import PIN_SECONDS, SessionTable
from kvrouter.service.admission_setup import admission_bounds
from kvrouter.service.proxy import ProxyLimits
from kvrouter.service.rates import client_rates
from kvrouter.settings import PlacementSettings, Settings

if TYPE_CHECKING:
    from kvrouter.service.app import Service

__all__ = ["default_constraints", "prepare", "proxy_limits", "routing_settings", "session_table"]


def prepare(service: "Service", settings: Settings) -> Callable[[], None]:
    """Make what other settings need; what is returned puts them in force.

    Raises:
        SettingsError: they are not valid together; nothing has changed.
    """
    policy, bounds = _policy(service, settings.routing.policy), admission_bounds(settings.queue)
    routing, limits = routing_settings(settings), proxy_limits(settings)
    rates = client_rates(settings, service.clock, service.rates)

    def put_in_force() -> None:
        before, service.settings = service.settings, settings
        service.router.change(policy, routing)
        if settings.placement != before.placement:
            _place(service, settings.placement)
        service.selection.lease_seconds = settings.routing.reservation_seconds
        service.decisions.keep(settings.routing.decisions_kept)
        if service.splits is not None:
            service.splits.change(
                timeout_seconds=settings.limits.first_byte_seconds,
                attempts_max=settings.limits.attempts_max,
                tokens_min=settings.placement.split_tokens_min,
            )
        if settings.health != before.health:
            _watch(service, settings)
        if settings.log.level != before.log.level:
            _log_at(service, settings.log.level)
        service.rates = rates or service.rates  # whose count goes on
        service.dispatchers.admit_within(bounds)
        service.dispatcher.change(rates=rates, uses_sessions=service.uses_sessions)
        service.proxy.change(service.dispatcher, limits)

    return put_in_force


def proxy_limits(settings: Settings) -> ProxyLimits:
    """The bounds of the data plane."""
    limits = settings.limits
    return ProxyLimits(
        connections_max=limits.connections_max,
        header_bytes_max=limits.header_bytes_max,
        body_bytes_max=limits.body_bytes_max,
        keepalive_seconds=limits.keepalive_seconds,
        header_seconds=limits.header_seconds,
        body_seconds=limits.body_seconds,
        attempts_max=limits.attempts_max,
        connect_seconds=limits.connect_seconds,
        first_byte_seconds=limits.first_byte_seconds,
        idle_seconds=limits.idle_seconds,
        worker_connections_max=limits.worker_connections_max,
        route_headers=settings.server.route_headers,
    )


def routing_settings(settings: Settings) -> RoutingSettings:
    """The knobs of routing."""
    return RoutingSettings(
        prefill_tokens_per_second=settings.routing.prefill_tokens_per_second,
        predicted_seconds_live=settings.routing.predicted_seconds_live,
        lease_seconds=settings.routing.reservation_seconds,
        block_size=settings.tokens.block_size,
    )


def default_constraints(placement: PlacementSettings) -> Constraints:
    """What a request asks for that says nothing."""
    return Constraints(zone=placement.zone or None, zone_seconds=placement.zone_seconds)


def session_table(placement: PlacementSettings, defaults: Constraints) -> SessionTable | None:
    """Where conversations are; None where nobody asked for it."""
    if placement.sessions == "off":
        return None
    return SessionTable(
        idle_seconds=placement.session_idle_seconds,
        sessions_max=placement.sessions_max,
        seconds=_session_seconds(placement),
        defaults=defaults,
    )


def _session_seconds(placement: PlacementSettings) -> float:
    """How much longer a request may wait for the rank of its conversation."""
    return PIN_SECONDS if placement.sessions == "pin" else placement.session_seconds


def _policy(service: "Service", name: str) -> Policy:
    """A policy by name; code of any module is only run because whoever started the process said so."""
    if ":" in name and name != service.started_with.routing.policy:
        text = f"a function of a module takes a restart; names of policies and of entry points ({ENTRY_POINTS}) do not"
        raise SettingsError(f"routing.policy: {text}")
    try:
        return service.router.policy(name)
    except Exception as error:  # it may be anybody's, and fail in any way
        raise SettingsError(f"routing.policy: {error}") from error


def _place(service: "Service", placement: PlacementSettings) -> None:
    defaults = default_constraints(placement)
    service.router.fleet.set_defaults(defaults)
    service.placement.set_defaults(defaults)
    if service.sessions is not None:
        service.sessions.change(
            idle_seconds=placement.session_idle_seconds,
            sessions_max=placement.sessions_max,
            seconds=_session_seconds(placement),
            defaults=defaults,
        )


def _watch(service: "Service", settings: Settings) -> None:
    health = settings.health
    service.health.change(interval_seconds=health.interval_seconds, timeout_seconds=health.timeout_seconds)
    service.loads.timeout_seconds = health.timeout_seconds
    service.registry.judge_by(failures=health.failures, successes=health.successes)


def _log_at(service: "Service", level: str) -> None:
    """Log from this level on; the one of the start may have been another by a variable of its own."""
    is_as_started = level == service.started_with.log.level
    logging.getLogger().setLevel(service.log_level_at_start if is_as_started else level.upper())
