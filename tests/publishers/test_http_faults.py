"""Clients that ask wrongly, slowly, too much or too often: each gets what it deserves, and nobody else notices."""

import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from kvrouter_publishers import HttpEventPublisher, HttpEventServer
from kvrouter_publishers.http_server import ServerLimits
from kvrouter_subscribers.http_frames import split_frames
from tests.publishers.http_wire import LOOPBACK, Client, Reply, client
from tests.publishers.wire import WAIT_SECONDS, stored, wait_for

QUICK = ServerLimits(connections_max=8, head_seconds=2.0, idle_seconds=2.0, stalled_seconds=0.5)


@contextmanager
def serving(limits: ServerLimits | None = None, **options: object) -> Iterator[HttpEventPublisher]:
    """A publisher with one published block."""
    with HttpEventPublisher(LOOPBACK, worker_id="w", limits=limits, **options) as publisher:  # type: ignore[arg-type]
        publisher.publish([stored(1)])
        wait_for(lambda: publisher.statistics()["next_sequence"] >= 2)
        yield publisher


def port(publisher: HttpEventPublisher) -> int:
    """Where it listens."""
    assert publisher.endpoint is not None
    return int(publisher.endpoint.rpartition(":")[2])


def still_serves(publisher: HttpEventPublisher) -> bool:
    """Whether an ordinary client gets an ordinary answer."""
    with client(publisher) as asking:
        return len(asking.get("/kv_events?after=-1").envelopes) >= 2


@pytest.mark.parametrize(
    ("target", "status", "param"),
    [
        ("/kv_events?after=x", 400, "after"),
        ("/kv_events?after=-2", 400, "after"),
        ("/kv_events?after=99999999999999999999999", 400, "after"),
        ("/kv_events?after=0x1", 400, "after"),
        ("/kv_events?after=1&after=2", 400, "after"),
        ("/kv_events?afer=1", 400, "afer"),
        ("/kv_events?wait=soon", 400, "wait"),
        ("/kv_events?wait=-1", 400, "wait"),
        ("/kv_events?wait=nan", 400, "wait"),
        ("/kv_events?incarnation=xyz", 400, "incarnation"),
        ("/kv_events?incarnation=00000000000000000", 400, "incarnation"),
        ("/kv_events?rank=-1", 400, "rank"),
        ("/kv_events?rank=1", 404, "rank"),
        ("/kv_events?worker=x", 404, "worker"),
        ("/kv_events?after", 400, None),
        ("/kv_events?%ff=1", 400, None),
        ("/kv_events?" + "&".join(f"a{number}=1" for number in range(99)), 400, None),
        ("/kv_snapshot?wait=1", 400, "wait"),
        ("/kv_metrics?format=xml", 400, "format"),
        ("/kv_metrics?rank=7", 404, "rank"),
        ("/nothing", 404, None),
        ("*", 400, None),
        ("http://here/kv_events", 400, None),
    ],
)
def test_a_wrong_question_is_told_what_is_wrong(target: str, status: int, param: str | None) -> None:
    """As JSON that names the parameter; the next question is answered."""
    with serving() as publisher:
        with client(publisher) as asking:
            reply = asking.get(target)

        assert reply.status == status
        assert reply.headers["content-type"] == "application/json"
        assert reply.json["error"]["param"] == param
        assert still_serves(publisher)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET  /health HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"GET /health\r\n\r\n", 400),
        (b"get /health HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE /kv_events HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET /he\xffalth HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 100 + b"\r\n", 431),
        (b"GET /health?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400),
    ],
)
def test_what_is_not_a_plain_get_is_refused_and_the_connection_closed(head: bytes, status: int) -> None:
    """Nobody can tell where another request would begin."""
    with serving() as publisher:
        with client(publisher) as asking:
            asking.send(head)
            reply = asking.reply()

            assert reply.status == status
            assert reply.headers["connection"] == "close"
            assert asking.is_closed()
        assert still_serves(publisher)


