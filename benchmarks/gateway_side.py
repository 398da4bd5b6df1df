"""The service behind the measured gateway: `python -m benchmarks.gateway_side NATS`, as many processes as are wanted.

Answers `svc.ai.model.v1.get` with one model, and streams of `svc.ai.llm.v1.infer` with as many chunks as
`params.max_tokens` says, one every `params.temperature` seconds. Prints a line when it serves.
"""

import asyncio
import sys

import nats
from nats.aio.msg import Msg

from benchmarks import event_loop
from kvrouter.gateway.descriptors import Descriptors, load_descriptors

__all__ = ["GET_SUBJECT", "MODEL"]

GET_SUBJECT, INFER_SUBJECT = "svc.ai.model.v1.get", "svc.ai.llm.v1.infer"
MODEL = {"model_id": "small", "name": "Small and fast", "provider": "example", "available": True}
_PACKAGE = "kvrouter.gateway.v1"


async def main(server: str) -> None:
    """Serve until ended."""
    descriptors = load_descriptors(None)
    kinds = {
        name: Descriptors.class_of(descriptors.find(f"{_PACKAGE}.{name}"))
        for name in ("GetModelRequest", "GetModelResponse", "InferRequest", "InferChunk")
    }
    client = await nats.connect(server)
    tasks: set[asyncio.Task[None]] = set()

    async def get(message: Msg) -> None:
        request = kinds["GetModelRequest"].FromString(message.data)
        answer = kinds["GetModelResponse"](meta=request.meta, model=MODEL)
        await client.publish(message.reply, answer.SerializeToString())

    async def infer(message: Msg) -> None:
        task = asyncio.create_task(stream(message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def stream(message: Msg) -> None:
        request = kinds["InferRequest"].FromString(message.data)
        last = request.params.max_tokens
        for index in range(last + 1):
            chunk = kinds["InferChunk"](index=index, is_final=index == last, delta={"output_text_delta": "word "})
            await client.publish(message.reply, chunk.SerializeToString())
            await asyncio.sleep(request.params.temperature)

    await client.subscribe(GET_SUBJECT, queue="side", cb=get)
    await client.subscribe(INFER_SUBJECT, queue="side", cb=infer)
    await client.flush()
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    event_loop.run(main(sys.argv[1]))
