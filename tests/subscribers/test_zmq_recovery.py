"""What was missed comes back, or the sink is told that it does not; live events go on either way."""

import asyncio
import time
from dataclasses import replace

import pytest

from kvrouter.events import AllBlocksCleared, Source
from kvrouter_publishers import ZmqEventPublisher
from kvrouter_subscribers import ZmqLimits
from tests.servers import free_tcp
from tests.subscribers.scene import (
    ANY_TCP,
    HASTY,
    PROBING,
    QUICK,
    WORKER,
    ScriptedEngine,
    run,
    scene,
    scripted,
    stored,
    until,
)

pytestmark = pytest.mark.usefixtures("reading")


@pytest.mark.parametrize("replay_topic", [True, False], ids=["newer form", "older form"])
def test_what_was_published_before_we_came_is_replayed(replay_topic: bool) -> None:
    """A router that starts beside running engines begins with what they hold."""

    async def scenario() -> None:
        with ZmqEventPublisher(ANY_TCP, replay_endpoint=ANY_TCP, replay_topic=replay_topic) as publisher:
            for number in range(100):
                publisher.publish([stored(number)])
            await until(lambda: publisher.statistics()["batches_published"] == 100)
            async with scene() as stage:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)

                await until(lambda: stage.sink.applied() == 99)

                assert stage.sink.holds(*range(100))
                assert stage.status().replayed_batches == 100

    run(scenario())


def test_a_gap_is_filled_by_a_replay() -> None:
    """Numbers 2 and 3 never came; they are asked for once and applied before 4."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await stage.connected()
            await stage.hears(engine, 0)
            engine.answer = lambda start: [*(engine.batch(n) for n in range(start, 5)), engine.end()]

            engine.publish(1)
            engine.publish(4)
            await until(lambda: stage.sink.applied() == 4)

            assert engine.requests[-1] == 2
            assert stage.sink.holds(0, 1, 2, 3, 4)
            assert stage.status().replays_failed == 0

    run(scenario())


def test_a_burst_that_zeromq_dropped_is_recovered() -> None:
    """Real loss at the publisher's bound, while nobody reads: the next batch shows the gap, the replay fills it."""

    async def scenario() -> None:
        with ZmqEventPublisher(ANY_TCP, replay_endpoint=ANY_TCP, hwm=10, buffer_steps=20_000) as publisher:
            async with scene(replace(PROBING, waiting_messages_max=10)) as stage:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
                await stage.connected()
                for number in range(10_000):  # Padded, so that no kernel's socket buffers can hold them all.
                    publisher.publish([replace(stored(number), session_id="x" * 3000)])
                while publisher.statistics()["batches_published"] < 10_000:
                    time.sleep(0.002)  # The event loop stands still, so that ZeroMQ has to drop.

                await until(lambda: stage.sink.applied() == 9_999)

                assert len(stage.sink.live_sequences()) < 10_000
                assert stage.sink.holds(*range(0, 10_000, 97), 9_999)

    run(scenario())


def test_a_lost_tail_is_found_while_the_engine_is_idle() -> None:
    """No later batch would show it; we ask."""

    async def scenario() -> None:
        async with scripted() as engine, scene(PROBING) as stage:
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await stage.connected()
            await stage.hears(engine, 0)
            engine.answer = lambda start: [*(engine.batch(n) for n in range(start, 3)), engine.end()]

            await until(lambda: stage.sink.applied() == 2)

            assert stage.status().tail_losses == 2
            assert engine.requests[-1] == 1

    run(scenario())


def test_an_idle_engine_that_lost_nothing_is_not_disturbed_much() -> None:
    """A probe is answered by an end marker; nothing reaches the sink."""

    async def scenario() -> None:
        async with scripted() as engine, scene(PROBING) as stage:
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await stage.connected()
            receipts = len(stage.sink.receipts)

            await until(lambda: stage.status().probes >= 3)

            assert len(stage.sink.receipts) == receipts
            assert stage.status().tail_losses == 0
            assert not stage.status().replaying

    run(scenario())


