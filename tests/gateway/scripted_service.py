"""A service that does what the model's name says: `python -m tests.gateway.scripted_service NATS_URL`.

Answers `svc.ai.llm.v1.infer` and nothing else. Waits where a test must come first: until something is published on
`test.go.PROMPT`. Prints one line when it serves.
"""

import asyncio
import json
import sys
from collections import Counter
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from kvrouter.gateway.descriptors import Descriptors, load_descriptors

__all__ = ["FLOOD_BYTES"]

FLOOD_BYTES = 4096
_PACKAGE = "kvrouter.gateway.v1"


class ScriptedService:
    """Serves until it is ended."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._descriptors = load_descriptors(None)
        self._calls: Counter[str] = Counter()
        self._going: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        await self._client.subscribe("svc.ai.llm.v1.infer", queue="scripted", cb=self._heard)
        await self._client.subscribe("test.go.*", cb=self._go)
        await self._client.flush()

    async def _heard(self, message: Msg) -> None:
        task = asyncio.create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _go(self, message: Msg) -> None:
        self._going.setdefault(message.subject.rpartition(".")[2], asyncio.Event()).set()

    async def _wait(self, request: Any) -> None:
        await self._going.setdefault(request.input.prompt, asyncio.Event()).wait()

    async def _answer(self, message: Msg) -> None:
        request = self._type("InferRequest").FromString(message.data)
        act, _, argument = request.model_id.partition(":")
        self._calls[request.input.prompt] += 1
        await getattr(self, f"_{act}")(message, request, argument)

    # -- whole answers -----------------------------------------------------------------------------------------------

    async def _echo(self, message: Msg, request: Any, _: str) -> None:
        headers = json.dumps(dict(message.headers or {}), sort_keys=True)
        await self._send(
            message, "InferResponse", request, output={"text": request.input.prompt}, generation_id=headers
        )

    async def _fail(self, message: Msg, request: Any, code: str) -> None:
        error = {"code": code, "message": "as asked", "details": {"reason": "a test"}}
        await self._send(message, "InferResponse", request, error=error)

    async def _empty_error(self, message: Msg, request: Any, _: str) -> None:
        await self._send(message, "InferResponse", request, error={})

    async def _garbage(self, message: Msg, _: Any, __: str) -> None:
        await self._client.publish(message.reply, b"\xff\xff\xff")

    async def _silent(self, _: Msg, __: Any, ___: str) -> None:
        return

    async def _micro(self, message: Msg, _: Any, code: str) -> None:
        headers = {"Nats-Service-Error-Code": code, "Nats-Service-Error": "as asked"}
        await self._client.publish(message.reply, b"", headers=headers)

    async def _count(self, message: Msg, request: Any, wait: str) -> None:
        """Say how often this prompt came; with `wait`, when the test says so."""
        if wait:
            await self._wait(request)
        times = str(self._calls[request.input.prompt])
        await self._send(message, "InferResponse", request, output={"text": times})

    # -- streams -----------------------------------------------------------------------------------------------------

    async def _chunks(self, message: Msg, request: Any, count: str) -> None:
        for index in range(int(count)):
            await self._chunk(message, request, index)
        await self._end(message, request, int(count))

    async def _one_then_wait(self, message: Msg, request: Any, then: str) -> None:
        """One chunk; when the test says so, the end, or an error."""
        await self._chunk(message, request, 0)
        await self._wait(request)
        if then:
            await self._send(message, "InferChunk", request, error={"code": then, "message": "as asked"})
        else:
            await self._end(message, request, 1)

    async def _wait_first(self, message: Msg, request: Any, _: str) -> None:
        await self._wait(request)
        await self._chunks(message, request, "1")

    async def _fail_stream(self, message: Msg, request: Any, code: str) -> None:
        await self._send(message, "InferChunk", request, error={"code": code, "message": "as asked"})

    async def _garbage_later(self, message: Msg, request: Any, _: str) -> None:
        await self._chunk(message, request, 0)
        await self._client.publish(message.reply, b"\xff\xff\xff")

    async def _flood(self, message: Msg, request: Any, count: str) -> None:
        for index in range(int(count)):
            await self._chunk(message, request, index, "x" * FLOOD_BYTES)
            if index % 16 == 0:
                await self._client.flush()
        await self._end(message, request, int(count))

    async def _chunk(self, message: Msg, request: Any, index: int, text: str = "word ") -> None:
        part = {"generation_id": "gen-1", "index": index, "delta": {"output_text_delta": text}}
        await self._send(message, "InferChunk", request, **part)

    async def _end(self, message: Msg, request: Any, index: int) -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": index, "total_tokens": 1 + index}
        end = {"generation_id": "gen-1", "index": index, "is_final": True, "finish_reason": "stop", "usage": usage}
        await self._send(message, "InferChunk", request, **end)

    async def _send(self, message: Msg, kind: str, request: Any, **values: Any) -> None:
        answer = self._type(kind)(meta=request.meta, **values)
        await self._client.publish(message.reply, answer.SerializeToString())

    def _type(self, name: str) -> Any:
        return Descriptors.class_of(self._descriptors.find(f"{_PACKAGE}.{name}"))


async def main(server: str) -> None:
    """Serve."""

    async def ignored(_: Exception) -> None:
        """The server goes and comes in some tests; the client tries again."""

    client = await nats.connect(server, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=ignored)
    await ScriptedService(client).start()
    print(json.dumps({"event": "serving"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
