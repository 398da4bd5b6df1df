"""What operators ask of a gateway and change in it: routes, cut-over shares, samples of shadow traffic."""

from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request

from kvrouter.errors import GatewayError
from kvrouter.gateway.composition import FIGURES, Gateway
from kvrouter.gateway.cutover import Shares

__all__ = ["add_admin_routes"]

_SHARES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "nats": {"type": "number", "minimum": 0, "maximum": 1},
                        "shadow": {"type": "number", "minimum": 0, "maximum": 1},
                    },
                    "examples": [{"nats": 0.1}],
                }
            }
        },
    }
}


def add_admin_routes(api: FastAPI, gateway: Gateway) -> None:
    """Add `/admin/...`."""
    cutover = gateway.cutover

    @api.get("/admin/routes", tags=["admin"])
    async def list_routes() -> list[dict[str, Any]]:
        """List the routes of the table."""
        return [
            {
                "name": route.name,
                "path": route.path,
                "methods": list(route.methods),
                "subject": route.subject,
                "streams": route.stream is not None,
                "legacy": route.legacy,
                "may_be_shadowed": route.may_be_shadowed,
            }
            for route in gateway.table
        ]

    @api.get("/admin/cutover", tags=["admin"])
    async def list_shares() -> dict[str, dict[str, float]]:
        """Show the shares of every route."""
        return {name: shares._asdict() for name, shares in cutover.shares().items()}

    @api.get("/admin/cutover/{name:path}", tags=["admin"])
    async def show_shares(name: str) -> dict[str, Any]:
        """Show the shares of a route."""
        shares = cutover.shares().get(name)
        if shares is None:
            raise GatewayError(f"there is no route {name!r}", status=404, code="NOT_FOUND")
        return _named(name, shares)

    @api.put("/admin/cutover/{name:path}", tags=["admin"], openapi_extra=_SHARES_BODY)
    async def change_shares(name: str, request: Request) -> dict[str, Any]:
        """Change the shares of a route, for every gateway on the same store."""
        return _named(name, await cutover.change(name, await _object(request)))

    @api.delete("/admin/cutover/{name:path}", tags=["admin"])
    async def reset_shares(name: str) -> dict[str, Any]:
        """Go back to the shares of the route table."""
        return _named(name, await cutover.reset(name))

    @api.get("/admin/shadow", tags=["admin"])
    async def list_samples(limit: Annotated[int, Query(ge=1, le=10_000)] = 20) -> list[dict[str, Any]]:
        """List the last differences between both sides, the newest first."""
        told = await gateway.siblings.ask_all(FIGURES)
        samples = [sample for each in told for sample in each["samples"]]
        return sorted(samples, key=lambda sample: float(sample["time"]), reverse=True)[:limit]


def _named(name: str, shares: Shares) -> dict[str, Any]:
    return {"route": name, **shares._asdict()}


async def _object(request: Request) -> Any:
    try:
        return msgspec.json.decode(await request.body())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise GatewayError("the body is not valid JSON", status=400, code="INVALID_ARGUMENT") from None
