"""Streams of a service become server-sent events through a real gateway (A-404, A-420, A-436, A-437)."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.gateway.scene import INFER, GatewayProcess, ScriptedProcess, events_of, gateway, infer
from tests.gateway.scripted_service import FLOOD_BYTES
from tests.servers import NatsServer
from tests.service.processes import eventually


@pytest.fixture(scope="module")
def brisk(
    server: NatsServer, service: ScriptedProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway with two streams, short waits and keep-alives."""
    options = ("--streams-max", "2", "--keep-alive-seconds", "0.1", "--slow-client-seconds", "0.5")
    with gateway(tmp_path_factory.mktemp("brisk"), server, *options) as running:
        yield running


@contextmanager
def streaming(to: GatewayProcess, act: str, prompt: str) -> Iterator[tuple[httpx.Response, Iterator[str]]]:
    """Open a stream; its lines, as they come."""
    with to.client.stream("POST", INFER, json=infer(act, prompt, stream=True)) as answer:
        yield answer, answer.iter_lines()


def no_streams(of: GatewayProcess) -> bool:
    """Whether no stream is open."""
    return of.metric("gateway_sse_active") == 0


def subscriptions(server: NatsServer) -> int:
    """How many subscriptions gateways have beside the one that each has for answers."""
    told = httpx.get(f"{server.monitoring}/connz?subs=1", timeout=60).json()
    ours = [each for each in told["connections"] if each.get("name") == "kvrouter-gateway"]
    return sum(len(connection.get("subscriptions_list", ())) for connection in ours) - len(ours)


def nothing_open(server: NatsServer) -> bool:
    """Whether no gateway listens to a stream."""
    return subscriptions(server) == 0


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (infer("chunks:3", stream=True), {}),
        (infer("chunks:3"), {"accept": "text/event-stream"}),
        ({"model_id": "chunks:3"}, {"accept": "application/json, text/event-stream"}),
    ],
)
def test_a_stream_is_asked_for_by_the_body_or_by_the_header(
    shared: GatewayProcess, body: dict[str, object], headers: dict[str, str]
) -> None:
    """A-404, A-411, A-420: chunk by chunk, with meta, index and delta; the last has a reason and the usage."""
    answer = shared.post(INFER, body, **headers)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    chunks = [data for name, data in events_of(answer.text) if name == "message"]
    assert [(chunk["index"], chunk["is_final"]) for chunk in chunks] == [(0, False), (1, False), (2, False), (3, True)]
    assert chunks[0]["delta"] == {"output_text_delta": "word "}
    assert chunks[0]["meta"]["request_id"] == answer.headers["x-request-id"]
    assert chunks[3]["finish_reason"] == "stop"
    assert chunks[3]["usage"]["completion_tokens"] == 3


def test_without_a_wish_for_a_stream_there_is_none(shared: GatewayProcess) -> None:
    """A-411: the same route answers whole."""
    answer = shared.post(INFER, infer("echo"), accept="*/*")

    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("act", "status"), [("fail_stream:NOT_FOUND", 404), ("garbage", 502), ("micro:404", 404), ("micro:503", 503)]
)
def test_an_error_before_the_first_chunk_is_a_status(shared: GatewayProcess, act: str, status: int) -> None:
    """A-437, D-21: headers are sent when the first chunk is there, so a failure until then is no 200."""
    answer = shared.post(INFER, infer(act, stream=True))

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"


def test_a_stream_of_a_service_that_is_not_there_is_a_503(
    shared: GatewayProcess, tmp_path: Path, server: NatsServer
) -> None:
    """A-436: as for whole answers."""
    table = tmp_path / "routes.toml"
    types = [f'{name} = "kvrouter.gateway.v1.Infer{kind}"' for name, kind in
             (("request", "Request"), ("response", "Response"), ("stream", "Chunk"))]  # fmt: skip
    table.write_text("\n".join(["[[routes]]", 'path = "/x"', 'subject = "svc.nobody"', *types]), encoding="utf-8")
    with gateway(tmp_path, server, "--routes", str(table)) as other:
        answer = other.post("/x", infer("chunks:1", stream=True))

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize(
    ("act", "code", "status"),
    [("one_then_wait:INTERNAL", "INTERNAL", "500"), ("garbage_later", "INVALID_RESPONSE", "502")],
)
def test_an_error_after_the_first_chunk_is_the_last_event(
    shared: GatewayProcess, service: ScriptedProcess, act: str, code: str, status: str
) -> None:
    """The status is gone by then; a client that reads events still hears of it."""
    with streaming(shared, act, f"late-{code}") as (answer, lines):
        first = next(lines)
        service.go(f"late-{code}")
        rest = events_of("\n".join(lines))

    assert answer.status_code == 200
    assert json.loads(first.removeprefix("data: "))["index"] == 0
    assert [name for name, _ in rest] == ["error"]
    assert rest[0][1]["error"]["code"] == code
    assert shared.eventually_metric("gateway_errors_total", 1, route="ai/llm/infer", code=status)


def test_silence_is_filled_with_comments(brisk: GatewayProcess, service: ScriptedProcess) -> None:
    """A-437: proxies on the way do not take the stream for dead."""
    with streaming(brisk, "one_then_wait", "quiet") as (_, lines):
        comments = [line for line in lines_until(lines, ":keepalive", 2) if line.startswith(":")]
        service.go("quiet")
        rest = events_of("\n".join(lines))

    assert comments == [":keepalive", ":keepalive"]
    assert rest[-1][1]["is_final"] is True


