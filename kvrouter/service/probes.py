"""`/livez`, `/readyz` and `/metrics`.

`/livez` touches nothing: it says that the event loop turns. `/readyz` says whether a request could be served now, and
if not, why; a lost event stream degrades routing and is told, but does not make the router unready. Nor does a store
of workers' records that is away, while workers are known.
"""

from collections.abc import Callable
from typing import Any

from kvrouter.errors import RequestError
from kvrouter.routing import Router
from kvrouter.service.fleet_view import FleetViews
from kvrouter.service.proxy import Reply, Request
from kvrouter.service.replies import JSON_HEADERS, json_reply
from kvrouter.service.workers import WorkerRegistry

__all__ = ["ProbeRoutes"]

_ALIVE = Reply(200, b'{"status":"ok"}', JSON_HEADERS)
_METRICS_HEADERS = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
_METHODS = frozenset({"GET", "HEAD"})
_PATHS = frozenset({"/livez", "/health", "/readyz", "/ready", "/metrics"})


class ProbeRoutes:
    """Answers the probes; `/health` and `/ready` are the names that other routers use for them."""

    def __init__(
        self,
        *,
        registry: WorkerRegistry,
        router: Router,
        views: FleetViews,
        discovery: Callable[[], str | None],
        prompt_mode: Callable[[str], str],
        metrics_text: Callable[[], bytes],
    ) -> None:
        self._registry, self._router, self._views = registry, router, views
        self._prompt_mode, self._metrics_text, self._discovery = prompt_mode, metrics_text, discovery
        self.stopping = False
        """Set first when the process is told to stop, so that balancers look elsewhere."""

    def answer(self, request: Request) -> Reply | None:
        """Answer a probe, or return None for other paths."""
        if request.path not in _PATHS:
            return None
        if request.method not in _METHODS:
            raise RequestError.wrong_method(request.path, "GET, HEAD")
        match request.path:
            case "/livez" | "/health":
                return _ALIVE
            case "/readyz" | "/ready":
                readiness = self.readiness()
                return json_reply(200 if readiness["ready"] else 503, readiness)
            case _:
                return Reply(200, self._metrics_text(), _METRICS_HEADERS)

    def readiness(self) -> dict[str, Any]:
        """Return whether requests can be served now, and what is in the way."""
        workers = [
            {
                "worker_id": worker.spec.public_id,
                "lifecycle": worker.lifecycle,
                "not_schedulable_reasons": worker.reasons(),
            }
            for worker in self._registry
        ]
        schedulable = sum(each["lifecycle"] == "schedulable" for each in workers)
        reasons, trouble = [], self._discovery()
        if self.stopping:
            reasons.append("stopping")
        if not workers:
            reasons.append("no worker is registered")
            if trouble is not None:
                reasons.append(f"workers are not discovered: {trouble}")
        elif not schedulable:
            reasons.append("no worker is schedulable")
        return {
            "ready": not reasons,
            "reasons": reasons,
            "schedulable_workers": schedulable,
            "models": self._models(),
            "events": self._events(),
            "discovery": {"degraded": trouble is not None, "error": trouble},
            "workers": workers,
        }

    def _models(self) -> dict[str, Any]:
        return {
            model: {
                "workers": len(workers),
                "schedulable_workers": sum(not worker.reasons() for worker in workers),
                "prompts": self._prompt_mode(model),
            }
            for model, workers in self._views.current().models.items()
        }

    def _events(self) -> dict[str, Any]:
        """How much of what we believe about caches is known, and how much is guessed."""
        states: dict[str, int] = {}
        degraded = False
        for worker in self._registry:
            for number, rank in enumerate(worker.ranks, worker.spec.first_rank):
                state = self._router.ingest.is_trusted(rank)
                states[state] = states.get(state, 0) + 1
                # A rank without events is as good as it was meant to be.
                degraded |= state != "live" and number in worker.spec.events
        return {"ranks": states, "degraded": degraded}
