"""A worker's share of a request queue: takes requests with a bound, has its endpoints work on them, settles each one.

A request ends in one of three ways: answered, given back to be tried again, or dead. What cannot be said to the store
at the moment is said again until it can, while the request stays held; nothing is worked on twice for that.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from kvrouter.errors import DeadlineError, RefusedError, StoreError, TransportError, WireError
from kvrouter.store.queues import MESSAGE_BYTES_MAX, Delivery, QueueConsumer
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.queue_wire import CollectedAnswer
from kvrouter.transport.request_queue import Answer, QueuedRequest, RequestQueue, read_queued

__all__ = ["QueueCounters", "QueueWorker"]

_FETCH_SECONDS: Final = 1.0
_BACK_OFF_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ACKNOWLEDGE_TRIES: Final = 5
_ANSWER_BYTES_MAX: Final = MESSAGE_BYTES_MAX - (16 << 10)
_HOPELESS: Final = frozenset(
    {
        "ALREADY_EXISTS",
        "DEADLINE_EXCEEDED",
        "FAILED_PRECONDITION",
        "INVALID_ARGUMENT",
        "OUT_OF_RANGE",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "UNIMPLEMENTED",
    }
)
"""Codes of failures that the same request would meet again."""


@dataclass(slots=True)
class QueueCounters:
    """What happened since the start. Each delivery that is `taken` is counted once more in another way."""

    taken: int = 0
    completed: int = 0
    failed: int = 0
    """Attempts that failed, whatever became of the request."""
    retried: int = 0
    repeated: int = 0
    """Deliveries of requests that were done with, or in work here, already."""
    returned: int = 0
    """Given back because the worker was drained."""
    dead: dict[str, int] = field(default_factory=dict)
    """By reason."""
    store_failures: int = 0


class QueueWorker:
    """Works on the requests of one queue with the handlers of `endpoints`; lives on one event loop.

    At most `running_max` at a time; more stay in the queue, for others. A request that fails is tried again after
    `retry_seconds` (the last one repeats), until `attempts_max` deliveries have failed, by whichever worker; then it
    is a dead letter, and its requester is told. A worker that dies holds its requests for `ack_seconds`.

    A request whose answer was kept and whose acknowledgement was lost is not worked on again by the same worker, and
    answered once by all. `clock` gives seconds of the epoch.
    """

    def __init__(
        self,
        requests: RequestQueue,
        endpoints: Endpoints,
        *,
        running_max: int = 16,
        attempts_max: int = 5,
        ack_seconds: float = 30.0,
        retry_seconds: tuple[float, ...] = (1.0, 5.0, 30.0, 120.0),
        answer_bytes_max: int = _ANSWER_BYTES_MAX,
        remembered_max: int = 65_536,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.counters = QueueCounters()
        self._requests, self._endpoints, self._clock = requests, endpoints, clock
        self._running_max, self._attempts_max = running_max, attempts_max
        self._ack_seconds, self._retry_seconds = ack_seconds, retry_seconds
        self._answer_bytes_max, self._remembered_max = answer_bytes_max, remembered_max
        self._held: dict[asyncio.Task[None], Delivery] = {}
        self._running: set[str] = set()
        self._done: set[str] = set()
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._draining, self._taken_all, self._ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def __len__(self) -> int:
        """Requests that are held now."""
        return len(self._held)

    async def run(self) -> None:
        """Work until `drain`. Once."""
        consumer: QueueConsumer | None = None
        try:
            consumer = await self._join()
            if consumer is None:
                return
            async with asyncio.TaskGroup() as tasks:
                extending = tasks.create_task(self._extend(consumer), name="queue extensions")
                await self._take(tasks, consumer)
                self._taken_all.set()
                while self._held:
                    await asyncio.wait(tuple(self._held))
                extending.cancel()
        finally:
            self._ended.set()
            if consumer is not None:
                await consumer.close()

    async def drain(self, seconds: float) -> int:
        """Take nothing more and wait for what runs, at most so long; give back the rest and return how many."""
        self._draining.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        left = tuple(self._held)
        for task in left:
            task.cancel()
        await self._ended.wait()
        return len(left)

    # -- taking -------------------------------------------------------------------------------------------------------

    async def _join(self) -> QueueConsumer | None:
        failures = 0
        while not self._draining.is_set():
            try:
                return await self._requests.queue.worker_group(ack_seconds=self._ack_seconds)
            except StoreError as error:
                await self._failed(error, failures)
                failures += 1
        return None

    async def _take(self, tasks: asyncio.TaskGroup, consumer: QueueConsumer) -> None:
        failures = 0
        while not (self._draining.is_set() or self._endpoints.draining):
            room = self._running_max - len(self._held)
            if room <= 0:
                held = tuple(self._held)
                await asyncio.wait(held, timeout=_FETCH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                deliveries = await consumer.fetch(room, wait_seconds=_FETCH_SECONDS)
                failures = 0
            except StoreError as error:
                await self._failed(error, failures)
                failures += 1
                continue
            for delivery in deliveries:
                self._start(tasks, consumer, delivery)

    def _start(self, tasks: asyncio.TaskGroup, consumer: QueueConsumer, delivery: Delivery) -> None:
        self.counters.taken += 1
        task = tasks.create_task(self._hold(consumer, delivery), name=f"queued {delivery.message.sequence}")
        self._held[task] = delivery
        task.add_done_callback(lambda done: self._held.pop(done, None))

    async def _extend(self, consumer: QueueConsumer) -> None:
        """Say of what is held that it is still worked on."""
        while True:
            await asyncio.sleep(self._ack_seconds / 3)
            try:
                await consumer.extend(*self._held.values())
            except StoreError:
                self.counters.store_failures += 1  # It may be delivered again; who has it in work knows that.

    # -- one request --------------------------------------------------------------------------------------------------

    async def _hold(self, consumer: QueueConsumer, delivery: Delivery) -> None:
        try:
            if not self._draining.is_set():
                await self._settle(consumer, delivery)
                return
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._draining.is_set() or task is None:
                raise
            task.uncancel()  # It is `drain` that wants this one back in the queue.
        if delivery.token in self._done:
            await self._acknowledge(consumer, delivery)
            return
        self.counters.returned += 1
        await self._taken_all.wait()  # Or it would come back to this worker.
        await self._try(lambda: consumer.give_back(delivery))

    async def _settle(self, consumer: QueueConsumer, delivery: Delivery) -> None:
        try:
            queued = read_queued(delivery.message, now=self._clock())
        except WireError as error:
            await self._bury(consumer, delivery, None, "malformed", str(error))
            return
        request_id = queued.decoded.id
        if request_id in self._finished:
            self.counters.repeated += 1
            await self._acknowledge(consumer, delivery)
        elif request_id in self._running:
            self.counters.repeated += 1  # Left alone: it comes again unless the one in work acknowledges it.
        elif delivery.deliveries > self._attempts_max:
            text = f"{delivery.deliveries - 1} workers took it and neither answered nor gave it back"
            await self._bury(consumer, delivery, queued, "abandoned", text)
        else:
            self._running.add(request_id)
            try:
                await self._attempt(consumer, delivery, queued)
            finally:
                self._running.discard(request_id)

    async def _attempt(self, consumer: QueueConsumer, delivery: Delivery, queued: QueuedRequest) -> None:
        decoded = queued.decoded
        try:
            items = await self._work(queued)
            await self._answer(delivery, queued, Answer(id=decoded.id, items=tuple(items)))
        except TransportError as error:
            self.counters.failed += 1
            if error.code in _HOPELESS or delivery.deliveries >= self._attempts_max:
                await self._bury(consumer, delivery, queued, error.code, str(error))
                return
            self.counters.retried += 1
            delay = self._retry_seconds[min(delivery.deliveries, len(self._retry_seconds)) - 1]
            await self._try(lambda: consumer.give_back(delivery, delay_seconds=delay))
            return
        self.counters.completed += 1
        self._remember(decoded.id)
        await self._acknowledge(consumer, delivery)

    async def _work(self, queued: QueuedRequest) -> list[bytes]:
        """Have the handler work; returns its items, or raises what it failed with."""
        decoded = queued.decoded
        seconds = decoded.remaining_seconds
        expired = DeadlineError("its deadline was over before it was answered")
        if seconds is not None and seconds <= 0.0:
            raise expired
        answer = CollectedAnswer(bytes_max=self._answer_bytes_max)
        try:
            async with asyncio.timeout(seconds) as limit:
                await self._open(queued, answer)
                return await answer.items()
        except TimeoutError:
            assert limit.expired(), "nothing else here has a time"
            raise expired from None
        finally:
            answer.abandon()
            if answer.opened and not answer.succeeded:
                self._endpoints.forget(decoded.id)

    async def _open(self, queued: QueuedRequest, answer: CollectedAnswer) -> None:
        """Bring the request in; where the endpoints have all that they take from others, wait."""
        while True:
            try:
                answer.stream = self._endpoints.open(queued.decoded, answer, answer.limits)
            except RefusedError as error:
                if error.code != "RESOURCE_EXHAUSTED" or self._draining.is_set():
                    raise
                await asyncio.sleep(error.retry_after_seconds or 1.0)
            else:
                return

    # -- what the store is told ---------------------------------------------------------------------------------------

    async def _answer(self, delivery: Delivery, queued: QueuedRequest, answer: Answer) -> None:
        """Keep the answer, if anybody waits for it; raises TransportError where no store would."""
        if not queued.reply_to:
            return
        message = delivery.message
        message_id = f"{message.sequence}@{message.published:.6f}"
        try:
            await self._until_kept(lambda: self._requests.answer(queued.reply_to, answer, message_id=message_id))
        except StoreError as error:
            raise TransportError(f"its answer cannot be kept: {error}", code="FAILED_PRECONDITION") from error

    async def _bury(
        self, consumer: QueueConsumer, delivery: Delivery, queued: QueuedRequest | None, reason: str, text: str
    ) -> None:
        """Make it a dead letter, tell its requester, and be done with it."""
        decoded = None if queued is None else queued.decoded
        message, died = delivery.message, self._clock()
        await self._until_kept(
            lambda: self._requests.dead_letters.bury(
                message,
                request_id=decoded.id if decoded is not None else message.id or "",
                endpoint="" if decoded is None else decoded.request.endpoint,
                reason=reason,
                text=text,
                attempts=delivery.deliveries,
                died=died,
            )
        )
        self.counters.dead[reason] = self.counters.dead.get(reason, 0) + 1
        if queued is not None:
            code = "ABORTED" if reason == "abandoned" else reason
            with contextlib.suppress(TransportError):  # Where its answers cannot be kept, the letter says why.
                failure = Answer(id=queued.decoded.id, error=TransportError(text, code=code))
                await self._answer(delivery, queued, failure)
        await self._acknowledge(consumer, delivery)

    async def _acknowledge(self, consumer: QueueConsumer, delivery: Delivery) -> None:
        """It is settled: whoever interrupts this must not give it back."""
        self._done.add(delivery.token)
        await self._try(lambda: consumer.acknowledge(delivery))
        self._done.discard(delivery.token)

    async def _until_kept(self, keep: Callable[[], Awaitable[None]]) -> None:
        """Say it until it is kept; raises StoreError where that would never be."""
        failures = 0
        while True:
            try:
                await keep()
            except StoreError as error:
                await self._failed(error, failures)
                failures += 1
            else:
                return

    async def _try(self, tell: Callable[[], Awaitable[None]]) -> None:
        """Tell the queue what became of a delivery, or leave it: then it comes again, and is known."""
        for failures in range(_ACKNOWLEDGE_TRIES):
            try:
                await tell()
            except StoreError as error:
                await self._failed(error, failures)
            else:
                return

    async def _failed(self, error: StoreError, failures: int) -> None:
        """Count it and wait, the longer the more often it failed; raises what will not pass by itself."""
        if error.reason not in ("full", "unavailable"):
            raise error
        self.counters.store_failures += 1
        await asyncio.sleep(_BACK_OFF_SECONDS[min(failures, len(_BACK_OFF_SECONDS) - 1)])

    def _remember(self, request_id: str) -> None:
        self._finished[request_id] = None
        if len(self._finished) > self._remembered_max:
            self._finished.popitem(last=False)