def lines_until(lines: Iterator[str], wanted: str, times: int) -> list[str]:
    """Read until a line has come so often."""
    read: list[str] = []
    while read.count(wanted) < times:
        read.append(next(lines))
    return read


def test_a_stream_that_stays_silent_ends_with_an_error(
    server: NatsServer, service: ScriptedProcess, tmp_path: Path
) -> None:
    """A-434: silence within a stream has the same bound as silence before it."""
    with (
        gateway(tmp_path, server, "--timeout-seconds", "0.3", "--keep-alive-seconds", "0.1") as quick,
        streaming(quick, "one_then_wait", "never") as (answer, lines),
    ):
        found = events_of("\n".join(lines))

    # On a machine that stands still, the first chunk may be what does not come in time.
    assert answer.status_code in (200, 504)
    if answer.status_code == 200:
        assert found[-1][0] == "error"
        assert found[-1][1]["error"]["code"] == "DEADLINE_EXCEEDED"


def test_more_streams_than_the_bound_are_refused_until_one_ends(
    brisk: GatewayProcess, service: ScriptedProcess
) -> None:
    """A-436, D-21: 429 with a time to wait; a stream counts until it has ended, not until it has begun."""
    with (
        streaming(brisk, "one_then_wait", "full") as (_, first),
        streaming(brisk, "one_then_wait", "full") as (_, second),
    ):
        next(first), next(second)
        assert brisk.metric("gateway_sse_active") == 2
        refused = brisk.post(INFER, infer("chunks:1", stream=True))
        whole = brisk.post(INFER, infer("echo"))
        service.go("full")
        for lines in (first, second):
            list(lines)
    eventually(lambda: no_streams(brisk))
    taken = brisk.post(INFER, infer("chunks:1", stream=True))

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    assert refused.json()["error"]["code"] == "RESOURCE_EXHAUSTED"
    assert (whole.status_code, taken.status_code) == (200, 200)


def test_a_client_that_leaves_ends_its_stream_at_once(
    brisk: GatewayProcess, server: NatsServer, service: ScriptedProcess
) -> None:
    """A-437: before the first chunk and after it; the slot is free and nothing stays subscribed."""
    eventually(lambda: nothing_open(server))
    with streaming(brisk, "one_then_wait", "leaves") as (_, lines):
        next(lines)
        assert subscriptions(server) == 1
    with socket.create_connection(("127.0.0.1", int(brisk.url.rpartition(":")[2]))) as early:
        body = json.dumps(infer("wait_first", "leaves-early", stream=True)).encode()
        early.sendall(
            b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (INFER.encode(), len(body), body)
        )
        eventually(lambda: brisk.metric("gateway_sse_active") == 1)

    eventually(lambda: no_streams(brisk))
    eventually(lambda: nothing_open(server))
    assert brisk.eventually_metric("gateway_streams_ended_total", 2, ending="disconnected")
    service.go("leaves")
    service.go("leaves-early")


def test_a_client_that_reads_nothing_costs_no_more_than_the_bounds(
    brisk: GatewayProcess, server: NatsServer, service: ScriptedProcess
) -> None:
    """A-437: its stream ends, by the bound on what waits or by that on waiting, whichever comes first."""
    eventually(lambda: nothing_open(server))
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", int(brisk.url.rpartition(":")[2])))
        deaf.sendall(raw_request(infer("flood:4000", "deaf", stream=True)))
        eventually(lambda: brisk.metric("gateway_sse_active") == 1 or ended_badly(brisk))
        eventually(lambda: ended_badly(brisk))

        eventually(lambda: no_streams(brisk))
        eventually(lambda: nothing_open(server))


def ended_badly(of: GatewayProcess) -> float:
    """How many streams did."""
    found = (of.metric("gateway_streams_ended_total", ending=ending) for ending in ("slow_client", "error"))
    return sum(found)


def raw_request(values: object) -> bytes:
    """A request as bytes, for clients that are no good ones."""
    body = json.dumps(values).encode()
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (INFER.encode(), len(body), body)


def test_a_long_stream_is_whole_where_the_client_reads(shared: GatewayProcess) -> None:
    """Backpressure reaches as far as the client library's bound: what a client can follow is not lost."""
    answer = shared.post(INFER, infer("chunks:200", stream=True))

    chunks = [data for _, data in events_of(answer.text)]
    assert [chunk["index"] for chunk in chunks] == list(range(201))


def test_what_is_lost_on_the_way_is_said(shared: GatewayProcess) -> None:
    """A-437: a service that is faster than the client for long: the stream ends with an error, never with a hole."""
    answer = shared.post(INFER, infer("flood:2000", "fast", stream=True))

    events = events_of(answer.text)
    indexes = [data["index"] for name, data in events if name == "message"]
    assert indexes == list(range(len(indexes)))
    name, last = events[-1]
    assert (name == "message" and last["is_final"]) or last["error"]["code"] == "RESOURCE_EXHAUSTED"
    assert FLOOD_BYTES * len(indexes) <= len(answer.text)
