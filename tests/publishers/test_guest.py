"""A guest in the engine: it never blocks, never raises, never grows, and says what it had to drop."""

import resource
import subprocess
import sys
from collections import Counter

import pytest
import zmq

from kvrouter.events import AllBlocksCleared, BlockStored
from kvrouter_publishers import ZmqEventPublisher
from tests.publishers.wire import ANY_TCP, Consumer, consumers, removed, stored, wait_for


def test_publishing_after_the_close_is_counted_not_raised() -> None:
    """Engines shut down in any order."""
    publisher = ZmqEventPublisher(ANY_TCP)
    publisher.close()

    publisher.publish([stored(1), stored(2)])

    assert publisher.statistics()["events_dropped_not_running"] == 2


def test_publishing_to_a_dead_thread_is_counted_not_raised() -> None:
    """Its context is pulled away from under it; the engine goes on."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publisher = ZmqEventPublisher(ANY_TCP, context=context)
    context.term()  # Returns when the publisher's thread has met the error and closed its sockets.
    wait_for(lambda: publisher.statistics()["running"] == 0)

    publisher.publish([stored(1)])

    assert publisher.statistics()["crashes"] == 1
    assert publisher.statistics()["events_dropped_not_running"] == 1
    publisher.close()


def test_a_consumer_that_does_not_read_delays_nobody() -> None:
    """ZeroMQ drops at its bound; the engine and the ring do not notice."""
    with consumers() as context, ZmqEventPublisher(ANY_TCP, hwm=10) as publisher:
        stuck = context.socket(zmq.SUB)
        stuck.setsockopt(zmq.RCVHWM, 1)
        stuck.setsockopt(zmq.SUBSCRIBE, b"")
        stuck.connect(publisher.endpoint)

        for number in range(20_000):
            publisher.publish([stored(number)])

        wait_for(lambda: publisher.statistics()["batches_published"] == 20_000)
        assert publisher.statistics()["compactions"] == 0


def test_an_overflow_loses_nothing_that_matters() -> None:
    """Steps that are too many are summed up: no hole in the numbers, no clear, and the same blocks in the end."""
    total = 30_000
    with consumers() as context, ZmqEventPublisher(ANY_TCP, max_queue_size=16, hwm=0) as publisher:
        consumer = Consumer(context)
        expected = consumer.attach(publisher)

        for number in range(total):
            publisher.publish([stored(number)])
            if number >= 100:
                publisher.publish([removed(number - 100)])
        wait_for(lambda: publisher.statistics()["outbox_batches"] == 0)
        publisher.publish([stored(total)])
        held: Counter[int] = Counter()
        while not held[total]:
            sequence, batch = consumer.batch()
            assert sequence == expected
            expected += 1
            for event in batch.events:
                assert not isinstance(event, AllBlocksCleared)
                (held.update if isinstance(event, BlockStored) else held.subtract)(event.block_hashes)
        after = publisher.statistics()

    assert +held == Counter(range(total - 100, total + 1))
    assert after["compactions"] > 0
    assert after["batches_compacted"] > after["compactions"]
    assert after["losses_announced"] == 0


@pytest.mark.no_cover  # which would take longer than the batches
def test_no_number_of_batches_needs_more_memory_than_the_bounds() -> None:
    """With nobody listening, for as long as an engine runs."""
    with ZmqEventPublisher(ANY_TCP, replay_endpoint=ANY_TCP, buffer_steps=1000, max_queue_size=1000) as publisher:
        step = [stored(1)]
        for _ in range(2000):
            publisher.publish(step)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        for _ in range(300_000):  # a hundred times what the bounds let wait
            publisher.publish(step)

        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        statistics = publisher.statistics()
        assert statistics["outbox_batches"] <= 2000
        assert statistics["replayable_batches"] <= 1000
        assert grown < 64 << (20 if sys.platform == "darwin" else 10)


def test_a_forked_child_drops_and_leaves_its_parent_alone() -> None:
    """The child has neither the thread nor the sockets; using them would corrupt the parent's stream."""
    program = """
import os, warnings
warnings.simplefilter("ignore")
from kvrouter.events import BlockStored
from kvrouter_publishers import ZmqEventPublisher
publisher = ZmqEventPublisher("tcp://127.0.0.1:*")
event = BlockStored(block_hashes=(1,), token_ids=(1,), block_size=1)
child = os.fork()
if child == 0:
    publisher.publish([event])
    publisher.close()
    os._exit(publisher.statistics()["events_dropped_forked"] + 10)
status = os.waitpid(child, 0)[1]
publisher.publish([event])
publisher.close()
print(os.waitstatus_to_exitcode(status), publisher.statistics()["batches_published"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout.split() == ["11", "1"]


def test_a_process_that_forgets_to_close_can_still_exit() -> None:
    """The thread is a daemon and holds nobody up."""
    program = """
from kvrouter.events import BlockStored
from kvrouter_publishers import ZmqEventPublisher
publisher = ZmqEventPublisher("tcp://127.0.0.1:*", replay_endpoint="tcp://127.0.0.1:*")
publisher.publish([BlockStored(block_hashes=(1,), token_ids=(1,), block_size=1)])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)

    assert (done.returncode, done.stderr) == (0, "")
