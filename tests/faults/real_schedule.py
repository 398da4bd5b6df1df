"""A schedule of faults with real processes, brokers and connections: what happens is what its seed says.

When exactly things meet is up to the machine; so every promise holds at any moment. Those that are checked:

* Whenever a source is believed without doubt, what is claimed of it is what one of its lives held after the batch that
  is said to be applied: nothing that the channel has delivered is ignored, and nothing else is invented.
* After everything is healed, index and copies are the truth of every source. On the
  engines' own wire, which has no snapshots, they are never more than that, and no less unless that is said.
* Numbers that never came were made good by a snapshot, or are counted as lost. Nothing was damaged on the way.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.real_cache import Copies
from tests.faults.real_lines import BROKERS, Line, Party, party
from tests.faults.real_routers import Claims, EventRouter, InProcessRouter, RouterProcess

__all__ = ["RealSchedule"]

HEAL_SECONDS = 120.0
WORK_SHARE = 0.7
_POLL_SECONDS = 0.02
_MARKER_SECONDS = 0.3

Action = Callable[[], Awaitable[None]]


class RealSchedule:
    """Run it with `run`: any broken promise is an `AssertionError`. `log` tells what was done."""

    party: Party
    router: EventRouter

    def __init__(self, transport: str, seed: int, folder: Path, *, whole_router: bool = False) -> None:
        self.transport, self.folder, self.whole_router = transport, folder, whole_router
        self.random = random.Random(f"{transport} {seed}")
        self.log: list[str] = []

    async def run(self) -> None:
        """Let faults happen, then heal everything, and compare."""
        async with party(self.transport, self.folder, self.random) as self.party:
            self.log.append(self.party.describe())
            self.router, actions = self._make_router()
            for line in self.party.lines:
                line.begin()
            await self.router.start()
            try:
                for _ in range(self.random.randint(5, 15)):
                    (action,) = self.random.choices(list(actions), list(actions.values()))
                    await self._do(action)
                    if self.random.random() < WORK_SHARE:  # Faults matter to those who have something to say.
                        await self._do(self.work)
                await self.heal()
            finally:
                await self.router.stop()

    async def _do(self, action: Action) -> None:
        self.log.append(action.__name__)
        await action()
        await self.check()

    def _make_router(self) -> tuple[EventRouter, dict[Action, int]]:
        """Who listens, and all that may happen."""
        actions = {
            **self._actions(),
            self.restart_router: 1,
            self.restart_router_with_what_it_knew: 2,
        }
        if self.whole_router:
            return RouterProcess(self.party), actions
        router = InProcessRouter(self.party)

        async def save() -> None:
            """What is known is written down."""
            router.save()

        async def doubt() -> None:
            """Requests found less than was promised."""
            router.doubt(self._line())

        async def resync() -> None:
            """A person wants to be sure."""
            router.resync(self._line())

        return router, {**actions, save: 2, doubt: 1, resync: 1}

    def _actions(self) -> dict[Action, int]:
        """What may happen, and how often."""
        actions: dict[Action, int] = {
            self.rest: 4,
            self.flood: 2,
            self.kill_publisher: 2,
            self.kill_publisher_at_work: 2,
            self.replace_publisher: 1,
            self.pause_publisher: 1,
            self.begin_publisher: 2,
            self.cut: 2,
            self.refuse: 1,
            self.stall: 1,
            self.go_half_open: 1,
            self.be_slow: 1,
            self.cut_in_the_middle: 2,
            self.be_good: 2,
        }
        if self.transport in BROKERS:
            actions |= {
                self.kill_broker: 2,
                self.start_broker: 3,
                self.restart_broker: 2,
                self.restart_broker_without_data: 2,
                self.pause_broker: 2,
            }
        elif self.transport != "http":
            actions |= {self.lose_messages: 4, self.repeat_and_swap_messages: 2}
        return actions

    # What engines do.

    async def work(self) -> None:
        """Some steps."""
        await self._line().work(self.random.randint(1, 40))
        await self.pass_time(self.random.choice((0.0, 0.05)))

    async def flood(self) -> None:
        """More steps than a queue or a memory holds."""
        await self._line().work(self.random.choice((300, 1500)))

    async def rest(self) -> None:
        """Nothing, so that things get where they are going."""
        await self.pass_time(self.random.choice((0.1, 0.4)))

    async def kill_publisher(self) -> None:
        """The process is gone."""
        self._line().kill()

    async def kill_publisher_at_work(self) -> None:
        """The process is gone, in the middle of a batch, and another one takes its place."""
        line = self._line()
        await line.work(1000)
        await self.pass_time(self.random.random() * 0.03)
        line.kill()
        line.begin()

    async def replace_publisher(self) -> None:
        """It ends in good order; another one takes its place."""
        line = self._line()
        await line.close()
        if line.publisher is None:
            line.begin()

    async def begin_publisher(self) -> None:
        """Where none is, a new life begins."""
        for line in self.party.lines:
            if line.publisher is None:
                line.begin()

    async def pause_publisher(self) -> None:
        """It stands still for a moment, and its connections with it."""
        line = self._line()
        if line.publisher is not None:
            line.publisher.pause()
            await self.pass_time(self.random.choice((0.1, 1.5)))
            line.publisher.resume()

    # What brokers do.

    async def kill_broker(self) -> None:
        """It is gone."""
        assert self.party.broker is not None
        self.party.broker.kill()

    async def start_broker(self) -> None:
        """It is there again, if it was gone."""
        assert self.party.broker is not None
        if not self.party.broker.running:
            await self.party.start_broker()

    async def restart_broker(self) -> None:
        """It begins anew, with what it had written."""
        assert self.party.broker is not None
        self.party.broker.kill()
        await self.party.start_broker()

    async def restart_broker_without_data(self) -> None:
        """It begins anew, with nothing."""
        assert self.party.broker is not None
        await asyncio.to_thread(partial(self.party.broker.restart, keep_data=False))

    async def pause_broker(self) -> None:
        """It stands still for a moment."""
        assert self.party.broker is not None
        if self.party.broker.running:
            self.party.broker.pause()
            await self.pass_time(self.random.choice((0.2, 2.0)))
            self.party.broker.resume()

    # What networks do.

    async def cut(self) -> None:
        """All connections end."""
        self.random.choice(self.party.networks).cut()

    async def refuse(self) -> None:
        """All connections end, and none is made."""
        network = self.random.choice(self.party.networks)
        network.refusing = True
        network.cut()

    async def stall(self) -> None:
        """Nothing gets through for a moment."""
        network = self.random.choice(self.party.networks)
        network.stall()
        await self.pass_time(self.random.choice((0.2, 1.2)))
        network.flow()

    async def go_half_open(self) -> None:
        """Connections that are there look alive, and carry nothing."""
        self.random.choice(self.party.networks).forget()

    async def be_slow(self) -> None:
        """Each piece takes its time."""
        self.random.choice(self.party.networks).delay_seconds = 0.01

    async def cut_in_the_middle(self) -> None:
        """Now and then a connection ends within a message."""
        self.random.choice(self.party.networks).cut_share = 0.05

    async def lose_messages(self) -> None:
        """Queues overflow."""
        self.random.choice(self.party.networks).lost_share = self.random.choice((0.1, 0.5))

    async def repeat_and_swap_messages(self) -> None:
        """Messages come twice, and in another order."""
        network = self.random.choice(self.party.networks)
        network.repeated_share = network.swapped_share = 0.1

    async def be_good(self) -> None:
        """Every way is open again."""
        for network in self.party.networks:
            network.heal()

    # What routers do.

    async def restart_router(self) -> None:
        """It begins anew and knows nothing."""
        await self.router.stop()
        await self.router.start()

    async def restart_router_with_what_it_knew(self) -> None:
        """It begins anew with what was written down last."""
        await self.router.stop()
        await self.router.start(known=True)

    # What must be true.

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, and look all the while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _POLL_SECONDS))
            await self.check()

    async def check(self) -> None:
        """A source that is trusted claims what was held after the batch that it applied last."""
        for line in self.party.lines:
            look = await self.router.look(line)
            if look is None or look.status.doubt or (look.status.state == "suspect" and not self.party.named):
                continue
            status, claims, applied = look.status, look.claims, look.status.applied_sequence
            for life in line.lives:
                life.read()
            held = [self.router.view(life.states[applied]) for life in reversed(line.lives) if applied in life.states]
            exact = self.party.named and not status.incomplete
            assert not any(claims.values()) or any(
                claims == each or (not exact and _within(claims, each)) for each in held
            ), f"wrong claims of {line.source} after {applied}: {status}\n{claims}\n{held[:2]}"

    async def heal(self) -> None:
        """Everything is there again: the claims become the truth, and every loss was counted.

        Some say one thing more then, others do not. On the engines' own wire a life is not noticed before it says
        something, and without replays nothing is promised before the next event that is heard: there they go on.
        """
        if self.random.random() < 0.5:
            await self._do(self.work)  # What is lost now is followed by nothing that would show it.
        self.log.append("heal")
        silent = [line for line in self.party.lines if self.random.random() < 0.5]
        await self.party.heal()
        for line in self.party.lines:
            if line not in silent:
                await line.work(1)
        truths = [await self._truth(line) for line in self.party.lines]
        deadline, marker = time.monotonic() + HEAL_SECONDS, time.monotonic() + _MARKER_SECONDS
        while complaint := await self._complaint(truths):
            assert time.monotonic() < deadline, f"after {HEAL_SECONDS} s: {complaint}"
            if not self.party.named and time.monotonic() > marker:
                for line in self.party.lines:
                    if self.transport == "vllm-live" or line.lives[-1].last < 0:
                        await line.work(1)
                truths = [await self._truth(line) for line in self.party.lines]
                marker = time.monotonic() + _MARKER_SECONDS
            await self.pass_time(_POLL_SECONDS)
        for line in self.party.lines:
            await self._check_counts(line)

    async def _complaint(self, truths: list[Copies]) -> str:
        """What is not yet as it must be."""
        for line, held in zip(self.party.lines, truths, strict=True):
            journal = line.lives[-1]
            journal.read()
            look, truth = await self.router.look(line), self.router.view(held)
            if look is None:
                return f"{line.source}: is not at rest"
            status, claims = look
            if journal.states.get(journal.last, {}) != held:
                return f"{line.source}: told {journal.states.get(journal.last)}, truth {held}"
            if status.applied_sequence != journal.last or not status.connected:
                return f"{line.source}: applied {status.applied_sequence} of {journal.last}: {status}"
            if status.state != "live" and not self._may_stay_suspect(status):
                return f"{line.source}: {status}"
            if self.transport == "vllm-live" and status.state == "suspect":
                # By chance a new life may go on with the number at which another was left: then it stays in doubt
                # what was known of that one, and nothing else.
                truth = self.router.view(self._ever_held(line, held))
            may_lack = not self.party.named and (status.incomplete or self.transport == "vllm-live")
            if claims != truth and not (may_lack and _within(claims, truth)):
                return f"{line.source}: claims {claims}, truth {truth}: {status}"
            some_wait = not self.party.named and status.orphans + status.unresolved > 0
            if not self.router.index_agrees(line, claims, some=some_wait):
                return f"{line.source}: the index is not what its copies say: {status}"
        return ""

    def _ever_held(self, line: Line, held: Copies) -> Copies:
        """What is held, and the most that lives which are over ever told."""
        most = dict(held)
        for life in line.lives[:-1]:
            for copies in life.states.values():
                most |= {place: max(count, most.get(place, 0)) for place, count in copies.items()}
        return most

    def _may_stay_suspect(self, status: Any) -> bool:
        """Whether nothing can end a doubt: who has no snapshots, or cannot be asked whether it is the one we knew."""
        asked_in_vain = bool(status.doubt) or self.transport == "vllm-live"
        return not self.party.named and status.state == "suspect" and asked_in_vain

    async def _check_counts(self, line: Line) -> None:
        """Every loss has a counter, on either side."""
        assert line.publisher is not None
        while (look := await self.router.look(line)) is None:  # A digest came in between.
            await asyncio.sleep(_POLL_SECONDS)
        status, journal = look.status, line.lives[-1]
        unheard = self.router.unheard(line, range(journal.last + 1))
        made_good = status.snapshots_applied or status.gaps_lost or status.incomplete or self.router.restored
        assert not unheard or made_good, f"numbers {unheard[:9]} of {line.source} are missed by nobody: {status}"
        assert not status.quarantined, f"a whole batch was not understood: {status}"
        counts = await line.publisher.statistics()
        lost = {name: counts[name] for name in counts if name.startswith("events_dropped") or name == "crashes"}
        assert not any(lost.values()), f"{line.source} lost {lost}"

    async def _truth(self, line: Line) -> Copies:
        """What is held when all that was begun is done."""
        assert line.publisher is not None
        return await line.publisher.held()

    def _line(self) -> Line:
        return self.random.choice(self.party.lines)


def _within(claims: Claims, held: Claims) -> bool:
    return all(count <= held.get(place, 0) for place, count in claims.items())
