"""One worker as it is now: what was said of it, what was seen of it, and in words why it takes no requests.

Only `workers.WorkerRegistry` changes a worker; everybody else reads.
"""

import ssl
from typing import Any
from urllib.parse import urlsplit

from kvrouter.service.promises import CachedReports
from kvrouter.service.proxy import Endpoint
from kvrouter.service.worker_spec import WorkerSpec

__all__ = ["RANK_MEMBERS", "Worker", "WorkerCounters"]

RANK_MEMBERS = ("data_parallel_rank", "routed_dp_rank")
"""SGLang's names for it: the first one up to 0.5.7 and, deprecated, after it; where both are known they must agree."""


class WorkerCounters:
    """Plain integers of one worker; the metrics read them when they are asked."""

    __slots__ = (
        "checks",
        "checks_failed",
        "ejections",
        "outcomes",
        "requests",
        "usage_cached_tokens",
        "usage_error_tokens",
        "usage_promised_tokens",
        "usage_prompt_tokens",
        "usage_reports",
    )

    def __init__(self) -> None:
        self.requests = self.checks = self.checks_failed = self.ejections = 0
        self.outcomes: dict[str, int] = {}
        # What engines said that requests cost, beside what was promised for those same requests.
        self.usage_reports = self.usage_prompt_tokens = self.usage_promised_tokens = self.usage_cached_tokens = 0
        self.usage_error_tokens = 0


class Worker:
    """One worker as it is now. Only the registry changes it."""

    __slots__ = (
        "_default_authorization",
        "active",
        "cached_reports",
        "cards",
        "checked_at",
        "counters",
        "draining",
        "ejected_until",
        "ejections_in_row",
        "endpoint",
        "failures_in_row",
        "forgotten",
        "health",
        "last_error",
        "losses_in_row",
        "models",
        "next_check_at",
        "rank_headers",
        "rank_members",
        "ranks",
        "registered_at",
        "since",
        "spec",
        "successes_in_row",
        "was_ready",
    )

    def __init__(
        self, spec: WorkerSpec, ranks: list[int], *, now: float, default_authorization: bytes | None = None
    ) -> None:
        self._default_authorization = default_authorization
        self.ranks = ranks
        """Dense numbers; position i is data-parallel rank `spec.first_rank + i`."""
        self.registered_at = now
        self.draining = False
        self.active = 0
        self.counters = WorkerCounters()
        self.cards: tuple[dict[str, Any], ...] = ()
        """The entries of the worker's own `GET /v1/models`."""
        self.adopt(spec)
        self.start(now)

    def adopt(self, spec: WorkerSpec) -> None:
        """Take a specification with the same ranks; what the process told about itself stays."""
        self.spec = spec
        self.endpoint = spec.reached
        if spec.url is not None:
            self.endpoint = endpoint_of(spec, self._default_authorization)
        self.models = spec.models or tuple(dict.fromkeys(card["id"] for card in self.cards))
        self.tell_ranks()

    def tell_ranks(self) -> None:
        """Make ready what tells the engine its rank, in its own way: as registered, else as its models say."""
        spec = self.spec
        engine = spec.engine
        if "engine" not in spec.fields and any(card.get("owned_by") == "sglang" for card in self.cards):
            engine = "sglang"
        numbers = range(spec.first_rank, spec.first_rank + spec.ranks)
        several = spec.ranks > 1 or spec.first_rank > 0
        in_head, in_body = several and engine == "vllm", several and engine == "sglang"
        self.rank_headers = {rank: b"X-data-parallel-rank: %d\r\n" % rank if in_head else b"" for rank in numbers}
        self.rank_members = {rank: dict.fromkeys(RANK_MEMBERS, rank) for rank in numbers} if in_body else None
        """What says the rank in a request's body, for engines that look for it there; None for others."""

    def start(self, now: float) -> None:
        """Begin again: nothing is known about the process behind the address."""
        self.health = "starting"
        self.since = now
        self.last_error: str | None = None
        self.failures_in_row = self.successes_in_row = self.losses_in_row = self.ejections_in_row = 0
        self.checked_at: float | None = None
        self.next_check_at = now
        self.ejected_until = 0.0
        self.was_ready = False
        self.forgotten = False
        self.cached_reports = CachedReports()

    def reasons(self) -> list[str]:
        """Say in words why new requests do not go here; empty means that they do."""
        reasons = []
        if self.draining:
            reasons.append("draining")
        if not self.models:
            reasons.append("no model known yet: GET /v1/models has not answered, and no model was given")
        if self.health != "ready" and not self.spec.trusted:
            text = {"starting": "not reached yet", "ejected": "ejected after a failed request"}.get(
                self.health, "health checks fail"
            )
            reasons.append(f"{text}: {self.last_error}" if self.last_error else text)
        return reasons

    @property
    def lifecycle(self) -> str:
        """One word, of the four that Dynamo's clients know."""
        if self.draining:
            return "draining"
        if not self.reasons():
            return "schedulable"
        return "incomplete" if self.health == "starting" or not self.models else "unschedulable"


def endpoint_of(spec: WorkerSpec, default_authorization: bytes | None) -> Endpoint:
    """Where the requests for a worker go; without an `api_key` of its own, see `Endpoint.authorization`."""
    assert spec.url is not None
    parts = urlsplit(spec.url)
    secure = parts.scheme == "https"
    return Endpoint(
        host=parts.hostname or "",
        port=parts.port or (443 if secure else 80),
        tls=ssl.create_default_context() if secure else None,
        host_header=parts.netloc.encode("ascii"),
        path_prefix=parts.path.rstrip("/").encode("ascii"),
        authorization=b"Bearer " + spec.api_key.encode() if spec.api_key else default_authorization,
    )
