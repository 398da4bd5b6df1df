"""In which order waiting requests are served: as one number per request, fixed when it comes.

The number is a time, the request's arrival and what may go before it. Two requests never change places while they
wait, which is what makes ageing free: with every second that passes, requests that have just come are a second later.
A request is overtaken only by requests that come within `overtaking_seconds` after it, however many there are, and
beyond that by `priority_seconds` for each level of priority between them. Nobody starves.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

__all__ = ["PRIORITY_MAX", "QUEUE_ORDERS", "Order", "QueueOrder"]

QueueOrder: TypeAlias = Literal["fcfs", "shortest", "deadline"]
QUEUE_ORDERS: tuple[QueueOrder, ...] = get_args(QueueOrder)

PRIORITY_MAX = 100
"""Priorities are -100..100; as in vLLM, the smaller one goes first."""

_STRETCH = 20.0
"""In the order `shortest`, a request may be overtaken for so many times its own prefill time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order and its knobs.

    Attributes:
        kind: `fcfs`: as they came. `shortest`: those that need little prefill first. `deadline`: those whose deadline
            comes first; who names none, has one at the end of `overtaking_seconds`.
        overtaking_seconds: requests that come later than this after a request do not go before it.
        priority_seconds: each level of priority counts like having come so much earlier.
    """

    kind: QueueOrder = "fcfs"
    overtaking_seconds: float = 30.0
    priority_seconds: float = 10.0

    def key(self, *, arrived_at: float, priority: int, prefill_seconds: float, deadline: float | None) -> float:
        """The place of a request; the smallest is served first."""
        latest = arrived_at + self.overtaking_seconds
        match self.kind:
            case "fcfs":
                place = arrived_at
            case "shortest":
                place = min(arrived_at + _STRETCH * prefill_seconds, latest)
            case "deadline":
                place = latest if deadline is None else max(arrived_at, min(deadline, latest))
        return place + priority * self.priority_seconds