def test_an_old_client_gets_its_answer_and_the_end_of_the_connection() -> None:
    """HTTP/1.0 keeps no connections."""
    with serving() as publisher, client(publisher) as asking:
        asking.send(b"GET /health HTTP/1.0\r\n\r\n")

        assert asking.reply().status == 200
        assert asking.is_closed()


def test_questions_that_come_together_are_answered_in_order() -> None:
    """However their bytes are divided."""
    with serving() as publisher, client(publisher) as asking:
        question = b"GET /kv_events?after=%d HTTP/1.1\r\nHost: here\r\n\r\n"
        data = b"".join(question % after for after in (-1, 0, 1) * 10)
        for start in range(0, len(data), 100):
            asking.send(data[start : start + 100])
        replies: list[Reply] = [asking.reply() for _ in range(30)]

    assert [len(reply.envelopes) for reply in replies] == [2, 1, 0] * 10


def test_a_client_that_pipelines_without_end_is_not_read() -> None:
    """While its poll waits no more than a further head is taken from it."""
    with serving() as publisher, client(publisher) as asking:
        asking.ask("/kv_events?after=1&wait=50")
        wait_for(lambda: publisher.statistics()["polls"] == 1)
        asking.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            asking.send(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n" * (4 << 20))

        assert still_serves(publisher)


def test_slow_heads_and_silent_connections_are_closed() -> None:
    """A head must come in time, and a connection without a question ends."""
    with serving(QUICK) as publisher:
        with client(publisher) as silent, client(publisher) as slow, client(publisher) as idle:
            slow.send(b"GET /health HTTP/1.1\r\nHo")
            assert idle.get("/health").status == 200

            assert slow.reply().status == 408
            assert silent.is_closed()
            assert idle.is_closed()
        assert still_serves(publisher)


def test_a_client_that_takes_no_answer_is_cut_off() -> None:
    """Meanwhile it holds no more than what its connection was handed; others are served."""
    with serving(QUICK) as publisher:
        for number in range(200):
            publisher.publish([stored(number * 1000, 1000)])
        wait_for(lambda: publisher.statistics()["outbox_batches"] == 0)
        lazy = socket.socket()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", port(publisher)))
        with lazy:
            # Ten answers of some megabytes: more than any kernel keeps for a client.
            lazy.sendall(10 * b"GET /kv_events?after=-1 HTTP/1.1\r\nHost: here\r\n\r\n")
            assert still_serves(publisher)
            wait_for(lambda: publisher.statistics()["clients_stalled"] == 1)

        assert still_serves(publisher)
        assert publisher.statistics()["crashes"] == 0


def test_more_connections_than_allowed_are_told_so() -> None:
    """The bound holds, and the places of those that left can be had again."""
    with serving(ServerLimits(connections_max=8)) as publisher:
        held = [Client(port(publisher)) for _ in range(8)]
        wait_for(lambda: publisher.statistics()["connections"] == 8)
        refused = Client(port(publisher))
        reply = refused.reply()
        assert (reply.status, reply.json["error"]["code"]) == (503, "too_many_connections")
        for each in [*held, refused]:
            each.socket.close()
        wait_for(lambda: publisher.statistics()["connections"] == 0)

        assert still_serves(publisher)
        assert publisher.statistics()["connections_refused"] == 1


def test_more_polls_than_allowed_are_told_to_come_back() -> None:
    """Those that wait already are answered as ever."""
    with serving(polls_max=4) as publisher:
        waiting = [Client(port(publisher)) for _ in range(4)]
        for each in waiting:
            each.ask("/kv_events?after=1&wait=50")
        wait_for(lambda: publisher.statistics()["polls"] == 4)
        with client(publisher) as asking:
            reply = asking.get("/kv_events?after=1&wait=50")
            assert (reply.status, reply.json["error"]["code"]) == (503, "too_many_polls")
            assert reply.headers["retry-after"] == "1"
            assert asking.get("/kv_events?after=1").status == 204
        publisher.publish([stored(2)])

        assert [each.reply().envelopes[0].sequence for each in waiting] == [2] * 4
        for each in waiting:
            each.socket.close()


def test_a_client_that_leaves_ends_its_poll() -> None:
    """Its place is free at once, not when its time is over."""
    with serving() as publisher:
        with client(publisher) as asking:
            asking.ask("/kv_events?after=1&wait=60")
            wait_for(lambda: publisher.statistics()["polls"] == 1)
        wait_for(lambda: publisher.statistics()["polls"] == 0)

        assert publisher.statistics()["connections"] == 0


def test_an_answer_has_a_bound_and_goes_on_in_the_next() -> None:
    """A client that is far behind catches up in pieces."""
    with serving(answer_bytes_max=20_000) as publisher, client(publisher) as asking:
        for number in range(300):
            publisher.publish([stored(number)])
        wait_for(lambda: publisher.statistics()["outbox_batches"] == 0)
        sequences: list[int] = []
        while (reply := asking.get(f"/kv_events?after={sequences[-1] if sequences else -1}")).status == 200:
            assert len(reply.body) <= 20_000
            sequences += [each.sequence for each in reply.envelopes]

    assert sequences == list(range(302))


def test_large_batches_and_small_ones_arrive_as_they_were() -> None:
    """However they are cut and joined on their way through the socket."""
    with serving() as publisher, client(publisher) as asking:
        for number, blocks in enumerate((1, 40_000, 2, 60_000, 3)):
            publisher.publish([stored(number * 1_000_000, blocks)])
        wait_for(lambda: publisher.statistics()["outbox_batches"] == 0)
        stream = publisher._core.since(0)
        received: list[bytes] = []
        while (reply := asking.get(f"/kv_events?after={len(received) - 1}")).status == 200:
            received += split_frames(reply.body)

    assert received == [frame for _, frame in stream]
    assert max(map(len, received)) > 1_000_000


def _breaking() -> Iterator[list[bytes]]:
    """A snapshot that is not finished."""
    yield []
    raise ZeroDivisionError


def test_a_bug_in_one_answer_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets 500, the log the traceback once, and everybody else what they ask for."""
    with serving() as publisher:
        publisher._core.prepare_snapshot = lambda **_: _breaking()  # type: ignore[method-assign]
        for _ in range(2):
            with client(publisher) as asking:
                reply = asking.get("/kv_snapshot")
                assert (reply.status, reply.json["error"]["code"]) == (500, "internal_error")
                assert asking.is_closed()

        assert publisher.statistics()["http_errors"] == 2
        assert [record.message for record in caplog.records] == ["kvrouter_publisher_http_error"]
        assert still_serves(publisher)


def test_many_snapshots_at_once_cost_one() -> None:
    """Routers that start together get the same frames."""
    with serving() as publisher:
        for number in range(2, 500):
            publisher.publish([stored(number)])
        wait_for(lambda: publisher.statistics()["outbox_batches"] == 0)
        asking = [Client(port(publisher)) for _ in range(20)]
        for each in asking:
            each.ask("/kv_snapshot")
        bodies = {each.reply().body for each in asking}
        for each in asking:
            each.socket.close()

        assert len(bodies) == 1
        assert publisher.statistics()["snapshots_taken"] <= 2
        assert publisher.statistics()["snapshots_served"] == 20


def test_a_snapshot_is_not_older_than_what_the_client_knows() -> None:
    """One that was made a moment ago is made again for who is further."""
    with serving() as publisher, client(publisher) as asking:
        first = asking.get("/kv_snapshot").envelopes[-1].sequence
        publisher.publish([stored(5)])
        wait_for(lambda: publisher.statistics()["next_sequence"] == first + 2)
        again = asking.get("/kv_snapshot").envelopes[-1].sequence
        newer = asking.get(f"/kv_snapshot?after={first + 1}").envelopes[-1].sequence
        other = asking.get("/kv_snapshot?after=99999&incarnation=abc")
        ahead = asking.get("/kv_snapshot?after=99999").envelopes[-1].sequence

    assert (again, newer, other.status, ahead) == (first, first + 1, 200, first + 1)


def test_a_client_that_is_further_gets_another_snapshot_than_the_one_that_is_being_made() -> None:
    """They are made one after the other; who asked for the first need not wait for the second."""
    with serving() as publisher:
        prepare, begun, released = publisher._core.prepare_snapshot, [0], threading.Event()

        def slowly(**options: int) -> Iterator[list[bytes]]:
            begun[0] += 1
            steps = prepare(**options)
            while not released.is_set():
                yield []
            yield from steps

        publisher._core.prepare_snapshot = slowly  # type: ignore[method-assign]
        with client(publisher) as one, client(publisher) as two, client(publisher) as gone, client(publisher) as events:
            one.ask("/kv_snapshot")
            gone.ask("/kv_snapshot")
            wait_for(lambda: begun[0] == 1)
            publisher.publish([stored(5)])
            wait_for(lambda: publisher.statistics()["next_sequence"] == 3)
            two.ask("/kv_snapshot?after=2")
            gone.socket.close()
            assert events.get("/kv_events?after=1").envelopes[-1].sequence == 2
            assert begun[0] == 1
            released.set()

            assert one.reply().envelopes[-1].sequence == 1
            assert two.reply().envelopes[-1].sequence == 2


def test_a_publisher_that_closes_ends_the_snapshot_that_it_makes() -> None:
    """Whoever waits for it is told so."""
    server = HttpEventServer(LOOPBACK)
    try:
        publisher = HttpEventPublisher(server, worker_id="w")
        publisher.publish([stored(1)])
        wait_for(lambda: publisher.statistics()["next_sequence"] >= 2)
        begun = threading.Event()

        def endless(**_: int) -> Iterator[list[bytes]]:
            begun.set()
            while True:
                yield []

        publisher._core.prepare_snapshot = endless  # type: ignore[method-assign]
        with client(server) as asking:
            asking.ask("/kv_snapshot")
            assert begun.wait(WAIT_SECONDS)
            publisher.close()
            reply = asking.reply()

        assert (reply.status, reply.json["error"]["code"]) == (503, "closing")
    finally:
        server.close()


def test_any_bytes_get_an_answer_or_the_end_of_the_connection() -> None:
    """Nothing that a client sends ends the publisher."""
    chance = random.Random(3)
    good = b"GET /kv_events?after=-1&wait=0.01&rank=0 HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer x\r\n\r\n"
    with serving(QUICK) as publisher:
        for _ in range(300):
            data = bytearray(good)
            for _ in range(chance.randrange(1, 6)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            with client(publisher) as asking:
                asking.send(bytes(data) + b"\r\n\r\n")
                assert asking.reply().status in {200, 204, 400, 404, 405, 408, 410, 431}

        assert still_serves(publisher)
        assert publisher.statistics()["http_errors"] == 0


def test_a_storm_of_polls_costs_no_event() -> None:
    """Clients do their worst while the engine publishes."""
    stop = threading.Event()

    def storm(publisher: HttpEventPublisher) -> None:
        while not stop.is_set():
            with suppress(OSError, EOFError), client(publisher) as asking:
                for _ in range(50):
                    asking.get("/kv_events?after=-1")

    with serving() as publisher:
        threads = [threading.Thread(target=storm, args=(publisher,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(500):
            publisher.publish([stored(number)])
            if number % 50 == 0:
                wait_for(lambda: publisher.statistics()["outbox_batches"] == 0)
        wait_for(lambda: publisher.statistics()["events_published"] == 501)
        stop.set()
        for thread in threads:
            thread.join()

        assert still_serves(publisher)
        assert publisher.statistics()["http_errors"] == 0


def test_errors_never_repeat_more_than_a_little_of_what_was_asked() -> None:
    """An error is not a mirror."""
    with serving() as publisher, client(publisher) as asking:
        replies = [
            asking.get(f"/kv_events?{'n' * 3000}=1"),
            asking.get(f"/kv_events?worker={'w' * 3000}"),
            asking.get(f"/{'p' * 3000}"),
        ]

    assert all(len(json.dumps(reply.json)) < 1000 for reply in replies)
