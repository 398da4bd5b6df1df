"""The simulated engine put together: ranks, publishers, faults, HTTP. The composition root of the process."""

import asyncio
import os
import time

from kvrouter.replay.engine.app import App
from kvrouter.replay.engine.cache import PrefixCache
from kvrouter.replay.engine.faults import Faults
from kvrouter.replay.engine.http import HttpServer
from kvrouter.replay.engine.options import EngineOptions
from kvrouter.replay.engine.publishing import RankPublishers
from kvrouter.replay.engine.rank import Rank
from kvrouter.replay.engine.scheduler import Scheduler
from kvrouter.replay.engine.transfer import Transfers

__all__ = ["SimulatedEngine"]


LISTEN_AGAIN_SECONDS = 0.05


class SimulatedEngine:
    """One engine. `await start()`, then `await run()` until it is cancelled, then `close()`."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.publishers = RankPublishers(options)
        self.ranks = [self._rank(number) for number in range(options.ranks)]
        self.faults = Faults(self)
        self.transfers = Transfers(options)
        self.app = App(options, self.ranks, self.faults, self.transfers)
        self._server = HttpServer(self.app.handle)
        self._side = HttpServer(self.transfers.serve)
        self.port = options.port
        self._listening_again: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open every socket.

        Raises:
            SettingsError: an event port is taken.
            OSError: the HTTP port or that of the side channel is taken.
        """
        if self.transfers.enabled:
            self.transfers.port = await self._side.start(self.options.host, self.options.side_port)
        if self.options.events:
            self.publishers.open()
            self._connect_publishers()
        self.port = await self._server.start(self.options.host, self.options.port)

    async def run(self) -> None:
        """Compute until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for rank in self.ranks:
                tasks.create_task(rank.run(), name=f"rank-{rank.number}")

    def close(self) -> None:
        """Cut every connection and close the publishers."""
        if self._listening_again is not None:
            self._listening_again.cancel()
        self._server.close()
        self._side.close()
        self.publishers.close()

    def announcement(self) -> dict[str, object]:
        """Return the line that says where everything is."""
        options = self.options
        return {
            "event": "engine_ready",
            "url": f"http://{options.host}:{self.port}",
            "events": self.publishers.endpoint or None,
            "replay": self.publishers.replay_endpoint or None,
            "ranks": options.ranks,
            "side_port": self.transfers.port or None,
            "block_size": options.block_size,
            "blocks": options.blocks,
            "model": options.model,
            "pid": os.getpid(),
        }

    def pause(self) -> None:
        """Stop computing."""
        for rank in self.ranks:
            rank.pause()

    def resume(self) -> None:
        """Go on computing."""
        for rank in self.ranks:
            rank.resume()

    def slow_down(self, factor: float) -> None:
        """Make every step take `factor` times as long."""
        for rank in self.ranks:
            rank.slowdown = factor

    def refuse(self, *, refusing: bool) -> None:
        """Stop listening, or listen again on the same port."""
        if refusing:
            self._server.stop_listening()
        elif not self._server.listening:
            self._listening_again = asyncio.get_running_loop().create_task(self._listen_again(), name="listen-again")

    def restart_cache(self) -> None:
        """Begin a new life in place, as a supervisor that restarts an engine on the same ports would."""
        for rank in self.ranks:
            rank.restart(self._scheduler())
        if self.options.events:
            self.publishers.reopen()
            self._connect_publishers()

    def lose_events(self, batches: int) -> None:
        """Number the next batches of each rank without sending them."""
        for context in self.publishers.contexts:
            context.lose = batches

    def drop_events(self, batches: int) -> None:
        """Never publish the next batches of each rank."""
        for rank in self.ranks:
            rank.silent_batches = batches

    async def _listen_again(self) -> None:
        """Get our port back, whoever may have taken it in the meantime."""
        while True:
            try:
                await self._server.start(self.options.host, self.port)
            except OSError:
                await asyncio.sleep(LISTEN_AGAIN_SECONDS)
            else:
                return

    def _rank(self, number: int) -> Rank:
        return Rank(number, self._scheduler(), clock=time.monotonic, sleep=asyncio.sleep)

    def _scheduler(self) -> Scheduler:
        options = self.options
        chosen = options.cache_seed
        seed = os.urandom(16) if chosen is None else chosen.to_bytes(16, "big", signed=True)
        return Scheduler(
            PrefixCache(blocks=options.blocks, block_size=options.block_size, seed=seed),
            options.timing,
            running_max=options.running_max,
            step_tokens_max=options.step_tokens_max,
        )

    def _connect_publishers(self) -> None:
        for rank, publisher in zip(self.ranks, self.publishers.publishers, strict=True):
            rank.publisher = publisher
