"""What clients get when they poll a publisher, over real sockets."""

import math
import threading
import time

import pytest

from kvrouter.errors import SettingsError
from kvrouter.events import decode_batch
from kvrouter.events.load import LoadReport
from kvrouter_publishers import HttpEventPublisher, HttpEventServer
from tests.publishers.http_wire import LOOPBACK, Client, client
from tests.publishers.wire import removed, stored, wait_for


def published(publisher: HttpEventPublisher, *numbers: int) -> int:
    """Publish the store of each block and wait until it can be asked for; returns the last batch's number."""
    for number in numbers:
        publisher.publish([stored(number)])
    wait_for(lambda: publisher.statistics()["outbox_batches"] == 0)
    return publisher.statistics()["next_sequence"] - 1


def test_the_answer_to_a_poll_is_every_batch_after_the_cursor() -> None:
    """Frames follow each other, and headers say where the stream stands."""
    with HttpEventPublisher(LOOPBACK, worker_id="w", rank=3) as publisher, client(publisher) as asking:
        last = published(publisher, 1, 2, 3)
        reply = asking.get("/kv_events?after=-1")
        rest = asking.get(f"/kv_events?after={last - 1}&rank=3&worker=w&incarnation={reply.position[0]}")

    assert reply.status == 200
    assert reply.headers["content-type"] == "application/vnd.kvrouter.events"
    assert reply.position[1] == last + 1
    assert [each.sequence for each in reply.envelopes] == list(range(last + 1))
    assert {(*each.source, f"{each.incarnation:016x}") for each in reply.envelopes} == {("w", 3, reply.position[0])}
    assert [each.sequence for each in rest.envelopes] == [last]
    assert decode_batch(rest.envelopes[0].payload).events[0].block_hashes == (3,)  # type: ignore[union-attr]


def test_without_a_cursor_the_answer_is_the_position_alone() -> None:
    """That is how a client finds out where the stream stands."""
    with HttpEventPublisher(LOOPBACK, worker_id="w") as publisher, client(publisher) as asking:
        last = published(publisher, 1)
        reply = asking.get("/kv_events")

    assert (reply.status, reply.body, reply.position[1]) == (204, b"", last + 1)


def test_a_poll_waits_for_the_next_batch() -> None:
    """It is answered when there is one, not when its time is over."""
    with HttpEventPublisher(LOOPBACK, worker_id="w") as publisher, client(publisher) as asking:
        last = published(publisher, 1)
        asking.ask(f"/kv_events?after={last}&wait=50")
        wait_for(lambda: publisher.statistics()["polls"] == 1)
        publisher.publish([stored(2)])
        reply = asking.reply()

    assert [each.sequence for each in reply.envelopes] == [last + 1]


def test_a_poll_in_vain_ends_with_204() -> None:
    """The connection is kept for the next one."""
    with HttpEventPublisher(LOOPBACK, worker_id="w") as publisher, client(publisher) as asking:
        last = published(publisher, 1)
        replies = [asking.get(f"/kv_events?after={last}&wait=0.05") for _ in range(3)]

        assert [reply.status for reply in replies] == [204, 204, 204]
        assert publisher.statistics()["polls"] == 0
        assert publisher.statistics()["connections"] == 1


def test_a_cursor_that_is_no_longer_kept_gets_410_and_the_way_to_a_snapshot() -> None:
    """The answer says why, and what there is."""
    with HttpEventPublisher(LOOPBACK, worker_id="w/1", buffer_steps=4) as publisher, client(publisher) as asking:
        last = published(publisher, *range(10))
        reply = asking.get("/kv_events?after=2")
        snapshot = asking.get(reply.json["snapshot"])

    assert (reply.status, reply.json["error"]["code"], reply.json["error"]["param"]) == (410, "gone", "after")
    assert (reply.json["oldest_sequence"], reply.json["next_sequence"]) == (last - 3, last + 1)
    assert reply.json["incarnation"] == reply.position[0]
    assert snapshot.status == 200
    assert {(each.sequence, each.snapshot) for each in snapshot.envelopes} == {(last, (0, 1))}


def test_a_cursor_of_the_future_or_of_another_life_gets_410() -> None:
    """Both are what a client has that followed the publisher before its restart."""
    with HttpEventPublisher(LOOPBACK, worker_id="w") as publisher, client(publisher) as asking:
        last = published(publisher, 1)
        early = asking.get(f"/kv_events?after={last + 1}&wait=9")
        other = asking.get(f"/kv_events?after={last}&incarnation=dead&wait=9")

    assert (early.status, early.json["error"]["code"]) == (410, "not_yet")
    assert (other.status, other.json["error"]["code"]) == (410, "other_incarnation")
    assert other.json["error"]["param"] == "incarnation"


