"""Failing on command: what `POST /fault` can do to an engine, so that tests need no luck to see it fail."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import msgspec

from kvrouter.errors import RequestError
from kvrouter.replay.engine.http import Exchange

__all__ = ["KINDS", "Breakable", "Fault", "Faults"]

KINDS = {
    "die": "the process exits with 1: at once, after `seconds`, or when a stream has sent `after_chunks` chunks",
    "cut": "the connection is reset when a stream has sent `after_chunks` chunks; `requests` times",
    "stall": "computing stops for `seconds` (0: until cleared), at once or after `after_chunks`; connections stay open",
    "freeze": "the whole process does nothing for `seconds`, health checks included",
    "refuse": "new connections are refused for `seconds`; open ones live on",
    "garbage": "the next `requests` requests are answered with bytes that are not HTTP",
    "error": "the next `requests` requests are answered with `status`",
    "unhealthy": "/health answers 503 for `seconds` (0: until cleared)",
    "slow": "every step takes `factor` times as long, for `seconds` (0: until cleared)",
    "restart_cache": "a new life in place: running requests are cut, the cache is empty, event sequences start at 0",
    "lose_events": "the next `batches` batches of events are numbered but not sent; a replay has them",
    "drop_events": "the next `batches` batches of events are never published and never numbered",
    "none": "clears what lasts",
}
_GARBAGE = b"\x16\x03\x01\x02\x00 this is not HTTP \xff\xfe\r\n\r\n"


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /fault."""

    kind: str
    after_chunks: int | None = None
    seconds: float = 0.0
    requests: int = 1
    status: int = 500
    factor: float = 10.0
    batches: int = 1


class Breakable(Protocol):
    """What faults need from an engine."""

    def pause(self) -> None:
        """Stop computing."""
        ...

    def resume(self) -> None:
        """Go on computing."""
        ...

    def slow_down(self, factor: float) -> None:
        """Make every step take `factor` times as long."""
        ...

    def refuse(self, *, refusing: bool) -> None:
        """Refuse new connections, or accept them again."""
        ...

    def restart_cache(self) -> None:
        """Begin a new life in place."""
        ...

    def lose_events(self, batches: int) -> None:
        """Number the next batches without sending them."""
        ...

    def drop_events(self, batches: int) -> None:
        """Never publish the next batches."""
        ...


class Faults:
    """The faults in force."""

    def __init__(self, engine: Breakable) -> None:
        self._engine = engine
        self._answers: list[Fault] = []
        """Faults that wait for requests: garbage, error."""
        self._streams: list[Fault] = []
        """Faults that wait for a stream to come far enough: die, cut, stall."""
        self.unhealthy = False

    def inject(self, body: Mapping[str, Any]) -> None:
        """Do what a POST /fault asks for.

        Raises:
            RequestError: there is no such fault.
        """
        try:
            fault = msgspec.convert(body, Fault)
        except msgspec.ValidationError as error:
            raise RequestError(str(error), param="fault") from error
        if fault.kind not in KINDS:
            raise RequestError(f"kind must be one of {', '.join(KINDS)}; got {fault.kind!r}", param="kind")
        if fault.kind in ("garbage", "error"):
            self._answers.append(fault)
        elif fault.kind == "cut" or (fault.kind in ("die", "stall") and fault.after_chunks is not None):
            self._streams.append(fault)
        else:
            cast("Callable[[Fault], None]", getattr(self, f"_{fault.kind}"))(fault)

    async def answer(self, exchange: Exchange) -> bool:
        """Answer a request wrongly if a fault waits for one; tell whether it did."""
        if not self._answers:
            return False
        fault = self._answers[0]
        fault.requests -= 1
        if fault.requests <= 0:
            self._answers.pop(0)
        if fault.kind == "garbage":
            await exchange.send_raw(_GARBAGE)
        else:
            message = {"message": "a fault was asked for", "type": "InternalServerError", "code": fault.status}
            await exchange.reply(fault.status, {"error": {**message, "param": None}})
        return True

    def chunk_sent(self, exchange: Exchange) -> None:
        """Look whether a stream has come far enough for a fault."""
        for fault in [fault for fault in self._streams if exchange.chunks >= (fault.after_chunks or 0)]:
            fault.requests -= 1
            if fault.requests <= 0:
                self._streams.remove(fault)
            if fault.kind == "die":
                os._exit(1)
            elif fault.kind == "cut":
                exchange.cut()
            else:
                self._stall(fault)

    def _none(self, fault: Fault) -> None:  # noqa: ARG002 - called by name, like the others
        self._answers.clear()
        self._streams.clear()
        self.unhealthy = False
        self._engine.resume()
        self._engine.slow_down(1.0)
        self._engine.refuse(refusing=False)
        self._engine.lose_events(0)
        self._engine.drop_events(0)

    def _die(self, fault: Fault) -> None:
        # Even "at once" leaves the time to answer the request that asked for it.
        asyncio.get_running_loop().call_later(max(fault.seconds, 0.02), os._exit, 1)

    def _stall(self, fault: Fault) -> None:
        self._engine.pause()
        self._later(fault.seconds, self._engine.resume)

    def _freeze(self, fault: Fault) -> None:
        asyncio.get_running_loop().call_later(0.02, time.sleep, fault.seconds)

    def _refuse(self, fault: Fault) -> None:
        self._engine.refuse(refusing=True)
        self._later(fault.seconds, lambda: self._engine.refuse(refusing=False))

    def _unhealthy(self, fault: Fault) -> None:
        self.unhealthy = True
        self._later(fault.seconds, lambda: setattr(self, "unhealthy", False))

    def _slow(self, fault: Fault) -> None:
        self._engine.slow_down(fault.factor)
        self._later(fault.seconds, lambda: self._engine.slow_down(1.0))

    def _restart_cache(self, fault: Fault) -> None:  # noqa: ARG002 - called by name, like the others
        self._engine.restart_cache()

    def _lose_events(self, fault: Fault) -> None:
        self._engine.lose_events(fault.batches)

    def _drop_events(self, fault: Fault) -> None:
        self._engine.drop_events(fault.batches)

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        if seconds > 0:
            asyncio.get_running_loop().call_later(seconds, undo)
