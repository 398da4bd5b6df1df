"""Builds the admission queue that the settings describe, or none."""

from collections.abc import Callable
from typing import cast

from kvrouter.errors import SettingsError
from kvrouter.routing import Router
from kvrouter.routing.queue import AdmissionQueue
from kvrouter.routing.queue import QueueSettings as QueueLimits
from kvrouter.routing.queue_order import Order, QueueOrder
from kvrouter.routing.queue_room import RankRoom
from kvrouter.service.admission import Admission, Place
from kvrouter.service.admission_hints import HintsReader, TenantBy
from kvrouter.settings import QueueSettings

__all__ = ["make_admission"]

WEIGHT_MIN, WEIGHT_MAX = 0.001, 1000.0


def make_admission(
    settings: QueueSettings,
    *,
    router: Router,
    unproxied: Callable[[], frozenset[str]],
    place: Place,
    clock: Callable[[], float],
) -> Admission | None:
    """Return the admission of a router; None where nothing is bounded, so that nobody waits or is turned away.

    Raises:
        SettingsError: a weight is none, or no header names the tenant that one shall name.
    """
    weights = _weights(settings.tenant_weights)
    if settings.tenant_by == "header" and not settings.tenant_header:
        raise SettingsError("queue.tenant_by is header, and queue.tenant_header names none")
    room = RankRoom(requests_max=settings.rank_requests_max, prefill_tokens_max=settings.rank_prefill_tokens_max)
    if not room.is_bounded and not settings.ttft_seconds_max:
        return None
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
    return Admission(
        router=router,
        unproxied=unproxied,
        queue=AdmissionQueue(limits),
        room=room,
        hints=HintsReader(tenant_by=cast("TenantBy", settings.tenant_by), tenant_header=settings.tenant_header),
        place=place,
        ttft_seconds_max=settings.ttft_seconds_max,
        wait_seconds_max=settings.seconds_max,
        clock=clock,
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