def test_a_restarted_engine_begins_anew() -> None:
    """Same port, numbers from 0: what the old life stored is gone, the new life's blocks are there."""

    async def scenario() -> None:
        endpoint, replay = free_tcp(), free_tcp()
        with ZmqEventPublisher(endpoint, replay_endpoint=replay, bind=True) as first:
            async with scene() as stage:
                stage.listen(endpoint, replay_endpoint=replay)
                for number in range(50):
                    first.publish([stored(number)])
                await until(lambda: stage.sink.applied() == 49)

                first.close()
                await until(lambda: not stage.status().connected)
                with ZmqEventPublisher(endpoint, replay_endpoint=replay, bind=True) as second:
                    second.publish([stored(1000)])
                    await until(lambda: stage.sink.holds(1000))

                    assert not stage.sink.holds(0)
                    assert [name for name, _ in stage.sink.calls] == ["connected", "disconnected", "connected"]
                    assert stage.sink.ingest.status(now=0.0)[0].restarts == 1
                    await until(lambda: stage.sink.ingest.status(now=0.0)[0].state == "live")

    run(scenario())


def test_a_restart_is_seen_even_if_the_new_life_says_nothing() -> None:
    """An engine that restarted and idles has an empty cache; it must not be believed in until its first request."""

    async def scenario() -> None:
        endpoint, replay = free_tcp(), free_tcp()
        with ZmqEventPublisher(endpoint, replay_endpoint=replay, bind=True) as first:
            async with scene() as stage:
                stage.listen(endpoint, replay_endpoint=replay)
                first.publish([stored(1)])
                await until(lambda: stage.sink.holds(1))

                first.close()
                with ZmqEventPublisher(endpoint, replay_endpoint=replay, bind=True):
                    await until(lambda: not stage.sink.holds(1))

    run(scenario())


def test_a_publishers_overflow_resets_the_rank_and_goes_on() -> None:
    """It skips a number, which no replay can fill: what was known is forgotten, what follows is known."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await stage.connected()
            await stage.hears(engine, 0)
            engine.answer = lambda start: [*(engine.batch(n) for n in (2, 3) if n >= start), engine.end()]

            engine.publish(2, AllBlocksCleared())
            engine.publish(3)
            await until(lambda: stage.sink.applied() == 3)

            assert not stage.sink.holds(0)
            assert stage.sink.holds(3)
            assert stage.sink.ingest.status(now=0.0)[0].gaps_lost == 1

    run(scenario())


def test_a_silent_replay_endpoint_does_not_stop_live_events() -> None:
    """An engine that is busy answers late; its events are taken meanwhile."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            engine.answer = lambda start: []
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await until(lambda: stage.status().connected)

            await stage.hears(engine, 0)

            assert stage.status().replaying
            assert stage.sink.finished == []

    run(scenario())


def test_a_replay_endpoint_that_stays_silent_is_given_up() -> None:
    """Somebody mistyped the port: we give up in bounded time, visibly."""

    async def scenario() -> None:
        async with scripted() as engine, scene(HASTY) as stage:
            engine.answer = lambda start: []
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await until(lambda: stage.status().connected)
            await stage.hears(engine, 0)
            await until(lambda: stage.sink.finished == [False])

            assert stage.status().replays == stage.status().replays_failed == QUICK.replay_attempts
            assert "no answer" in (stage.status().last_error or "")
            engine.publish(1)
            await until(lambda: stage.sink.applied() == 1)

    run(scenario())


def test_a_replay_without_its_end_is_not_complete() -> None:
    """Old engines lose the end marker with a slow reader; the sink must not take silence for completeness."""

    async def scenario() -> None:
        async with scripted() as engine, scene(replace(HASTY, replay_attempts=4)) as stage:
            engine.answer = lambda start: [engine.batch(0), engine.batch(1)]
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)

            await until(lambda: stage.sink.finished == [False])

            assert stage.sink.applied() == 1

    run(scenario())


