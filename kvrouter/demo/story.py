"""The demo from its beginning to its end: two fleets after each other, the same requests to each, one comparison."""

import argparse
import asyncio
import json
import math
import signal
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import uvloop
from rich.console import Console

from kvrouter.demo.client import Answer, AnswerError, StreamingClient
from kvrouter.demo.display import Display, comparison_table, suggestions
from kvrouter.demo.fleet import BLOCK_SIZE, MODEL, Fleet, running_fleet
from kvrouter.demo.load import send
from kvrouter.demo.measures import Measures, comparison
from kvrouter.demo.workload import Workload, conversations

__all__ = ["tell"]

BASELINE = "round-robin"
FLEET_ROOM = 1.5
"""All caches together, relative to everything that is talked about."""
BLOCKS_MIN = 512
"""The longest conversation has to fit into one engine."""
REQUEST_SECONDS_MAX = 60.0


def tell(arguments: argparse.Namespace) -> int:
    """Run the demo; returns the exit code.

    Raises:
        KvrouterError: a request or a process failed; the text says which and how.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_interrupted(_Demo(arguments)))


async def _until_interrupted(demo: "_Demo") -> int:
    """Turn SIGINT and SIGTERM into an orderly end: whatever runs is left through its `finally`."""
    telling = asyncio.ensure_future(demo.run())
    caught: list[int] = []

    def interrupt(number: int) -> None:
        caught.append(number)
        if len(caught) == 1:  # Stopping is bounded in time; a second signal must not leave it half done.
            telling.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    try:
        await telling
    except asyncio.CancelledError:
        if not caught:
            raise
        return 0 if demo.told else 128 + caught[0]
    return 0


class _Demo:
    """One run of the demo, as its arguments want it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._workload = conversations(
            engines=arguments.engines, seconds=arguments.seconds, seed=arguments.seed, sessions=arguments.sessions
        )
        self._blocks = _blocks(self._workload, arguments.engines)
        self._display = Display(Console(stderr=True))
        self.told = False
        """Whether the comparison is out; what follows is only the fleet that `--keep` leaves running."""

    async def run(self) -> None:
        """Measure both policies, say what came out, and stay if asked to."""
        workload, policy = self._workload, self._arguments.policy
        async with AsyncExitStack() as stack:
            with self._display as display:
                display.introduce(workload, engines=self._arguments.engines, cached_tokens=self._blocks * BLOCK_SIZE)
                async with self._fleet(BASELINE) as fleet:
                    first = await self._measure(fleet, BASELINE)
                fleet = await stack.enter_async_context(self._fleet(policy))
                second = await self._measure(fleet, policy)
            self._report(first, second)
            self.told = True
            if self._arguments.keep:
                sys.stderr.write(suggestions(fleet))
                await fleet.router.ended()  # Engines may be broken at will; that is what a person is here for.

    def _fleet(self, policy: str) -> AbstractAsyncContextManager[Fleet]:
        arguments = self._arguments
        return running_fleet(engines=arguments.engines, blocks=self._blocks, policy=policy, seed=arguments.seed)

    async def _measure(self, fleet: Fleet, policy: str) -> Measures:
        """Send the whole workload; a process that ends in the meantime ends the demo."""
        measures = Measures()
        self._display.started(policy, fleet)
        client = StreamingClient(fleet.host, fleet.port, timeout_seconds=REQUEST_SECONDS_MAX)
        with self._display.line(policy, self._workload.requests) as show:

            def answered(answer: Answer) -> None:
                measures.add(answer)
                show(measures)

            sending = asyncio.ensure_future(send(self._workload, client, model=MODEL, answered=answered))
            watching = asyncio.ensure_future(fleet.ended())
            try:
                done, _ = await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
                if watching in done:
                    watching.result()
                measures.elapsed_seconds = sending.result()
            except AnswerError as error:
                raise AnswerError(f"a request under {policy} failed: {error}\n{fleet.router.last_words()}") from error
            finally:
                for task in (sending, watching):
                    task.cancel()
                await asyncio.wait({sending, watching})
                client.close()
        return measures

    def _report(self, first: Measures, second: Measures) -> None:
        policy = self._arguments.policy
        if self._arguments.json:
            sys.stdout.write(
                json.dumps(comparison(first, second, policy=policy, workload=self._described()), indent=2) + "\n"
            )
            sys.stdout.flush()
        else:
            Console().print(comparison_table(first, second, policy=policy))

    def _described(self) -> dict[str, Any]:
        workload = self._workload
        return {
            "engines": self._arguments.engines,
            "sessions": len(workload.sessions),
            "requests": workload.requests,
            "seconds": workload.seconds,
            "seed": self._arguments.seed,
            "distinct_tokens": workload.distinct_tokens,
            "engine_cache_tokens": self._blocks * BLOCK_SIZE,
        }


def _blocks(workload: Workload, engines: int) -> int:
    return max(BLOCKS_MIN, math.ceil(FLEET_ROOM * workload.distinct_tokens / engines / BLOCK_SIZE))
