"""Answers `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`: each instance exactly once per question."""

from collections.abc import Awaitable, Callable

from kvrouter.reporting.broker import Broker, Msg
from kvrouter.reporting.service_records import (
    EndpointStats,
    ServiceIdentity,
    encode_info,
    encode_ping,
    encode_stats,
    subjects,
)

__all__ = ["StatsAnswers"]


class StatsAnswers:
    """One instance. A question is one message on one subject, of which the instance has one subscription."""

    def __init__(
        self, broker: Broker, identity: ServiceIdentity, *, started: str, read: Callable[[], list[EndpointStats]]
    ) -> None:
        self.answered = 0
        self._broker, self._identity, self._started, self._read = broker, identity, started, read
        self._ends: list[Callable[[], Awaitable[None]]] = []

    async def start(self) -> None:
        """Begin to answer. May be called again; answers stay single.

        Raises:
            ConnectionError: the server cannot be reached.
        """
        if self._ends:
            return
        try:
            for subject in subjects(self._identity):
                self._ends.append(await self._broker.listen(subject, self._heard))
        except BaseException:
            await self.stop()  # On some subjects only it would answer some questions only.
            raise
        await self._broker.flush()

    async def stop(self) -> None:
        """Answer no more. Idempotent."""
        ends, self._ends = self._ends, []
        for end in ends:
            await end()

    async def _heard(self, message: Msg) -> None:
        answer = self._answer(message.subject.split(".")[1])
        if message.reply and answer is not None:
            self.answered += await self._broker.publish(message.reply, answer)

    def _answer(self, verb: str) -> bytes | None:
        match verb:
            case "PING":
                return encode_ping(self._identity)
            case "INFO":
                return encode_info(self._identity)
            case "STATS":
                return encode_stats(self._identity, self._started, self._read())
        return None