def test_a_replay_that_begins_too_late_is_handed_over_as_it_is() -> None:
    """The ring no longer reaches back; the sink judges, and goes on from what there is."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            engine.answer = lambda start: [engine.batch(7), engine.batch(8), engine.end()]
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)

            await until(lambda: stage.sink.finished == [True])

            assert stage.sink.applied() == 8
            assert stage.sink.holds(7, 8)

    run(scenario())


def test_live_batches_that_arrive_during_a_replay_are_kept() -> None:
    """They wait in the sink until the replay has caught up with them."""

    async def scenario() -> None:
        async with scripted() as engine, scene(QUICK) as stage:
            engine.answer = lambda start: [engine.batch(0)]
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await until(lambda: stage.sink.applied() == 0)

            def buffered() -> bool:
                engine.publish(3)
                return ("live", 3, "buffered") in stage.sink.receipts

            await until(buffered)
            engine.answer = lambda start: [*(engine.batch(n) for n in range(start, 4)), engine.end()]
            await engine.reconnect()
            await until(lambda: stage.sink.applied() == 3)

            assert stage.sink.holds(0, 1, 2, 3)

    run(scenario())


def test_garbage_in_a_replay_is_counted_and_the_rest_is_used() -> None:
    """A frame too few or too many, a sequence of the wrong length."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            garbage = [[b"x"], [b"", b"short", b"payload"], [b""] * 9]
            engine.answer = lambda start: [*garbage, engine.batch(0), engine.end()]
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)

            await until(lambda: stage.sink.finished == [True])

            assert stage.status().malformed == 3
            assert stage.sink.applied() == 0

    run(scenario())


def test_without_a_replay_endpoint_the_sink_learns_so_at_once() -> None:
    """A-310: it then goes on with live events alone."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            stage.listen(engine.endpoint)
            await until(lambda: stage.sink.finished == [False])

            await stage.hears(engine, 500)

            assert stage.status().replays == 0
            assert engine.requests == []

    run(scenario())


def test_without_a_replay_endpoint_many_holes_hold_nobody_up() -> None:
    """Each is given up at once: there is nobody to wait for, and what came after them is news."""

    async def scenario() -> None:
        async with scripted() as engine, scene(ZmqLimits()) as stage:
            stage.listen(engine.endpoint)
            await stage.hears(engine, 0)

            for sequence in range(2, 4000, 2):
                engine.publish(sequence)
            await until(lambda: stage.sink.applied() == 3998)
            (state,) = stage.sink.ingest.status(now=0.0)

        assert state.gaps_lost == 1999
        assert stage.sink.holds(3998)
        assert not stage.sink.holds(0)

    run(scenario())


def test_replays_in_progress_are_bounded_over_all_sources() -> None:
    """A fleet that restarts together does not make us buffer every engine's ring at once."""

    async def scenario() -> None:
        async with scripted() as one, scripted() as two, scene(replace(HASTY, replays_max=1)) as stage:
            one.answer = two.answer = lambda start: []
            stage.listen(one.endpoint, Source("one", 0), replay_endpoint=one.replay_endpoint)
            stage.listen(two.endpoint, Source("two", 0), replay_endpoint=two.replay_endpoint)
            await until(lambda: stage.status(Source("one", 0)).replaying and stage.status(Source("two", 0)).replaying)
            await until(lambda: one.requests or two.requests)

            assert len(one.requests) + len(two.requests) == 1
            await until(lambda: one.requests and two.requests)

    run(scenario())


