"""The part of the admin API that shows the other routers of the fleet."""

from typing import Any

from fastapi import FastAPI

from kvrouter.service.replica_state import ReplicaState

__all__ = ["add_replica_routes"]


def add_replica_routes(app: FastAPI, replicas: ReplicaState | None) -> None:
    """Add the route; a router that knows of no others says so."""

    @app.get("/replicas", tags=["replicas"])
    async def list_replicas() -> dict[str, Any]:
        """List the other routers of the fleet, with what they have booked and how old that is."""
        return {"enabled": False, "replicas": []} if replicas is None else replicas.as_json()
