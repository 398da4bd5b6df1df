"""The part of the admin API that shows the settings in force, and changes those that may change."""

from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Request

from kvrouter.errors import RequestError
from kvrouter.service.configuration.desk import ConfigDesk

__all__ = ["add_config_routes"]

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "additionalProperties": True},
                "example": {"routing.policy": "least-loaded", "queue.rank_requests_max": 8},
            }
        },
    }
}


async def _values(request: Request) -> object:
    try:
        return msgspec.json.decode(await request.body())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None


_Values = Annotated[object, Depends(_values)]


def add_config_routes(app: FastAPI, desk: ConfigDesk) -> None:
    """Add the routes."""

    @app.get("/config", tags=["config"])
    async def show_config() -> dict[str, Any]:
        """Show every setting: its value, where that comes from, and whether a change of it takes a restart."""
        return desk.record()

    @app.patch("/config", tags=["config"], openapi_extra=_BODY)
    async def change_config(values: _Values) -> dict[str, Any]:
        """Set some settings, all of them or none; null gives back what the router was started with."""
        return await desk.merge(values)

    @app.put("/config", tags=["config"], openapi_extra=_BODY)
    async def replace_config(values: _Values) -> dict[str, Any]:
        """Set these settings, and give all others back what the router was started with."""
        return await desk.replace(values)

    @app.delete("/config", tags=["config"])
    async def forget_config() -> dict[str, Any]:
        """Give every setting back what the router was started with."""
        return await desk.replace({})
