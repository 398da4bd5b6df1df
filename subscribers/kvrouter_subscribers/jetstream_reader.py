"""Reads one stream of one server for all sources on it: one connection, one durable pull consumer.

Messages are taken strictly in the stream's order, and acknowledged after the sink has them. After every loss of the
connection the consumer is made anew behind the last message that was handed over, so that nothing has to be
delivered again to be complete. Messages that the stream dropped before we read them are noticed here; what they mean
for each source is found out by `jetstream_recovery`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error
from nats.js import JetStreamContext
from nats.js.api import StreamInfo

from kvrouter.errors import WireError
from kvrouter.events import Source, decode_envelope
from kvrouter.events.load import LoadReport, decode_load
from kvrouter.events.nats_names import NatsEndpoint, load_subjects
from kvrouter_subscribers.jetstream_connection import connection
from kvrouter_subscribers.jetstream_consumer import ConsumerTakenError, join_consumer, make_consumer
from kvrouter_subscribers.jetstream_limits import JetStreamLimits
from kvrouter_subscribers.jetstream_pull import Place, Puller
from kvrouter_subscribers.jetstream_recovery import Recovery
from kvrouter_subscribers.jetstream_source import FollowedSource
from kvrouter_subscribers.jetstream_status import Mode, NatsAccess, StreamStatus

__all__ = ["StreamReader"]

_TICK_SECONDS = 0.25
_LOADS_WAITING_MAX = 4096

_log = logging.getLogger("kvrouter_subscribers")


class StreamReader:
    """Reads until its task is cancelled. `sources` may change at any time through `follow` and `leave`."""

    def __init__(
        self,
        endpoint: NatsEndpoint,
        access: NatsAccess,
        *,
        consumer: str,
        token: str,
        mode: Mode,
        start_after: int,
        limits: JetStreamLimits,
        on_load: Callable[[LoadReport], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.sources: dict[Source, FollowedSource] = {}
        self.connected = False
        self._access, self._consumer, self._mode, self._limits = access, consumer, mode, limits
        self._token, self._on_load = token, on_load
        self._recovery: Recovery | None = None
        self._client: Client | None = None
        self._position = self._acknowledged = start_after
        self._catch_up_to = 0
        self._created: object = None
        self._unacknowledged = self._pending = 0
        self._messages = self._unknown = self._malformed = self._redelivered = self._missed = 0
        self._load_reports = 0
        self._connects = self.looks = self._name_conflicts = 0
        self._conflict_told = False
        self.last_error: str | None = None

    @property
    def position(self) -> int:
        """The last message that was handed over and acknowledged; to be stored with what was made of it."""
        return self._acknowledged

    def follow(self, followed: FollowedSource) -> None:
        """Hand over what comes of a source."""
        self.sources[followed.source] = followed
        if self.connected:
            self._greet(followed, whole=True, read=True)

    def leave(self, source: Source) -> None:
        """Hand over nothing more of a source."""
        if self.sources.pop(source, None) is not None and self._recovery is not None:
            self._recovery.cancel(source)

    def resync(self, source: Source) -> bool:
        """Get a source's whole state anew; False if it cannot be asked now."""
        if self._recovery is None or self._mode != "broadcast" or source not in self.sources:
            return False
        self._recovery.want_snapshot(self.sources[source])
        return True

    def status(self) -> StreamStatus:
        """Return what is known about the stream."""
        return StreamStatus(
            endpoint=str(self.endpoint),
            consumer=self._consumer,
            connected=self.connected,
            position=self._position,
            acknowledged=self._acknowledged,
            pending=self._pending,
            messages=self._messages,
            unknown=self._unknown,
            malformed=self._malformed,
            redelivered=self._redelivered,
            missed=self._missed,
            load_reports=self._load_reports,
            connects=self._connects,
            looks=self.looks,
            name_conflicts=self._name_conflicts,
            last_error=self.last_error,
        )

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Read the stream over one connection after the other; `tasks` owns what is done beside."""
        limits = self._limits
        pause = limits.reconnect_seconds
        while True:
            _obey()
            connects = self._connects
            try:
                async with connection(self.endpoint, self._access) as client:
                    self.last_error = f"{self.endpoint}: {await self._session(client, tasks)}"
            except ConsumerTakenError as error:
                self._conflicts(error)
            except Exception as error:  # noqa: BLE001 - supervised edge: whatever a peer says, the stream is read again
                self.last_error = f"{self.endpoint}: {type(error).__name__}: {error}".rstrip(": ")
            if self._connects > connects:
                pause = limits.reconnect_seconds
            await asyncio.sleep(pause)
            pause = min(2 * pause, limits.reconnect_seconds_max)

    def _conflicts(self, error: ConsumerTakenError) -> None:
        """Tell that somebody else has our name: an operator has to give one of us another."""
        self.last_error = f"{self.endpoint}: {error}"
        self._name_conflicts += 1
        if not self._conflict_told:
            self._conflict_told = True
            _log.warning("router_name_taken: %s", self.last_error)

    async def _session(self, client: Client, tasks: asyncio.TaskGroup) -> str:
        """Read until the consumer is gone; returns why. The end of the connection ends it anywhere."""
        stream, limits = self.endpoint.stream, self._limits
        jetstream = client.jetstream(timeout=limits.request_seconds)
        with self._naming("the stream"):
            info = await jetstream.stream_info(stream)
        whole = self._compare(info)
        with self._naming("our consumer"):
            pending = await self._open_consumer(client)
        puller = Puller(client, stream=stream, consumer=self._consumer, limits=limits, take=self._take)
        recovery = Recovery(client, stream, limits=limits, tasks=tasks, position=lambda: self._position)
        self._client, self._recovery = client, recovery
        self._up(info.state.last_seq if pending else 0, whole=whole)
        try:
            await puller.open()
            if self._on_load is not None:
                await client.subscribe(load_subjects(stream), cb=self._take_load, pending_msgs_limit=_LOADS_WAITING_MAX)
            return await self._watch(jetstream, puller)
        finally:
            self._down()
            recovery.close()
            with contextlib.suppress(Error, OSError):
                await puller.close()

    @contextlib.contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Say what the server was asked about when it does not answer: the library's error does not."""
        try:
            yield
        except TimeoutError as error:
            raise TimeoutError(f"no answer about {what} within {self._limits.request_seconds:g} s") from error

    def _compare(self, info: StreamInfo) -> bool:
        """Compare the stream with what was read of it; returns whether nothing is missing between."""
        state, position = info.state, self._position
        renewed = self._created not in (None, info.created) or state.last_seq < position
        self._created = info.created
        if renewed:  # The server lost its data, or somebody made the stream anew: its numbers mean something else now.
            self._position = self._acknowledged = 0
            return False
        missed = max(0, state.first_seq - position - 1) if position else 0
        self._missed += missed
        self._position += missed
        return not missed

    async def _open_consumer(self, client: Client) -> int:
        """Read behind the last message that was handed over; returns how many messages will come at once."""
        stream, position, limits = self.endpoint.stream, self._position, self._limits
        if self._mode == "worker-group":
            return await join_consumer(client, stream, self._consumer, position=position, limits=limits)
        return await make_consumer(client, stream, self._consumer, token=self._token, position=position, limits=limits)

    def _up(self, catch_up_to: int, *, whole: bool) -> None:
        """Tell every source's sink; what is in the stream already answers for the replays that sinks want now."""
        self.connected, self.last_error = True, None
        self._connects += 1
        self._conflict_told = False
        self._unacknowledged = 0
        self._catch_up_to = catch_up_to
        for followed in list(self.sources.values()):
            self._greet(followed, whole=whole)
        self._catch_up()

    def _down(self) -> None:
        if self.connected:
            self.connected, self._recovery, self._client = False, None, None
            for followed in list(self.sources.values()):
                followed.disconnected()

    def _greet(self, followed: FollowedSource, *, whole: bool, read: bool = False) -> None:
        """Announce the connection to a source's sink; what it asks for is what is read next, or was `read` already."""
        receipt, recovery = followed.connected(), self._recovery
        if receipt is None or recovery is None:
            return
        if self._mode == "worker-group":  # Each member sees a part; what is missing here others have.
            if receipt.replay_from is not None:
                followed.replay_finished(complete=False)
            return
        followed.catching_up, followed.found = None if read else receipt.replay_from, 0
        if not whole:
            self._owe(followed)
        recovery.answer(followed, receipt)
        if not whole:
            return
        if followed.last is not None and receipt.replay_from is not None:
            # The stream goes on where we left it, so no other life of the publisher can have begun between.
            recovery.answer(followed, followed.receive(followed.last, replayed=True))

    def _catch_up(self) -> None:
        """Tell the sinks that what was in the stream when the connection was made has been read."""
        if self._recovery is None or self._position < self._catch_up_to:
            return
        self._catch_up_to = 0
        for followed in list(self.sources.values()):
            start, followed.catching_up = followed.catching_up, None
            if start is None:
                continue
            if followed.found:
                self._recovery.answer(followed, followed.replay_finished(complete=True))
            else:  # Nothing of it is in the stream, so the publisher alone can tell what it holds.
                self._recovery.want_snapshot(followed, instead_of=start)

    async def _take(self, data: bytes, place: Place, acknowledge: str) -> None:
        """Hand over one message, then acknowledge it."""
        self._messages += 1
        self._pending = place.pending
        self._redelivered += place.deliveries > 1
        shared, position, sequence = self._mode == "worker-group", self._position, place.stream_sequence
        if shared or sequence > position:
            if position and sequence > position + 1 and not shared:
                self._miss(sequence - position - 1)
            self._hand_over(data, sequence)
            self._position = max(position, sequence)
            if self._catch_up_to:
                self._catch_up_to = self._catch_up_to if place.pending else sequence
                self._catch_up()
        self._unacknowledged += 1
        if shared or not place.pending or self._unacknowledged >= self._limits.acknowledge_messages:
            await self._acknowledge(acknowledge)

    async def _acknowledge(self, subject: str) -> None:
        self._unacknowledged = 0
        if self._client is not None:
            with contextlib.suppress(Error):  # Lost with the connection: the next one begins behind our position.
                await self._client.publish(subject)
                self._acknowledged = self._position

    def _hand_over(self, data: bytes, place: int) -> None:
        try:
            envelope = decode_envelope(data)
        except WireError as error:
            self._malformed += 1
            self.last_error = f"{self.endpoint}: message {place}: {error}"
            return
        followed = self.sources.get(envelope.source)
        if followed is None:
            self._unknown += 1
        elif envelope.snapshot is not None:
            followed.reject(f"message {place}: a part of a snapshot stands among the events")
        else:
            receipt = followed.arrived(envelope, place, replayed=followed.catching_up is not None)
            if self._recovery is not None and self._mode == "broadcast":
                self._recovery.answer(followed, receipt)

    async def _take_load(self, message: Msg) -> None:
        """Hand over a load report, if it is of a source that is followed."""
        assert self._on_load is not None
        try:
            report = decode_load(message.data)
        except WireError as error:
            self._malformed += 1
            self.last_error = f"{self.endpoint}: {message.subject}: {error}"
            return
        followed = self.sources.get(report.source)
        if followed is not None:
            self._load_reports += followed.load_reported(report, self._on_load)

    def _miss(self, messages: int) -> None:
        """The stream dropped messages that we had not read; nobody knows whose they were."""
        self._missed += messages
        for followed in list(self.sources.values()):
            self._owe(followed)

    def _owe(self, followed: FollowedSource) -> None:
        """Get a source's whole state, however long its publisher cannot be reached."""
        followed.owes_snapshot = True
        if self._recovery is not None:
            self._recovery.want_snapshot(followed)

    async def _watch(self, jetstream: JetStreamContext, puller: Puller) -> str:
        """Wait for the end of the consumer, and look at the stream while it is silent."""
        messages, silent_since = self._messages, time.monotonic()
        while not puller.failed.is_set():
            _obey()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await puller.failed.wait()
            puller.check_silence()
            now = time.monotonic()
            if messages != self._messages:
                messages, silent_since = self._messages, now
            elif now - silent_since >= self._limits.look_seconds:
                silent_since = now
                await self._look(jetstream)
        return puller.reason

    async def _look(self, jetstream: JetStreamContext) -> None:
        """Ask whether the stream dropped messages at its end that nothing follows."""
        self.looks += 1
        messages = self._messages
        with self._naming("the stream"):
            state = (await jetstream.stream_info(self.endpoint.stream)).state
        missed = state.first_seq - self._position - 1
        if self._mode == "broadcast" and self._position and missed > 0 and messages == self._messages:
            self._position = state.first_seq - 1
            self._miss(missed)


def _obey() -> None:
    """End if we were to end: who is cancelled while an answer arrives does not notice it.

    The client library waits with `asyncio.wait_for`, which in Python 3.11 returns the answer then, and nobody cancels
    a second time.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
