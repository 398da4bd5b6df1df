"""A small service behind the gateway: answers all eight shipped routes over NATS, and streams tokens.

Run it with: python examples/gateway/service.py --nats nats://127.0.0.1:4222
`examples/gateway/run.py` starts it together with a NATS server and a gateway.

It shows what a service has to do: subscribe with a queue group, read the message, answer to `reply`; for a stream,
answer chunk by chunk, the last one with `is_final`.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from kvrouter.gateway.descriptors import Descriptors, load_descriptors

PACKAGE = "kvrouter.gateway.v1"
MODELS = {
    "gpt-5-pro": {"model_id": "gpt-5-pro", "name": "GPT-5 pro", "provider": "example", "available": True},
    "small": {"model_id": "small", "name": "Small and fast", "provider": "example", "available": True},
}
Answer = Callable[[Msg, Any], Awaitable[None]]


class DemoService:
    """Keeps its state in memory; every answer follows from the request."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._descriptors = load_descriptors(None)
        self._states: dict[str, tuple[int, dict[str, Any]]] = {}

    async def start(self) -> None:
        """Listen on the subjects of all routes."""
        for subject, request, answer in (
            ("svc.ai.llm.v1.infer", "InferRequest", self._infer),
            ("svc.ai.model.v1.list", "ListModelsRequest", self._list_models),
            ("svc.ai.model.v1.get", "GetModelRequest", self._get_model),
            ("svc.ai.model.v1.select", "SelectModelRequest", self._select_model),
            ("svc.state.manager.v1.update", "UpdateStateRequest", self._update_state),
            ("svc.state.manager.v1.get", "GetStateRequest", self._get_state),
            ("svc.quest.v1.generate", "GenerateQuestRequest", self._generate_quest),
            ("svc.npc.behavior.v1.plan", "PlanBehaviorRequest", self._plan_behavior),
        ):
            await self._client.subscribe(subject, queue="demo", cb=self._handler(request, answer))
        await self._client.flush()

    def _handler(self, request: str, answer: Answer) -> Callable[[Msg], Awaitable[None]]:
        kind = self._type(request)

        async def handle(message: Msg) -> None:
            await answer(message, kind.FromString(message.data))

        return handle

    async def _infer(self, message: Msg, request: Any) -> None:
        if not request.input.prompt:
            await self._fail(message, "InferResponse", request, "INVALID_ARGUMENT", "input.prompt is empty")
            return
        words = request.input.prompt.split()[: request.params.max_tokens or None]
        usage = {
            "prompt_tokens": len(request.input.prompt.split()),
            "completion_tokens": len(words),
            "total_tokens": len(request.input.prompt.split()) + len(words),
        }
        name = f"gen-{request.meta.request_id[:8]}"
        if not request.params.stream:
            text = " ".join(words)
            done = {"generation_id": name, "output": {"text": text}, "finish_reason": "stop", "usage": usage}
            await self._reply(message, "InferResponse", request, **done)
            return
        for index, word in enumerate(words):
            part = {"generation_id": name, "index": index, "delta": {"output_text_delta": f"{word} "}}
            await self._reply(message, "InferChunk", request, **part)
        end = {"generation_id": name, "index": len(words), "is_final": True, "finish_reason": "stop", "usage": usage}
        await self._reply(message, "InferChunk", request, **end)

    async def _list_models(self, message: Msg, request: Any) -> None:
        await self._reply(message, "ListModelsResponse", request, models=list(MODELS.values()))

    async def _get_model(self, message: Msg, request: Any) -> None:
        if request.model_id not in MODELS:
            await self._fail(message, "GetModelResponse", request, "NOT_FOUND", f"no model {request.model_id!r}")
            return
        await self._reply(message, "GetModelResponse", request, model=MODELS[request.model_id])

    async def _select_model(self, message: Msg, request: Any) -> None:
        if request.model_id not in MODELS:
            await self._fail(message, "SelectModelResponse", request, "NOT_FOUND", f"no model {request.model_id!r}")
            return
        reason = f"you asked for it, for {request.purpose or 'no purpose'}"
        await self._reply(message, "SelectModelResponse", request, model=MODELS[request.model_id], reason=reason)

    async def _update_state(self, message: Msg, request: Any) -> None:
        version, state = self._states.get(request.entity_id, (0, {}))
        if request.HasField("expected_version") and request.expected_version != version:
            await self._fail(message, "UpdateStateResponse", request, "FAILED_PRECONDITION", f"version is {version}")
            return
        self._states[request.entity_id] = version + 1, state | dict(request.changes)
        await self._reply(message, "UpdateStateResponse", request, entity_id=request.entity_id, version=version + 1)

    async def _get_state(self, message: Msg, request: Any) -> None:
        version, state = self._states.get(request.entity_id, (0, {}))
        if not version:
            await self._fail(message, "GetStateResponse", request, "NOT_FOUND", f"no state of {request.entity_id!r}")
            return
        found = {"entity_id": request.entity_id, "version": version, "state": state}
        await self._reply(message, "GetStateResponse", request, **found)

    async def _generate_quest(self, message: Msg, request: Any) -> None:
        quest = {
            "quest_id": f"quest-{request.player_id}",
            "title": f"The {request.theme or 'lost'} sword",
            "objectives": ["find it", "bring it back"],
            "rewards": {"gold": 10 * (request.level or 1)},
        }
        await self._reply(message, "GenerateQuestResponse", request, quest=quest)

    async def _plan_behavior(self, message: Msg, request: Any) -> None:
        actions = [{"kind": "look", "target": "around"}, {"kind": "say", "target": "hello"}]
        await self._reply(message, "PlanBehaviorResponse", request, npc_id=request.npc_id, actions=actions)

    async def _fail(self, message: Msg, kind: str, request: Any, code: str, text: str) -> None:
        await self._reply(message, kind, request, error={"code": code, "message": text})

    async def _reply(self, message: Msg, kind: str, request: Any, **values: Any) -> None:
        """Send a message of a type back, with the meta data of the request."""
        answer = self._type(kind)(meta=request.meta, **values)
        await self._client.publish(message.reply, answer.SerializeToString())

    def _type(self, name: str) -> Any:
        return Descriptors.class_of(self._descriptors.find(f"{PACKAGE}.{name}"))


async def main(server: str) -> None:
    """Serve until interrupted."""
    client = await nats.connect(server, name="demo-service", max_reconnect_attempts=-1)
    await DemoService(client).start()
    print(f"the demo service answers on {server}", flush=True)  # noqa: T201
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the demo service behind the gateway")
    parser.add_argument("--nats", default="nats://127.0.0.1:4222")
    asyncio.run(main(parser.parse_args().nats))
