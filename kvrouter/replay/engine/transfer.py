"""How two engines share one request: the one computes the prompt, the other fetches its blocks and answers.

Two conventions, each as strict as the original is. vLLM's: the prefill answer carries `kv_transfer_params`, with which
the decode engine finds the blocks. SGLang's: both get the request at once and meet in a `bootstrap_room` of the prefill
server. Blocks are not really moved: the decode engine asks the prefill engine's side channel for them, and then holds
the prompt as computed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import msgspec

from kvrouter.errors import RequestError
from kvrouter.replay.engine.http import Exchange
from kvrouter.replay.engine.options import EngineOptions
from kvrouter.replay.engine.work import Prompt, Work

__all__ = ["Transfers"]

HELD_MAX = 10_000
_REMOTE = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port", "remote_block_ids")
_ROOM_MAX = 2**63 - 1
_ANSWER_BYTES_MAX = 64 * 1024


@dataclass(slots=True)
class _Held:
    """Blocks of one prompt that wait for the engine that decodes it."""

    digest: str
    rank: int
    until: float
    ready: asyncio.Event
    fetched: asyncio.Event


class Transfers:
    """One engine's part in split requests."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._engine_id = secrets.token_hex(8)
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self.port = 0
        """Of the side channel, once it listens."""
        self.counts = dict.fromkeys(("prefilled", "fetched", "served", "invalid", "expired"), 0)

    @property
    def enabled(self) -> bool:
        """Whether this engine takes part at all."""
        return self._options.role is not None

    def report(self) -> dict[str, Any]:
        """Return what has happened, for tests and people."""
        return {"role": self._options.role, "dialect": self._options.dialect, "held": len(self._held), **self.counts}

    # -- a request's steps ---------------------------------------------------------------------------------------------

    def rank_asked(self, body: Mapping[str, Any]) -> int | None:
        """The rank that a body asks for, which is where SGLang looks for it."""
        given = {body[name] for name in ("data_parallel_rank", "routed_dp_rank") if body.get(name) is not None}
        if not given:
            room = self._room(body, 0) if self._options.role == "prefill" else None
            return None if room is None else room % self._options.ranks
        rank = given.pop()
        if given or not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank < self._options.ranks:
            raise RequestError(
                f"data-parallel rank {rank!r} is not one of {self._options.ranks}", param="data_parallel_rank"
            )
        return rank

    async def fetch(self, body: Mapping[str, Any], work: Work) -> int:
        """Fetch what another engine has computed; return the prompt tokens that need not be computed here.

        Raises:
            RequestError: the request lacks what its engine cannot do without, or the blocks are not to be had.
        """
        if self._options.dialect == "sglang":
            return await self._meet(body, work)
        params = body.get("kv_transfer_params")
        if params is None or not self.enabled:
            return 0
        if not isinstance(params, dict):
            raise RequestError("kv_transfer_params must be an object", param="kv_transfer_params")
        if not params.get("do_remote_prefill"):
            return 0
        if any(params.get(name) is None for name in _REMOTE):
            self.counts["invalid"] += 1  # vLLM warns, and computes the prompt itself
            return 0
        question = {"id": params["remote_request_id"], "engine_id": params["remote_engine_id"]}
        await self._ask(str(params["remote_host"]), params["remote_port"], {**question, **_described(work.prompts[0])})
        return len(work.prompts[0].tokens)

    async def prefilled(self, body: Mapping[str, Any], work: Work, rank: int, request_id: str) -> dict[str, Any]:
        """Keep what was computed for the engine that decodes; return what the answer says of it."""
        if self._options.dialect == "sglang":
            await self._give(body, work, rank)
            return {}
        params = body.get("kv_transfer_params")
        if not self.enabled or not isinstance(params, dict) or not params.get("do_remote_decode"):
            return {}
        held = self._hold(request_id, work.prompts[0], rank)
        held.ready.set()
        self.counts["prefilled"] += 1
        blocks = -(-len(work.prompts[0].tokens) // self._options.block_size)
        return {
            "kv_transfer_params": {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "remote_block_ids": list(range(blocks)),
                "remote_engine_id": self._engine_id,
                "remote_request_id": request_id,
                "remote_host": self._options.host,
                "remote_port": self.port,
                "tp_size": 1,
            }
        }

    def limited(self, work: Work) -> Work:
        """SGLang's prefill servers compute one token, whatever is asked."""
        if self._options.dialect != "sglang" or self._options.role != "prefill":
            return work
        prompts = tuple(
            Prompt(tokens=each.tokens, output_tokens=1, finish_reason="length", words=each.words)
            for each in work.prompts
        )
        return replace(work, prompts=prompts)

    # -- the side channel ----------------------------------------------------------------------------------------------

    async def serve(self, exchange: Exchange) -> None:
        """Answer another engine that wants blocks."""
        asked = msgspec.json.decode(exchange.body)
        engine_id = asked.get("engine_id")
        held = self._held.get(str(asked["id"]))
        if held is None and engine_id is None:
            held = self._hold(str(asked["id"]), None, -1)  # the decode server came first to the room
        if held is None or (engine_id is not None and engine_id != self._engine_id) or not await self._ready(held):
            await exchange.reply(404, {"error": "no such blocks"})
            return
        if held.digest != asked["digest"] or asked.get("rank", held.rank) != held.rank:
            await exchange.reply(409, {"error": "these are the blocks of another prompt or rank"})
            return
        self._held.pop(str(asked["id"]), None)
        held.fetched.set()
        self.counts["served"] += 1
        await exchange.reply(200, {"tokens": asked["tokens"]})

    async def _ready(self, held: _Held) -> bool:
        try:
            async with asyncio.timeout(self._options.transfer_seconds):
                await held.ready.wait()
        except TimeoutError:
            return False
        return True

    def _hold(self, name: str, prompt: Prompt | None, rank: int) -> _Held:
        now = time.monotonic()
        while self._held and (len(self._held) >= HELD_MAX or next(iter(self._held.values())).until < now):
            self._held.popitem(last=False)
            self.counts["expired"] += 1
        held = self._held.get(name)
        if held is None:
            until = now + self._options.transfer_seconds
            held = self._held[name] = _Held("", rank, until, asyncio.Event(), asyncio.Event())
        if prompt is not None:
            held.digest, held.rank = _digest(prompt.tokens), rank
        return held

    # -- SGLang's rooms ------------------------------------------------------------------------------------------------

    def _room(self, body: Mapping[str, Any], index: int) -> int | None:
        room = body.get("bootstrap_room")
        if isinstance(room, list):
            room = room[index] if index < len(room) else None
        if room is not None and (not isinstance(room, int) or isinstance(room, bool) or not 0 <= room <= _ROOM_MAX):
            raise RequestError("bootstrap_room must be an unsigned integer", param="bootstrap_room")
        return room

    def _required_room(self, body: Mapping[str, Any], index: int) -> int:
        room = self._room(body, index)
        if room is None:
            raise RequestError("Disaggregated request received without bootstrap room id", param="bootstrap_room")
        return room

    async def _meet(self, body: Mapping[str, Any], work: Work) -> int:
        """Wait in each prompt's room until the prefill server has computed it."""
        if self._options.role is None:
            return 0
        rooms = [self._required_room(body, index) for index in range(len(work.prompts))]
        if self._options.role == "prefill":
            return 0
        hosts, ports = body.get("bootstrap_host"), body.get("bootstrap_port")
        for index, (room, prompt) in enumerate(zip(rooms, work.prompts, strict=True)):
            host = hosts[index] if isinstance(hosts, list) else hosts
            port = ports[index] if isinstance(ports, list) else ports
            if not isinstance(host, str) or not isinstance(port, int):
                raise RequestError("bootstrap_host and bootstrap_port are needed", param="bootstrap_host")
            question = {"id": str(room), **_described(prompt)}
            if body.get("disagg_prefill_dp_rank") is not None:
                question["rank"] = body["disagg_prefill_dp_rank"]
            await self._ask(host.strip("[]"), port, question)
        return max(len(prompt.tokens) for prompt in work.prompts)

    async def _give(self, body: Mapping[str, Any], work: Work, rank: int) -> None:
        """Offer what was computed in its room until the decode server has fetched it."""
        if self._options.role != "prefill":
            return
        held = [
            self._hold(str(self._required_room(body, index)), prompt, rank) for index, prompt in enumerate(work.prompts)
        ]
        for each in held:
            each.ready.set()
            self.counts["prefilled"] += 1
        try:
            async with asyncio.timeout(self._options.transfer_seconds):
                for each in held:
                    await each.fetched.wait()
        except TimeoutError:
            raise RequestError("no decode server came for the blocks", status=500, kind="InternalServerError") from None

    async def _ask(self, host: str, port: int, question: Mapping[str, Any]) -> None:
        """Ask another engine's side channel for the blocks of one prompt."""
        try:
            async with asyncio.timeout(self._options.transfer_seconds):
                status = await _post(host, port, msgspec.json.encode(question))
        except (OSError, TimeoutError, ValueError) as error:
            raise _not_fetched(f"{host}:{port}: {error!r}") from error
        if status != 200:
            raise _not_fetched(f"{host}:{port} answered {status}")
        self.counts["fetched"] += 1


def _not_fetched(why: str) -> RequestError:
    return RequestError(f"the prompt's blocks could not be fetched: {why}", status=500, kind="InternalServerError")


def _described(prompt: Prompt) -> dict[str, Any]:
    return {"digest": _digest(prompt.tokens), "tokens": len(prompt.tokens)}


def _digest(tokens: array[int]) -> str:
    return blake2b(tokens.tobytes(), digest_size=8).hexdigest()


async def _post(host: str, port: int, payload: bytes) -> int:
    """Send one request on a connection of its own; return the status of its answer."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(
            b"POST /blocks HTTP/1.1\r\nhost: engine\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (len(payload), payload)
        )
        line = await reader.readline()
        await reader.read(_ANSWER_BYTES_MAX)
        return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
    finally:
        writer.close()