def test_a_snapshot_holds_what_was_stored_and_not_removed() -> None:
    """Its frames follow each other like those of the stream."""
    with HttpEventPublisher(LOOPBACK, worker_id="w") as publisher, client(publisher) as asking:
        published(publisher, *range(5))
        publisher.publish([removed(2)])
        wait_for(lambda: publisher.statistics()["outbox_batches"] == 0)
        parts = asking.get("/kv_snapshot").envelopes

    hashes = [
        number
        for part in parts
        for event in decode_batch(part.payload).events
        for number in event.block_hashes  # type: ignore[union-attr]
    ]
    assert sorted(hashes) == [0, 1, 3, 4]
    assert [part.snapshot for part in parts] == [(number, len(parts)) for number in range(len(parts))]


def test_a_publisher_without_snapshots_says_so() -> None:
    """Then a client can only go on with what is kept."""
    with HttpEventPublisher(LOOPBACK, worker_id="w", snapshots=False) as publisher, client(publisher) as asking:
        published(publisher, 1)
        reply = asking.get("/kv_snapshot")

    assert (reply.status, reply.json["error"]["code"]) == (404, "no_snapshots")


def test_several_ranks_share_a_server() -> None:
    """Each has its own numbers; who does not say which one is asked to."""
    with HttpEventServer(LOOPBACK) as server, client(server) as asking:
        ranks = [HttpEventPublisher(server, worker_id="w", rank=rank) for rank in range(3)]
        for rank, publisher in enumerate(ranks):
            published(publisher, *range(rank + 1))
        counts = [len(asking.get(f"/kv_events?after=-1&rank={rank}").envelopes) for rank in range(3)]
        unsaid, unknown = asking.get("/kv_events?after=-1"), asking.get("/kv_events?after=-1&rank=9")
        ranks[0].close()
        left = asking.get("/kv_events?after=-1&rank=0")
        for publisher in ranks[1:]:
            publisher.close()

    assert counts == [2, 3, 4]
    assert (unsaid.status, unsaid.json["error"]["param"]) == (400, "rank")
    assert (unknown.status, unknown.json["error"]["param"]) == (404, "rank")
    assert "w/0, w/1, w/2" in unknown.json["error"]["message"]
    assert (left.status, left.json["error"]["param"]) == (404, "rank")


def test_load_reports_are_served_as_json_and_as_text() -> None:
    """JSON for routers, text for Prometheus; both name the worker and the rank that publish."""
    with HttpEventPublisher(LOOPBACK, worker_id='w"1', rank=2) as publisher, client(publisher) as asking:
        none = asking.get("/kv_metrics")
        publisher.publish_load(LoadReport(worker_id="", num_requests_waiting=4, gpu_cache_usage_perc=0.5))
        record = asking.get("/kv_metrics?rank=2").json["reports"][0]
        text = asking.get("/kv_metrics", "Accept: text/plain;version=0.0.4").body.decode()
        chosen = asking.get("/kv_metrics?format=prometheus").body.decode()

    assert none.json == {"reports": []}
    assert (record["worker_id"], record["data"]["worker_stats"]["num_requests_waiting"]) == ('w"1', 4)
    assert abs(record["timestamp"] - time.time()) < 600
    assert 'kvrouter_load_num_requests_waiting{worker_id="w\\"1",rank="2"} 4\n' in text
    assert 'kvrouter_load_gpu_cache_usage_perc{worker_id="w\\"1",rank="2"} 0.5\n' in chosen
    assert "# TYPE kvrouter_publisher_batches_published_total counter\n" in text
    assert "# TYPE kvrouter_publisher_polls gauge\n" in text


def test_a_load_report_that_cannot_be_served_leaves_the_last_one() -> None:
    """The engine is told nothing; figures that cannot be meant are left out."""
    with HttpEventPublisher(LOOPBACK, worker_id="w") as publisher, client(publisher) as asking:
        publisher.publish_load(LoadReport(worker_id="w", num_requests_waiting=4, gpu_cache_usage_perc=math.nan))
        publisher.publish_load("no report")  # type: ignore[arg-type]
        record = asking.get("/kv_metrics").json["reports"][0]["data"]

        assert (record["worker_stats"]["num_requests_waiting"], record["kv_stats"]) == (4, {})
        assert publisher.statistics()["load_reports_refused"] == 1


