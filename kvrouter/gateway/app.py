"""The gateway as one ASGI application: the routes of the table, and beside them FastAPI for everything about itself.

Requests of routes go straight to their endpoint: each step on the way is paid ten thousand times a second. The rest,
which people and monitors ask for, is ordinary FastAPI.
"""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from kvrouter import __version__
from kvrouter.errors import GatewayError
from kvrouter.gateway.admin import add_admin_routes
from kvrouter.gateway.answers import error_answer
from kvrouter.gateway.composition import FIGURES, Gateway
from kvrouter.gateway.counters import GatewayCounters
from kvrouter.gateway.endpoint import send_answer
from kvrouter.gateway.metrics import exposition
from kvrouter.gateway.openapi import describe_routes

__all__ = ["GatewayApplication", "build_api"]

_READY, _NOT_READY = 200, 503


class GatewayApplication:
    """Routes first, then the API about the gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._find = gateway.table.find
        self._endpoints = gateway.endpoints
        self._guard = gateway.guard
        self.api = build_api(gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.api(scope, receive, send)
            return
        try:
            self._guard.check(scope)
        except GatewayError as error:
            self._gateway.counters.count("refused", str(error.status))
            await send_answer(error_answer(error), (), send)
            return
        match = self._find(scope["path"])
        if match is None:
            await self.api(scope, receive, send)
        else:
            await self._endpoints[match.route.name].serve(match.variables, scope, receive, send)


class _Api(FastAPI):
    """FastAPI, with our routes in its document."""

    gateway: Gateway

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            gateway = self.gateway
            document = super().openapi()
            self.openapi_schema = describe_routes(document, gateway.table, gateway.translations, gateway.descriptors)
        return self.openapi_schema


def build_api(gateway: Gateway) -> FastAPI:
    """Build what is beside the routes: health, metrics, and the document that describes them all."""
    api = _Api(title="kvrouter gateway", version=__version__, redoc_url=None)
    api.gateway = gateway
    _add_health(api, gateway)
    _add_metrics(api, gateway)
    add_admin_routes(api, gateway)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(GatewayError, _known_error)
    return api


def _add_health(api: FastAPI, gateway: Gateway) -> None:
    @api.get("/health", tags=["gateway"])
    async def health() -> JSONResponse:
        """Tell whether requests can be answered: 503 while NATS is away."""
        connected = gateway.link.is_connected
        status = "stopping" if gateway.stopping else "healthy" if connected else "unhealthy"
        told = {"status": status, "nats_connected": connected, "routes": len(gateway.table)}
        return JSONResponse(told, _READY if connected else _NOT_READY)

    @api.get("/readyz", include_in_schema=False)
    @api.get("/ready", tags=["gateway"])
    async def ready() -> JSONResponse:
        """Tell whether new requests should come here: 503 while NATS is away, and when the gateway stops."""
        reason = gateway.not_ready_reason()
        return JSONResponse({"ready": reason is None, "reason": reason}, _READY if reason is None else _NOT_READY)

    @api.get("/livez", include_in_schema=False)
    @api.get("/live", tags=["gateway"])
    async def live() -> dict[str, bool]:
        """Tell that the process answers; touches nothing."""
        return {"alive": True}


def _add_metrics(api: FastAPI, gateway: Gateway) -> None:
    @api.get("/metrics", tags=["gateway"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Tell Prometheus what was counted, by all processes behind the port."""
        told = await gateway.siblings.ask_all(FIGURES)
        counters, *others = [GatewayCounters.from_json(each["counters"]) for each in told]
        for other in others:
            counters.add(other)
        text = exposition(
            counters, gateway.cutover.shares(), processes=gateway.siblings.count, processes_read=len(told)
        )
        return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _known_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    answer = error_answer(error)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "INVALID_ARGUMENT")
    text = f"unknown path {request.url.path}" if error.status_code == 404 else str(error.detail)
    response = await _known_error(request, GatewayError(text, status=error.status_code, code=code))
    response.headers.update(error.headers or {})
    return response
