"""The admin API: workers, event sources and decisions over HTTP, for people and scripts.

An ordinary FastAPI application: nothing here is on the way of a request. Field names of `/workers` are ours or those of
Dynamo's selection service (`worker_spec.py`). Every error has the one shape, naming the field and its limit.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from kvrouter import __version__
from kvrouter.errors import KvrouterError, RequestError
from kvrouter.events.endpoints import without_password
from kvrouter.index import PrefixIndex, implementation
from kvrouter.routing.replicas import NOTHING
from kvrouter.routing.sessions import SessionTable
from kvrouter.service.admin_replicas import add_replica_routes
from kvrouter.service.admin_sessions import add_session_routes
from kvrouter.service.admission import Admission
from kvrouter.service.admission_view import admission_record
from kvrouter.service.audit_metrics import audit_record
from kvrouter.service.auth import Authenticator, refuse_foreign_page
from kvrouter.service.configuration.admin import add_config_routes
from kvrouter.service.configuration.desk import ConfigDesk
from kvrouter.service.decisions import DecisionRing
from kvrouter.service.load_reports import LoadReports
from kvrouter.service.logs import log_event
from kvrouter.service.planes.admin import add_plane_routes, refuse_discovered
from kvrouter.service.planes.request_planes import RequestPlanes
from kvrouter.service.proxy import error_reply
from kvrouter.service.replica_state import ReplicaState
from kvrouter.service.sources import SourceReport
from kvrouter.service.worker_schema import WORKER_BODY, describe_errors
from kvrouter.service.worker_spec import worker_spec_from_fields
from kvrouter.service.workers import Worker, WorkerRegistry

__all__ = ["GuardedApplication", "WorkerRecords", "build_admin"]

FIRST_CHECK_SECONDS = 1.0
DECISIONS_LISTED_MAX = 1000

_log = logging.getLogger("kvrouter.admin")


async def _worker_fields(request: Request) -> dict[str, Any]:
    """Read the body ourselves: whatever Content-Type a script sends, and one kind of error for every mistake."""
    body = await request.body()
    if not body:
        raise RequestError("the body is empty; it must be a JSON object", code="invalid_json")
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError("the body must be a JSON object with the fields of a worker", code="invalid_type")
    return fields


_Fields = Annotated[dict[str, Any], Depends(_worker_fields)]


class WorkerRecords:
    """What the API tells about a worker."""

    def __init__(self, *, router: Any, replicas: ReplicaState | None, clock: Callable[[], float]) -> None:
        self._router, self._replicas, self._clock = router, replicas, clock

    def record(self, worker: Worker) -> dict[str, Any]:
        """Return the record of one worker; its API key is never in it."""
        spec, counters, now = worker.spec, worker.counters, self._clock()
        return {
            "worker_id": spec.public_id,
            "model_name": worker.models[0] if worker.models else None,
            "models": list(worker.models),
            "routing_group": spec.routing_group,
            "endpoint": spec.address,
            "url": spec.url,
            "block_size": self._router.ingest.block_size(worker.ranks[0]) or spec.block_size,
            "kv_events_endpoints": {str(rank): without_password(endpoint) for rank, endpoint in spec.events.items()},
            "replay_endpoints": {str(rank): endpoint for rank, endpoint in spec.replay.items()},
            "replay_endpoint": spec.fields.get("replay_endpoint"),
            "topic": spec.topic,
            "data_parallel_start_rank": spec.first_rank,
            "data_parallel_size": spec.ranks,
            **spec.echoed(),
            "lifecycle": worker.lifecycle,
            "not_schedulable_reasons": worker.reasons(),
            "state": "draining" if worker.draining else "active",
            "health": {
                "state": worker.health,
                "seconds": round(now - worker.since, 3),
                "last_check_seconds_ago": None if worker.checked_at is None else round(now - worker.checked_at, 3),
                "failures_in_row": worker.failures_in_row,
                "last_error": worker.last_error,
            },
            "requests": {
                "active": worker.active,
                "total": counters.requests,
                "outcomes": dict(counters.outcomes),
            },
            "cached_tokens": {
                "reports": counters.usage_reports,
                "prompt": counters.usage_prompt_tokens,
                "promised": counters.usage_promised_tokens,
                "actual": counters.usage_cached_tokens,
            },
            "ranks": [self._rank(worker, position) for position in range(spec.ranks)],
        }

    def _rank(self, worker: Worker, position: int) -> dict[str, Any]:
        dense_rank = worker.ranks[position]
        load, replicas = self._router.book.load(dense_rank), self._replicas
        other = NOTHING if replicas is None else replicas.loads.elsewhere(self._router.fleet.at(dense_rank))
        return {
            "dp_rank": worker.spec.first_rank + position,
            "block_size": self._router.ingest.block_size(dense_rank),
            "events": self._router.ingest.is_trusted(dense_rank),
            "active_requests": load.active_requests - other.requests,
            "prefill_tokens": load.prefill_tokens - other.prefill_tokens,
            "decode_blocks": load.decode_blocks - other.decode_blocks,
            "elsewhere": {
                "active_requests": other.requests,
                "prefill_tokens": other.prefill_tokens,
                "decode_blocks": other.decode_blocks,
            },
            "audit": audit_record(self._router, dense_rank),
        }


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        return describe_errors(super().openapi())


def build_admin(
    *,
    registry: WorkerRegistry,
    records: WorkerRecords,
    sources: SourceReport,
    decisions: DecisionRing,
    loads: LoadReports,
    admission: Callable[[], Admission | None],
    index: PrefixIndex,
    sessions: SessionTable | None,
    planes: RequestPlanes | None,
    config: ConfigDesk,
    replicas: ReplicaState | None,
    clock: Callable[[], float],
) -> FastAPI:
    """Build the application over the parts that it shows and changes."""
    app = _Application(title="kvrouter admin API", version=__version__, redoc_url=None)
    _add_worker_routes(app, registry, records, clock)
    _add_reading_routes(app, sources, decisions, loads)
    _add_queue_route(app, admission, clock)
    _add_index_route(app, index)
    add_session_routes(app, sessions, clock)
    add_plane_routes(app, planes)
    add_config_routes(app, config)
    add_replica_routes(app, replicas)
    app.add_exception_handler(KvrouterError, _known_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unknown_error)
    return app


def _add_worker_routes(
    app: FastAPI, registry: WorkerRegistry, records: WorkerRecords, clock: Callable[[], float]
) -> None:
    @app.get("/workers", tags=["workers"])
    async def list_workers(model_name: str | None = None, routing_group: str | None = None) -> list[dict[str, Any]]:
        """List the workers, of one model and routing group if asked."""
        return [
            records.record(worker)
            for worker in registry
            if (model_name is None or model_name in worker.models)
            and (routing_group is None or routing_group == worker.spec.routing_group)
        ]

    @app.post("/workers", status_code=201, tags=["workers"], openapi_extra=WORKER_BODY)
    async def register_worker(fields: _Fields) -> dict[str, Any]:
        """Register a worker, or change a registered one; answers after its first health check, or a second later."""
        spec = worker_spec_from_fields(fields)
        refuse_discovered(registry, spec.worker_id)
        worker = registry.upsert(spec, now=clock())
        await _first_check(worker)
        return records.record(worker)

    @app.get("/workers/{worker_id}", tags=["workers"])
    async def show_worker(worker_id: str) -> dict[str, Any]:
        """Show one worker."""
        return records.record(registry.find(worker_id))

    @app.patch("/workers/{worker_id}", tags=["workers"], openapi_extra=WORKER_BODY)
    async def change_worker(worker_id: str, fields: _Fields) -> dict[str, Any]:
        """Change some fields; `state` is `active` or `draining`, a field set to null is taken back."""
        old = registry.find(worker_id)
        state = fields.pop("state", None)
        if state not in (None, "active", "draining"):
            raise RequestError(f"state must be active or draining, not {state!r}", param="state")
        draining = old.draining if state is None else state == "draining"
        if fields:
            refuse_discovered(registry, worker_id)
            _change(registry, old, fields, now=clock())
        return records.record(registry.set_draining(worker_id, draining=draining, now=clock()))

    @app.delete("/workers/{worker_id}", tags=["workers"])
    async def remove_worker(worker_id: str) -> dict[str, Any]:
        """Forget a worker at once; requests that it is answering go on."""
        record = records.record(registry.find(worker_id))
        registry.remove(worker_id, now=clock())
        return record

    @app.post("/workers/{worker_id}/drain", tags=["workers"])
    async def drain_worker(worker_id: str) -> dict[str, Any]:
        """Send no new requests; those in flight finish."""
        return records.record(registry.set_draining(worker_id, draining=True, now=clock()))

    @app.post("/workers/{worker_id}/resume", tags=["workers"])
    async def resume_worker(worker_id: str) -> dict[str, Any]:
        """Take a draining worker back."""
        return records.record(registry.set_draining(worker_id, draining=False, now=clock()))


def _add_reading_routes(app: FastAPI, sources: SourceReport, decisions: DecisionRing, loads: LoadReports) -> None:
    @app.get("/sources", tags=["events"])
    async def list_sources() -> list[dict[str, Any]]:
        """List the event sources: one per rank of each worker."""
        return sources.rows()

    @app.get("/load_reports", tags=["events"])
    async def list_load_reports() -> list[dict[str, Any]]:
        """List what workers said last about their own load, one row per rank that said anything."""
        return loads.as_json()

    @app.get("/decisions", tags=["decisions"])
    async def list_decisions(
        limit: Annotated[int, Query(ge=1, le=DECISIONS_LISTED_MAX)] = 20,
    ) -> list[dict[str, Any]]:
        """List the last decisions, newest first."""
        return decisions.latest(limit)

    @app.get("/decisions/{request_id}", tags=["decisions"])
    async def show_decision(request_id: str) -> dict[str, Any]:
        """Say why a request went where it went; its id is the X-Request-Id of its answer."""
        explained = decisions.explain(request_id)
        if explained is None:
            raise RequestError(
                f"no decision {request_id} is kept", status=404, code="decision_not_found", param="request_id"
            )
        return explained


def _add_queue_route(app: FastAPI, admission: Callable[[], Admission | None], clock: Callable[[], float]) -> None:
    @app.get("/queue", tags=["queue"])
    async def show_queue() -> dict[str, Any]:
        """Show who waits at the router, and who was turned away."""
        return admission_record(admission(), now=clock())


def _add_index_route(app: FastAPI, index: PrefixIndex) -> None:
    @app.get("/index", tags=["events"])
    async def show_index() -> dict[str, Any]:
        """Show how large the index is, and what its bound has cost."""
        return {
            "implementation": implementation,
            "blocks": len(index),
            "bytes": index.nbytes(),
            "bytes_beside": index.nbytes_beside(),
            "bytes_max": index.bytes_max(),
            "blocks_dropped": index.dropped(),
        }


def _change(registry: WorkerRegistry, old: Worker, fields: dict[str, Any], *, now: float) -> None:
    spec = worker_spec_from_fields(old.spec.merged(fields))
    if spec.worker_id != old.spec.worker_id:
        raise RequestError("worker_id cannot be changed", param="worker_id")
    registry.upsert(spec, now=now)


async def _first_check(worker: Worker) -> None:
    """Wait until a new worker has been looked at once, so that the answer says whether it is there."""
    if worker.spec.trusted:
        return
    deadline = asyncio.get_running_loop().time() + FIRST_CHECK_SECONDS
    while worker.endpoint is not None and worker.checked_at is None:
        if asyncio.get_running_loop().time() >= deadline:
            return
        await asyncio.sleep(0.01)


async def _known_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, KvrouterError)
    reply = error_reply(error)
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    return Response(reply.body, reply.status, headers)


async def _invalid_request(request: Request, error: Exception) -> Response:
    """Say which field is wrong; FastAPI's own list of problems has another shape."""
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    field = ".".join(str(each) for each in problem["loc"][1:]) or None
    text = f"{field}: {problem['msg']}" if field else f"invalid request: {problem['msg']}"
    return await _known_error(request, RequestError(text, code="invalid_field", param=field))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return await _known_error(
            request, RequestError(f"unknown path {request.url.path}", status=404, code="unknown_url")
        )
    if error.status_code == 405:
        return await _known_error(request, RequestError.wrong_method(request.url.path, _allowed(request)))
    return await _known_error(request, RequestError(str(error.detail), status=error.status_code))


def _allowed(request: Request) -> str:
    """The methods of a path over all its routes; the framework names those of the first one only."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return ", ".join(sorted(methods))


async def _unknown_error(request: Request, error: Exception) -> Response:
    """A bug of ours: the server logs it, the client learns only that it happened."""
    log_event(_log, logging.ERROR, "admin_error", path=request.url.path, error=repr(error))
    shape = {"message": "the router failed to handle this request", "type": "server_error", "param": None, "code": None}
    return JSONResponse({"error": shape}, 500)


class GuardedApplication:
    """Asks for a key before the application; for an admin port that clients reach directly."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app, self._authenticator = app, authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            try:
                self._authenticator.check(scope["method"], scope["path"], headers.get(b"authorization"))
                refuse_foreign_page(scope["method"], scope["path"], headers.get(b"origin"), headers.get(b"host"))
            except RequestError as error:
                response = await _known_error(Request(scope), error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
