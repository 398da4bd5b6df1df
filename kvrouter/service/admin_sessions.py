"""The part of the admin API that shows and closes conversations."""

from collections.abc import Callable
from itertools import islice
from typing import Annotated, Any

from fastapi import FastAPI, Query

from kvrouter.errors import RequestError
from kvrouter.routing.sessions import SessionTable

__all__ = ["add_session_routes"]

SESSIONS_LISTED_MAX = 1000


def add_session_routes(app: FastAPI, sessions: SessionTable | None, clock: Callable[[], float]) -> None:
    """Add the routes; where conversations are not followed there are none to show."""

    @app.get("/sessions", tags=["sessions"])
    async def list_sessions(
        limit: Annotated[int, Query(ge=1, le=SESSIONS_LISTED_MAX)] = 20,
    ) -> dict[str, Any]:
        """List the conversations that are bound to a rank, the last used ones first."""
        if sessions is None:
            return {"enabled": False, "bound": 0, "workers": {}, "sessions": []}
        listed = [
            {**row._asdict(), "idle_seconds": round(row.idle_seconds, 3)}
            for row in islice(sessions.rows(clock()), limit)
        ]
        return {"enabled": True, "bound": len(sessions), "workers": dict(sessions.by_worker()), "sessions": listed}

    @app.delete("/sessions/{session}", tags=["sessions"])
    async def close_session(session: str, model: str | None = None) -> dict[str, Any]:
        """Forget a conversation, with one model or with all."""
        closed = 0 if sessions is None else sessions.close(session, model)
        if not closed:
            raise RequestError(
                f"session {session[:256]} is not known", status=404, code="session_not_found", param="session"
            )
        return {"closed": closed}