def test_the_options_of_a_shared_server_are_its_own() -> None:
    """A key that was given to a publisher would otherwise be asked of nobody."""
    with HttpEventServer(LOOPBACK) as server, pytest.raises(SettingsError, match="api_key"):
        HttpEventPublisher(server, worker_id="w", api_key="secret")


def test_health_is_open_and_everything_else_needs_the_key() -> None:
    """A kubelet has no key."""
    with HttpEventPublisher(LOOPBACK, worker_id="w", api_key="secret") as publisher, client(publisher) as asking:
        health = asking.get("/health")
        refused = [
            asking.get("/kv_events", *headers)
            for headers in ([], ["Authorization: Bearer wrong"], ["Authorization: Basic secret"])
        ]
        passed = asking.get("/kv_events", "Authorization: Bearer secret")

        assert (health.status, health.json) == (200, {"status": "ok"})
        assert {reply.status for reply in refused} == {401}
        assert passed.status == 204
        assert publisher.statistics()["unauthorized"] == 3


@pytest.mark.parametrize("endpoint", ["0.0.0.0:0", "*:0", "[::]:0", ":0"])
def test_an_open_address_without_a_key_is_refused(endpoint: str) -> None:
    """Events can reveal prompts; whoever means it says so."""
    with pytest.raises(SettingsError, match="insecure=True"):
        HttpEventPublisher(endpoint, worker_id="w")
    with HttpEventPublisher(endpoint, worker_id="w", insecure=True) as publisher:
        assert publisher.endpoint is not None
    with HttpEventPublisher(endpoint, worker_id="w", api_key="k") as publisher:
        assert publisher.statistics()["running"] == 1


@pytest.mark.parametrize("endpoint", ["127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "256.0.0.1:1", ""])
def test_a_wrong_address_is_a_settings_error(endpoint: str) -> None:
    """It fails where it was given, not in the background."""
    with pytest.raises(SettingsError):
        HttpEventPublisher(endpoint, worker_id="w", insecure=True)


def test_a_taken_port_is_a_settings_error() -> None:
    """And leaves no thread behind."""
    before = threading.active_count()
    with HttpEventPublisher(LOOPBACK, worker_id="w") as publisher:
        assert publisher.endpoint is not None
        with pytest.raises(SettingsError, match="cannot publish events on"):
            HttpEventPublisher(publisher.endpoint, worker_id="x")

    assert threading.active_count() == before


def test_closing_sends_the_last_batches_to_who_waits() -> None:
    """A poll under way is answered, then the connection ends."""
    publisher = HttpEventPublisher(LOOPBACK, worker_id="w")
    with client(publisher) as asking:
        last = published(publisher, 1)
        asking.ask(f"/kv_events?after={last}&wait=50")
        wait_for(lambda: publisher.statistics()["polls"] == 1)
        publisher.publish([stored(2)])
        publisher.close()
        reply = asking.reply()

        assert [each.sequence for each in reply.envelopes] == [last + 1]
        assert asking.is_closed()
    publisher.publish([stored(3)])
    assert publisher.statistics()["events_dropped_not_running"] == 1
    publisher.close()


def test_a_server_that_is_closed_first_ends_its_publishers() -> None:
    """What is published afterwards is counted as dropped, and nothing hangs."""
    server = HttpEventServer(LOOPBACK)
    publisher = HttpEventPublisher(server, worker_id="w")
    published(publisher, 1)
    server.close()
    wait_for(lambda: not publisher.statistics()["running"])
    publisher.publish([stored(2)])

    assert publisher.statistics()["events_dropped_not_running"] == 1
    assert publisher.statistics()["crashes"] == 0
    publisher.close()


def test_many_clients_get_the_same_stream() -> None:
    """Polls are answered from what is kept; nobody takes anything away from anybody."""
    with HttpEventPublisher(LOOPBACK, worker_id="w") as publisher:
        assert publisher.endpoint is not None
        port = int(publisher.endpoint.rpartition(":")[2])
        last = published(publisher, 1)
        clients = [Client(port) for _ in range(20)]
        for each in clients:
            each.ask(f"/kv_events?after={last}&wait=50")
        wait_for(lambda: publisher.statistics()["polls"] == 20)
        publisher.publish([stored(2)])
        replies = [each.reply() for each in clients]
        for each in clients:
            each.socket.close()

    assert {reply.body for reply in replies} == {replies[0].body}
    assert replies[0].envelopes[0].sequence == last + 1
