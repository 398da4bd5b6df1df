"""Sends a split request to its two workers, in the way in which their engines want to hear it.

vLLM: the prompt is computed first, by a request for one token whose answer carries `kv_transfer_params`; the decode
worker gets those with the client's own request. SGLang: both get the request at once and meet in a bootstrap room.
Either way the client sees the decode worker's answer alone. Where the first stage fails, another worker computes the
prompt, or the decode worker itself if its engine can. Which ranks is decided in `routing/disaggregation.py`.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, Protocol

from kvrouter.errors import RoutingError
from kvrouter.routing import Decision
from kvrouter.routing.disaggregation import Asked, SplitPlanner, Verdict
from kvrouter.service.body_members import member, with_members
from kvrouter.service.proxy import Outcome, Reply, Request, Response, Route, UpstreamError, UpstreamPool, Usage, fetch
from kvrouter.service.proxy.usage import TAIL_BYTES, find_usage, without_framing
from kvrouter.service.traffic import SECONDS_BOUNDS, Histogram
from kvrouter.service.worker_state import Worker
from kvrouter.service.workers import WorkerRegistry

__all__ = ["SPLIT_PATHS", "Prefill", "SplitCounts", "SplitSender"]

SPLIT_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
_PASSED_ON: Final = (b"content-type", b"traceparent", b"tracestate")
_ROOM_BITS: Final = 62
_ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
_BUSY: Final = frozenset({408, 429})
_ASK_VLLM: Final = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


class SplitCounts:
    """What became of requests in a fleet with prefill workers; the metrics read it."""

    __slots__ = ("fallbacks", "prefills", "seconds", "verdicts")

    def __init__(self) -> None:
        self.verdicts: dict[Verdict, int] = {}
        self.prefills: dict[Outcome, int] = {}
        """How first stages ended."""
        self.fallbacks = 0
        """Split requests whose decode worker had to compute the prompt after all."""
        self.seconds = Histogram(SECONDS_BOUNDS)
        """How long first stages took."""


class Prefill:
    """The first stage of one split request; for the data plane, the companion of the second."""

    __slots__ = (
        "_calls",
        "asked",
        "decision",
        "decode",
        "failure",
        "has_left",
        "is_open",
        "refusal",
        "request",
        "route",
        "task",
        "worker",
    )

    def __init__(self, request: Request, asked: Asked) -> None:
        self.request, self.asked = request, asked
        self.failure: str | None = None
        self.refusal: Reply | None = None
        self.decode: Decision | None = None
        """That of the second stage."""
        self.task: asyncio.Task[Any] | None = None
        self.is_open = self.has_left = False
        """Whether it is booked; whether it was handed over to be sent."""
        self._calls: list[Callable[[], None]] = []

    def goes_to(self, route: Route, worker: Worker, decision: Decision) -> None:
        """It is booked there."""
        self.route, self.worker, self.decision = route, worker, decision
        self.is_open = True

    @property
    def worker_id(self) -> str:
        """The worker that computes the prompt."""
        return self.decision.worker_id

    @property
    def rank(self) -> int:
        """The rank of that worker."""
        return self.decision.rank

    def on_failure(self, call: Callable[[], None]) -> None:
        """Call `call` once if the stage fails; at once if it has failed already."""
        if self.failure is not None:
            call()
        else:
            self._calls.append(call)

    def forget(self) -> None:
        """Nobody waits for it any more."""
        self._calls = []

    def fail(self, reason: str, refusal: Reply | None = None) -> None:
        """Tell whoever waits that nothing will come of it."""
        self.failure, self.refusal = reason, refusal
        calls, self._calls = self._calls, []
        for call in calls:
            call()


class Stages(Protocol):
    """What the sender needs of the dispatcher, which books, counts and learns for both stages alike."""

    def depart(self, prefill: Prefill, decision: Decision) -> Route:
        """Book the decision of a second stage, and tell the way."""
        ...

    def depart_prefill(self, prefill: Prefill, decision: Decision) -> None:
        """Book the decision of a first stage, and tell it the way."""
        ...

    def expect(self, prefill: Prefill) -> None:
        """The second stage will have the prompt."""
        ...

    def depart_whole(self, prefill: Prefill) -> Route:
        """Decide where one worker does it all, book it, and tell the way; raises `RoutingError`."""
        ...

    def first_token(self, route: Route) -> None:
        """Prefill is over."""
        ...

    def finished(self, route: Route, outcome: Outcome, usage: Usage | None) -> None:
        """A stage has ended."""
        ...


class SplitSender:
    """Runs first stages, and prepares second ones for the data plane."""

    def __init__(
        self,
        *,
        registry: WorkerRegistry,
        planner: SplitPlanner,
        pool: UpstreamPool,
        timeout_seconds: float,
        attempts_max: int,
        clock: Callable[[], float],
        randomness: random.Random,
    ) -> None:
        self.planner, self.counts = planner, SplitCounts()
        self._registry, self._pool, self._clock, self._random = registry, pool, clock, randomness
        self._timeout_seconds, self._attempts_max = timeout_seconds, attempts_max
        self._tasks: set[asyncio.Task[Any]] = set()
        """Bounded by the requests under way; ended by `close`."""

    def change(self, *, timeout_seconds: float, attempts_max: int, tokens_min: int) -> None:
        """Take other bounds for what begins from now on."""
        self._timeout_seconds, self._attempts_max = timeout_seconds, attempts_max
        self.planner.tokens_min = tokens_min

    def __len__(self) -> int:
        """First stages under way."""
        return len(self._tasks)

    def leave(self, stages: Stages, prefill: Prefill, decode: Route) -> "Route | asyncio.Task[Route | Reply]":
        """Send the first stage off; return the way of the second, at once or when the first is over."""
        prefill.has_left = True
        if prefill.worker.spec.engine == "sglang":
            self._both_at_once(stages, prefill, decode)
            return decode
        work = _PrefillFirst(self, stages, prefill, decode)
        task = self._spawn(work.run())
        task.add_done_callback(work.settle)
        return task

    def ended(self, stages: Stages, prefill: Prefill, outcome: Outcome) -> None:
        """The second stage has ended; without it, the first one is of no use."""
        prefill.forget()
        if outcome == "ok" or prefill.failure is not None:
            return
        if prefill.task is None:
            self._drop(stages, prefill)
        else:
            prefill.task.cancel()

    async def close(self) -> None:
        """Stop what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- SGLang --------------------------------------------------------------------------------------------------------

    def _both_at_once(self, stages: Stages, prefill: Prefill, decode: Route) -> None:
        body = prefill.request.body
        members = self._room(prefill, body)
        ranks, rank = prefill.worker.rank_members, prefill.rank
        told = {} if ranks is None else {"disagg_prefill_dp_rank": rank}
        decode.body = with_members(body if decode.body is None else decode.body, {**members, **told})
        decode.companion = prefill
        stages.expect(prefill)
        own = {} if ranks is None else ranks[rank]
        prefill.task = self._spawn(self._beside(stages, prefill, with_members(body, {**members, **own})))
        prefill.task.add_done_callback(lambda _: self._drop(stages, prefill))

    def _room(self, prefill: Prefill, body: bytes) -> dict[str, Any]:
        """Where the two meet. A prefill server takes the room's number modulo its ranks for the rank."""
        spec = prefill.worker.spec
        host = prefill.route.endpoint.host
        place = {"bootstrap_host": f"[{host}]" if ":" in host else host, "bootstrap_port": spec.bootstrap_port}
        prompt = member(body, "prompt")
        batch = len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)) else 0
        rooms = [self._new_room(spec.ranks, prefill.rank - spec.first_rank) for _ in range(batch or 1)]
        if not batch:
            return {**place, "bootstrap_room": rooms[0]}
        return {**{name: [value] * batch for name, value in place.items()}, "bootstrap_room": rooms}

    def _new_room(self, ranks: int, offset: int) -> int:
        room = self._random.getrandbits(_ROOM_BITS)
        return room - room % ranks + offset

    async def _beside(self, stages: Stages, prefill: Prefill, body: bytes) -> None:
        """Compute the prompt while the decode worker waits for it."""
        try:
            response = await self.ask(prefill, body)
        except UpstreamError as error:
            self.over(stages, prefill, error.outcome)
            prefill.fail(f"the prompt was not computed: {error}")
            return
        outcome = self.over(stages, prefill, "ok", response)
        if response.status >= 300:
            reason = f"the prompt was not computed: it was answered with {response.status}"
            prefill.fail(reason, _refusal(response) if outcome == "ok" else None)

    # -- what both have in common --------------------------------------------------------------------------------------

    async def ask(self, prefill: Prefill, body: bytes) -> Response:
        """Send the first stage and wait for its whole answer.

        Raises:
            UpstreamError: there is none.
        """
        request, route, began = prefill.request, prefill.route, self._clock()
        headers = [(b"x-request-id", request.id.encode())]
        headers += [(name, value) for name, value in request.headers if name in _PASSED_ON]
        authorization = request.header(b"authorization")
        if route.endpoint.authorization is None and authorization:
            headers.append((b"authorization", authorization))
        if route.extra_headers:
            headers.append((b"x-data-parallel-rank", b"%d" % prefill.rank))
        response = await fetch(
            self._pool,
            route.endpoint,
            request.method,
            request.path,
            headers=headers,
            body=body,
            timeout_seconds=self._timeout_seconds,
            max_bytes=_ANSWER_BYTES_MAX,
            reserved=False,
        )
        self.counts.seconds.observe(self._clock() - began)
        return response

    def over(self, stages: Stages, prefill: Prefill, outcome: Outcome, response: Response | None = None) -> Outcome:
        """Book off a first stage, and learn from it; a worker that is too busy has failed, one that refuses has not."""
        usage = None
        if response is not None:
            busy = response.status >= 500 or response.status in _BUSY
            outcome = "error_status" if busy else "ok"
            if response.status < 300:
                stages.first_token(prefill.route)
                usage = find_usage(without_framing(response.body[-TAIL_BYTES:]))
        prefill.is_open = False
        stages.finished(prefill.route, outcome, usage)
        prefills = self.counts.prefills
        prefills[outcome] = prefills.get(outcome, 0) + 1
        return outcome

    def another(self, stages: Stages, prefill: Prefill, decode: Route, excluded: set[str]) -> bool:
        """Turn to another worker for the first stage; False if there is none, or enough were tried."""
        if len(excluded) >= self._attempts_max:
            return False
        asked = prefill.asked._replace(exclude={*prefill.asked.exclude, *excluded})
        try:
            found = self.planner.prefill(asked, decode.worker_id, self._clock())
            if found is None or found.worker_id == decode.worker_id:
                return False
            stages.depart_prefill(prefill, found)
        except RoutingError:
            return False
        return True

    def decode_again(self, stages: Stages, prefill: Prefill, decode: Route) -> Route:
        """The way of the second stage: as it was decided, or anew if the worker takes no requests any more."""
        worker = self._registry.workers.get(decode.worker_id)
        if worker is not None and worker.endpoint is decode.endpoint and not worker.reasons():
            return decode
        stages.finished(decode, *_GONE)
        return stages.depart(prefill, self.planner.decode(prefill.asked, prefill.worker_id, self._clock()))

    def _drop(self, stages: Stages, prefill: Prefill) -> None:
        """Book off a first stage that nobody waits for any more."""
        if prefill.is_open:
            prefill.is_open = False
            stages.finished(prefill.route, *_GONE)

    def _spawn(self, work: Any) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(work, name="prefill")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _PrefillFirst:
    """vLLM's way: one stage after the other. Whatever happens, both are booked off exactly once."""

    def __init__(self, sender: SplitSender, stages: Stages, prefill: Prefill, decode: Route) -> None:
        self._sender, self._stages, self._prefill = sender, stages, prefill
        self._decode: Route | None = decode
        self._excluded: set[str] = set()

    async def run(self) -> Route | Reply:
        """Compute the prompt, and tell the way of the second stage; or what the client is told instead."""
        decode, prefill = self._decode, self._prefill
        assert decode is not None
        while (response := await self._try()) is None:
            self._excluded.add(prefill.worker_id)
            if not self._sender.another(self._stages, prefill, decode, self._excluded):
                self._sender.counts.fallbacks += 1
                self._leave_decode()
                return self._stages.depart_whole(prefill)
        if response.status >= 300:
            self._leave_decode()
            return _refusal(response)
        self._decode = None
        route = self._sender.decode_again(self._stages, prefill, decode)
        params = member(response.body, "kv_transfer_params")
        self._stages.expect(prefill)
        if isinstance(params, dict):
            body = prefill.request.body if route.body is None else route.body
            route.body = with_members(body, {"kv_transfer_params": params})
        else:
            self._sender.counts.fallbacks += 1  # its engine has no connector; the decode engine computes the prompt
        return route

    def settle(self, task: "asyncio.Task[Any]") -> None:
        """Book off what a task has left that did not end by itself: its client is gone, or something failed."""
        if task.cancelled() or task.exception() is not None:
            self._leave_decode()

    async def _try(self) -> Response | None:
        """One worker's answer; None if it failed."""
        sender, prefill = self._sender, self._prefill
        try:
            response = await sender.ask(prefill, _one_token(prefill.request.body))
        except UpstreamError as error:
            sender.over(self._stages, prefill, error.outcome)
            return None
        return response if sender.over(self._stages, prefill, "ok", response) == "ok" else None

    def _leave_decode(self) -> None:
        """The second stage will not come; nor will the first, if it is under way."""
        route, self._decode = self._decode, None
        if route is not None:
            self._stages.finished(route, *_GONE)


_GONE: Final[tuple[Outcome, None]] = ("client_gone", None)


def _one_token(body: bytes) -> bytes:
    """The client's request, for one token in one piece."""
    members: dict[str, Any] = {"max_tokens": 1, "stream": False, "kv_transfer_params": _ASK_VLLM}
    if member(body, "max_completion_tokens") is not None:
        members["max_completion_tokens"] = 1
    if member(body, "min_tokens") is not None:
        members["min_tokens"] = 1
    return with_members(body, members, without=("stream_options",))


def _refusal(response: Response) -> Reply:
    """What a worker says of a request that it will not take, as the client gets it."""
    headers = [(name, value) for name, value in response.headers if name == b"content-type"]
    return Reply(response.status, response.body, headers)
