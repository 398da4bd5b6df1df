"""An HTTP service from before: `python -m tests.gateway.legacy_service PORT`. Answers as the paths and bodies say."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

_seen: list[dict[str, object]] = []


async def infer(request: Request) -> Response:
    """Answer from HTTP: as the scripted service does, but for what the prompt says."""
    values = await request.json()
    prompt = values["input"]["prompt"]
    _seen.append({"prompt": prompt, "copy": request.headers.get("kvrouter-shadow"), "headers": dict(request.headers)})
    if prompt == "stuck":
        await asyncio.Event().wait()
    if prompt == "broken":
        return JSONResponse({"error": "old form"}, 500, headers={"retry-after": "7"})
    if values.get("params", {}).get("stream") or "text/event-stream" in request.headers.get("accept", ""):
        return StreamingResponse(_events(prompt), media_type="text/event-stream")
    text = "different" if prompt == "differs" else prompt
    return JSONResponse({"output": {"text": text}, "generation_id": "http", "via": "http"} if prompt == "more" else
                        {"output": {"text": text}, "generation_id": "http"})  # fmt: skip


async def _events(prompt: str) -> AsyncIterator[str]:
    for number in range(3):
        yield f"data: {json.dumps({'via': 'http', 'number': number})}\n\n"
        if prompt == "breaks off":
            raise ConnectionError("as asked")


async def seen(_: Request) -> Response:
    """Say what was asked."""
    return JSONResponse(_seen)


if __name__ == "__main__":
    routes = [Route("/base/ai/llm/infer", infer, methods=["POST"]), Route("/seen", seen)]
    print(json.dumps({"event": "starting"}), flush=True)
    uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), log_level="critical")
