"""Reads the bounds of admission from the settings, at the start and whenever they change."""

from typing import cast

from kvrouter.errors import SettingsError
from kvrouter.routing.queue import QueueSettings as QueueLimits
from kvrouter.routing.queue_order import Order, QueueOrder
from kvrouter.routing.queue_room import RankRoom
from kvrouter.service.admission import AdmissionBounds
from kvrouter.service.admission_hints import HintsReader, TenantBy
from kvrouter.settings import QueueSettings

__all__ = ["admission_bounds"]

WEIGHT_MIN, WEIGHT_MAX = 0.001, 1000.0


def admission_bounds(settings: QueueSettings) -> AdmissionBounds:
    """Return what the settings say of waiting.

    Raises:
        SettingsError: a weight is none, or no header names the tenant that one shall name.
    """
    weights = _weights(settings.tenant_weights)
    if settings.tenant_by == "header" and not settings.tenant_header:
        raise SettingsError("queue.tenant_header: it names none, and queue.tenant_by is header")
    order = Order(
        kind=cast("QueueOrder", settings.order),
        overtaking_seconds=settings.overtaking_seconds,
        priority_seconds=settings.priority_seconds,
    )
    limits = QueueLimits(
        order=order,
        requests_max=settings.requests_max,
        bytes_max=settings.bytes_max,
        quantum_tokens=settings.quantum_tokens,
        tenants_max=settings.tenants_max,
        weights=weights,
    )
    return AdmissionBounds(
        queue=limits,
        room=RankRoom(requests_max=settings.rank_requests_max, prefill_tokens_max=settings.rank_prefill_tokens_max),
        hints=HintsReader(tenant_by=cast("TenantBy", settings.tenant_by), tenant_header=settings.tenant_header),
        ttft_seconds_max=settings.ttft_seconds_max,
        wait_seconds_max=settings.seconds_max,
    )


def _weights(texts: tuple[str, ...]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text in texts:
        name, separator, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not separator or not name or not WEIGHT_MIN <= weight <= WEIGHT_MAX:
            bounds = f"{WEIGHT_MIN:g} to {WEIGHT_MAX:g}"
            raise SettingsError(f"queue.tenant_weights: {text!r} is not TENANT=WEIGHT with a weight from {bounds}")
        if name in weights:
            raise SettingsError(f"queue.tenant_weights: two weights for {name!r}")
        weights[name] = weight
    return weights
