"""What an engine may rely on when it tells its load: it costs nothing, never fails, and disturbs no consumer."""

import math
import os
from dataclasses import replace
from typing import Any

import pytest
import zmq

from kvrouter.errors import SettingsError
from kvrouter.events import parse_live
from kvrouter.events.load import LoadReport, decode_load
from kvrouter_publishers import ZmqEventPublisher
from tests.publishers.wire import ANY_TCP, Consumer, consumers, stored, wait_for

BUSY = LoadReport(worker_id="", timestamp=5.0, num_requests_waiting=3, kv_active_blocks=10)


def native(**options: Any) -> ZmqEventPublisher:
    """A publisher of worker `w`, rank 2."""
    return ZmqEventPublisher(ANY_TCP, wire="native", worker_id="w", rank=2, **options)


def next_report(consumer: Consumer) -> tuple[int, LoadReport]:
    """The number and the content of the next report, whatever else comes before."""
    while True:
        topic, number, payload = parse_live(consumer.frames())
        if topic == b"kv_metrics":
            return number, decode_load(payload)


def listening(context: zmq.Context[zmq.Socket[bytes]], publisher: ZmqEventPublisher) -> Consumer:
    """A consumer of every topic whose subscription is in force."""
    consumer = Consumer(context)
    consumer.socket.connect(publisher.endpoint)

    def heard() -> bool:
        publisher.publish([stored(1)])
        return bool(consumer.socket.poll(5))

    wait_for(heard)
    return consumer


def test_a_report_travels_under_its_own_topic_and_number() -> None:
    """Between the batches, and under the publisher's own name."""
    with consumers() as context, native() as publisher:
        consumer = listening(context, publisher)
        publisher.publish_load(replace(BUSY, worker_id="somebody", rank=7))
        first = next_report(consumer)
        publisher.publish_load(replace(BUSY, num_requests_waiting=4))
        second = next_report(consumer)

        assert first == (0, replace(BUSY, worker_id="w", rank=2))
        assert second == (1, replace(BUSY, worker_id="w", rank=2, num_requests_waiting=4))
        assert publisher.statistics()["load_reports_sent"] == 2


def test_a_report_without_a_time_gets_one() -> None:
    """The engine need not look at the clock."""
    with consumers() as context, native() as publisher:
        consumer = listening(context, publisher)
        publisher.publish_load(LoadReport(worker_id="", num_requests_waiting=1))

        assert next_report(consumer)[1].timestamp > 1_000_000_000


def test_of_many_reports_the_newest_is_sent() -> None:
    """A thousand steps are a few messages, and the last of them says how it is."""
    with consumers() as context, native() as publisher:
        consumer = listening(context, publisher)
        for blocks in range(1000):
            publisher.publish_load(replace(BUSY, kv_active_blocks=blocks))
        reports = [next_report(consumer)]
        while reports[-1][1].kv_active_blocks != 999:
            reports.append(next_report(consumer))

        assert [number for number, _ in reports] == list(range(len(reports)))
        assert len(reports) < 100


def test_consumers_of_vllms_wire_see_no_report() -> None:
    """They would take it for a batch, so it is sent only where somebody asks for that."""
    with consumers() as context, ZmqEventPublisher(ANY_TCP, worker_id="w") as publisher:
        consumer = Consumer(context)
        following = consumer.attach(publisher)
        publisher.publish_load(BUSY)
        publisher.publish([stored(5)])

        assert consumer.batch()[0] == following
        assert publisher.statistics()["load_reports_refused"] == 1
        assert publisher.statistics()["load_reports_sent"] == 0


def test_vllms_wire_carries_reports_if_asked_to() -> None:
    """For fleets in which everybody knows the topic."""
    with consumers() as context, ZmqEventPublisher(ANY_TCP, worker_id="w", load_reports=True) as publisher:
        consumer = listening(context, publisher)
        publisher.publish_load(BUSY)

        assert next_report(consumer) == (0, replace(BUSY, worker_id="w"))


@pytest.mark.parametrize("options", [{"load_reports": True}, {"topic": "kv_metrics"}])
def test_what_could_not_be_told_apart_is_refused(options: dict[str, Any]) -> None:
    """Reports of nobody, and events under the topic of reports."""
    with pytest.raises(SettingsError, match="load reports"):
        ZmqEventPublisher(ANY_TCP, **options)


def test_nothing_that_an_engine_says_raises() -> None:
    """Figures that cannot be meant are left out; what is no report is counted."""
    wrong: Any = [None, "busy", {"num_requests_waiting": 3}, replace(BUSY, timestamp="now")]  # type: ignore[arg-type]
    with consumers() as context, native() as publisher:
        consumer = listening(context, publisher)
        for report in wrong:
            publisher.publish_load(report)
        publisher.publish_load(replace(BUSY, kv_active_blocks=-1, gpu_cache_usage_perc=math.nan))

        assert next_report(consumer)[1] == replace(BUSY, worker_id="w", rank=2, kv_active_blocks=None)
        assert publisher.statistics()["load_reports_refused"] == 3
        assert publisher.statistics()["crashes"] == 0


def test_reports_after_the_close_and_in_a_forked_child_are_counted() -> None:
    """Nobody is there to send them."""
    publisher = native()
    child = os.fork()
    if not child:
        publisher.publish_load(BUSY)
        os._exit(publisher.statistics()["load_reports_refused"])
    _, status = os.waitpid(child, 0)
    publisher.close()
    publisher.publish_load(BUSY)

    assert os.waitstatus_to_exitcode(status) == 1
    assert publisher.statistics()["load_reports_refused"] == 1
