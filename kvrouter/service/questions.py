"""Questions of our own to workers: health, models, tokens. Over the data plane's connections, beside its requests."""

from kvrouter.errors import NoWorkerError
from kvrouter.service.fleet_view import FleetViews
from kvrouter.service.proxy import Response, UpstreamError, UpstreamPool, fetch
from kvrouter.service.workers import Worker, WorkerRegistry

__all__ = ["WorkerQuestions"]

TOKENIZE_BYTES_MAX = 64 * 1024 * 1024
TOKENIZE_SECONDS = 10.0
_JSON = ((b"content-type", b"application/json"),)


class WorkerQuestions:
    """Asks one worker, or some worker that serves a model."""

    def __init__(self, pool: UpstreamPool, registry: WorkerRegistry, views: FleetViews) -> None:
        self._pool, self._registry, self._views = pool, registry, views
        self._turn = 0

    async def get(self, worker: Worker, path: str, *, timeout_seconds: float, max_bytes: int) -> Response:
        """Return a worker's answer to a GET.

        Raises:
            UpstreamError: there is no whole answer.
        """
        assert worker.endpoint is not None
        return await fetch(
            self._pool, worker.endpoint, "GET", path, timeout_seconds=timeout_seconds, max_bytes=max_bytes
        )

    async def tokenize(self, model: str | None, path: str, body: bytes) -> bytes:
        """Return the good answer of the least busy worker that serves `model`.

        Raises:
            NoWorkerError: nobody serves it now.
            UpstreamError: there is no whole answer, or not a good one.
        """
        worker = self._least_busy(model)
        assert worker.endpoint is not None
        answer = await fetch(
            self._pool,
            worker.endpoint,
            "POST",
            path,
            headers=_JSON,
            body=body,
            timeout_seconds=TOKENIZE_SECONDS,
            max_bytes=TOKENIZE_BYTES_MAX,
        )
        if answer.status != 200:
            raise UpstreamError(f"{path} answered {answer.status}", outcome="error_status")
        return answer.body

    def _least_busy(self, model: str | None) -> Worker:
        serving = self._registry if model is None else self._views.current().models.get(model, ())
        able = [
            worker
            for worker in serving
            if not worker.reasons() and worker.spec.worker_id not in self._registry.unproxied
        ]
        if not able:
            raise NoWorkerError(f"no worker serves {model!r} now")
        self._turn += 1
        turned = able[self._turn % len(able) :] + able[: self._turn % len(able)]
        return min(turned, key=lambda worker: worker.active)
