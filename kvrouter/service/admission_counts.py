"""What is counted about waiting and turning away, and the errors that those get who are turned away."""

from math import ceil

from kvrouter.errors import ShedError
from kvrouter.service.traffic import Histogram

__all__ = ["ENDS", "REASONS", "AdmissionCounters"]

RETRY_AFTER_SECONDS_MAX = 300
WAIT_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

ENDS = ("admitted", "client_gone", "shed", "failed")
"""How waiting ends; `failed`: no worker could be chosen after all."""
_STATUSES = {
    "overloaded": 503,
    "tenant_over_share": 429,
    "queue_full": 503,
    "queue_timeout": 503,
    "deadline_unreachable": 504,
    "deadline_exceeded": 504,
}
REASONS = tuple(_STATUSES)
"""Why requests are turned away; the codes of the errors that they get."""


class AdmissionCounters:
    """Plain counts; `admission_view` exports them."""

    __slots__ = ("ended", "queued", "shed", "wait_seconds")

    def __init__(self) -> None:
        self.queued = 0
        """Requests that had to wait."""
        self.ended = dict.fromkeys(ENDS, 0)
        """How waiting ended."""
        self.shed = dict.fromkeys(REASONS, 0)
        """Requests turned away, those that never waited included."""
        self.wait_seconds = Histogram(WAIT_BOUNDS)
        """How long those waited that were admitted."""

    def turn_away(self, code: str, reason: str, *, seconds: float) -> ShedError:
        """Count a request that is turned away; it might come again after so many `seconds`."""
        self.shed[code] += 1
        retry_after = max(1, min(ceil(seconds), RETRY_AFTER_SECONDS_MAX))
        return ShedError(reason, status=_STATUSES[code], code=code, retry_after_seconds=retry_after)