def test_a_source_that_is_removed_during_its_replay_is_gone() -> None:
    """Nothing of the replay reaches the sink afterwards."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            engine.answer = lambda start: [engine.batch(0)]
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await until(lambda: stage.sink.applied() == 0)

            stage.subscriber.remove(WORKER)
            receipts = len(stage.sink.receipts)
            await asyncio.sleep(0)

            assert stage.subscriber.status(WORKER) is None
            assert len(stage.sink.receipts) == receipts
            assert stage.sink.finished == []

    run(scenario())


def test_a_failed_replay_is_tried_again() -> None:
    """An engine in a long step answers a little later."""

    async def scenario() -> None:
        async with scripted() as engine, scene(replace(HASTY, replay_attempts=4)) as stage:

            def only_the_second_time(start: int) -> list[list[bytes]]:
                return [engine.batch(0), engine.end()] if len(engine.requests) > 1 else []

            engine.answer = only_the_second_time
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)

            await until(lambda: stage.sink.finished == [True])

            assert stage.sink.applied() == 0
            assert stage.status().replays == stage.status().replays_failed + 1 > 1

    run(scenario())


def test_a_publisher_that_could_not_be_asked_is_asked_when_it_answers_again() -> None:
    """Nobody could tell after a reconnection whether it is the one that was known; it is not in doubt for ever."""

    async def scenario() -> None:
        async with scripted() as engine, scene(replace(HASTY, probe_seconds=0.2)) as stage:
            engine.answer = lambda start: [*map(engine.batch, range(start, 3)), engine.end()]
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await until(lambda: stage.sink.applied() == 2)

            engine.answer = lambda start: []
            await engine.reconnect()
            await until(lambda: stage.sink.finished[-1:] == [False])
            (unasked,) = stage.sink.ingest.status(now=0.0)
            engine.answer = lambda start: [*map(engine.batch, range(start, 3)), engine.end()]
            await until(lambda: stage.sink.ingest.status(now=0.0)[0].state == "live")
            (asked,) = stage.sink.ingest.status(now=0.0)

        assert unasked.state == "suspect"
        assert (asked.restarts, asked.gaps, asked.applied_sequence) == (0, 0, 2)
        assert stage.status().connects == 2

    run(scenario())


def test_a_stopped_publisher_is_disconnected_and_found_again() -> None:
    """Connection counts tell how often."""

    async def scenario() -> None:
        engine = ScriptedEngine()
        async with scene() as stage:
            stage.listen(engine.endpoint)
            await stage.connected()

            for times in (2, 3):
                await engine.reconnect()
                await until(lambda: stage.status().connects == times)  # noqa: B023 - awaited in this turn

            assert stage.status().connected
            assert stage.status().disconnects == 2
        engine.close()

    run(scenario())


def test_a_probe_that_nobody_answers_is_not_repeated_in_a_hurry() -> None:
    """The replay endpoint fell silent after a good start; live events do not suffer."""

    async def scenario() -> None:
        async with scripted() as engine, scene(replace(HASTY, probe_seconds=0.2)) as stage:
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await stage.connected()
            before = stage.status()
            engine.answer = lambda start: []

            await until(lambda: "no answer" in (stage.status().last_error or ""))
            await stage.hears(engine, 0)

            await until(lambda: stage.status().probes == len(engine.requests) - before.replays)
            assert stage.status().replays_failed == before.replays_failed

    run(scenario())


def test_a_replay_that_never_ends_is_given_up() -> None:
    """Batches keep coming for ever; the total time is bounded too."""

    async def scenario() -> None:
        limits = replace(QUICK, replay_seconds_max=0.5, replay_attempts=1)
        async with scripted() as engine, scene(limits) as stage:
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            engine.answer = lambda start: [engine.batch(0)]
            engine.repeat_seconds = 0.05

            await until(lambda: stage.sink.finished == [False])

            assert "no end within" in (stage.status().last_error or "")

    run(scenario())


def test_the_old_connections_replay_is_dropped_with_it() -> None:
    """After a reconnection only the new replay counts; the old one's late batches are nobody's."""

    async def scenario() -> None:
        async with scripted() as engine, scene(QUICK) as stage:
            engine.answer = lambda start: []
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await until(lambda: engine.requests == [0])

            engine.answer = lambda start: [engine.batch(0), engine.end()]
            await engine.reconnect()
            await until(lambda: stage.sink.finished)

            assert engine.requests == [0, 0]
            assert stage.sink.finished == [True]
            assert stage.sink.applied() == 0

    run(scenario())
