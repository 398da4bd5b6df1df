"""The part of the admin API that shows how workers are reached, and changes the preferred plane."""

from typing import Any, get_args

from fastapi import FastAPI

from kvrouter.errors import RequestError, StoreError
from kvrouter.service.planes.request_planes import RequestPlanes
from kvrouter.service.workers import Worker, WorkerRegistry
from kvrouter.transport.instance_client import ways
from kvrouter.transport.plane_settings import REQUEST_PLANES, RequestPlane

__all__ = ["add_plane_routes", "refuse_discovered"]


def add_plane_routes(app: FastAPI, planes: RequestPlanes | None) -> None:
    """Add the routes; where no workers are looked for there is nothing to change."""

    @app.get("/request-plane", tags=["planes"])
    async def show_request_plane() -> dict[str, Any]:
        """Show the preferred plane, whether discovery is followed, and how each worker is reached."""
        return {"enabled": False} if planes is None else _record(planes)

    @app.put("/request-plane/{plane}", tags=["planes"])
    async def prefer_request_plane(plane: str) -> dict[str, Any]:
        """Prefer a plane for what begins from now on, at every router of the endpoint; running answers go on."""
        found = next((each for each in REQUEST_PLANES if each == plane), None)
        if found is None:
            raise RequestError(f"the plane must be one of {', '.join(get_args(RequestPlane))}", param="plane")
        return await _prefer(planes, found)

    @app.delete("/request-plane", tags=["planes"])
    async def forget_request_plane() -> dict[str, Any]:
        """Let every router prefer the plane of its own settings again."""
        return await _prefer(planes, None)


def refuse_discovered(registry: WorkerRegistry, worker_id: str) -> None:
    """Raise RequestError for a worker that discovery has found: its record says what it is."""
    worker: Worker | None = registry.get(worker_id)
    if worker is not None and worker.spec.reached is not None:
        raise RequestError(
            f"worker {worker_id} was found by discovery, and is what its record says", status=409, code="discovered"
        )


async def _prefer(planes: RequestPlanes | None, plane: RequestPlane | None) -> dict[str, Any]:
    if planes is None:
        raise RequestError("no workers are looked for: start with --discovery", status=409, code="no_discovery")
    try:
        await planes.switch.prefer(plane)
    except StoreError as error:
        raise RequestError(f"the store: {error}", status=503, code="store_unavailable") from None
    return {"request_plane": plane, "key": planes.switch.key}


def _record(planes: RequestPlanes) -> dict[str, Any]:
    discovered = planes.discovered
    return {
        "enabled": True,
        "preferred": planes.ways.preferred,
        "configured": planes.switch.configured,
        "key": planes.switch.key,
        "discovery_error": discovered.last_error,
        "fallbacks": planes.ways.instances.fallbacks,
        "workers": {
            worker_id: dict(ways(discovered.instances[key])) for key, worker_id in discovered.worker_ids.items()
        },
    }
