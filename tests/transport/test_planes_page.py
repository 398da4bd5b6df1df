"""The page about the planes says what the code does: its bytes, bounds, tables and programs are read and run."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kvrouter import errors
from kvrouter.discovery import Instance, TransportEndpoint, decode_instance, encode_instance
from kvrouter.discovery.records import INSTANCE_ID_MAX, RECORD_BYTES_MAX
from kvrouter.discovery.registry import LEASE_SECONDS
from kvrouter.errors import HandlerError, RefusedError, TransportError
from kvrouter.transport import flow, messages, tcp_v0, two_part
from kvrouter.transport.callhome_wire import (
    Control,
    Handshake,
    ItemReader,
    control_message,
    decode_control,
    decode_handshake,
    decode_prologue,
    final_message,
    handshake_message,
    item_message,
    prologue_message,
)
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.envelope import Envelope, decode_envelope, encode_envelope
from kvrouter.transport.grpc_messages import METHOD, SERVICE, decode_message, encode_message
from kvrouter.transport.messages import Kind, Request, decode_error, decode_request, encode_error, encode_request
from kvrouter.transport.n_part import CONTENT_TYPE, PARTS_MAX, NPart, decode_n_part, encode_n_part
from kvrouter.transport.pool import PoolExhaustedError, PoolSettings
from kvrouter.transport.refusal_texts import refusal_from_text, refusal_text
from kvrouter.transport.registry import NoTransportError
from kvrouter.transport.servers import make_server
from kvrouter.transport.tcp_connection import Heartbeat
from kvrouter.transport.tcp_frames import MORE, NO_STREAM, PROTOCOL, VERSION, Hello, HelloAck, head_of
from kvrouter.transport.tcp_v0 import encode_v0_reply, encode_v0_request
from kvrouter.transport.two_part import decode_two_part, encode_two_part

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "planes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```text\n; vector: (.+)\n([^`]+)```", PAGE)
PROGRAMS = re.findall(r"```python\n([^`]+)```", PAGE)
STREAM = bytes(range(16))
ITEM = Envelope(Kind.DATA, STREAM, 3, b"item")


def _bytes(block: str) -> bytes:
    """Quoted lines as they stand, the others as hexadecimal without their remarks."""
    read = b""
    for line in block.splitlines():
        quoted = re.fullmatch(r"'(.*)'", line)
        read += quoted[1].encode() if quoted else bytes.fromhex(line.partition(";")[0])
    return read


def _frame(kind: Kind, payload: bytes = b"", stream: bytes = STREAM, flags: int = 0) -> bytes:
    return head_of(kind, len(payload), stream, flags) + payload


WRITTEN = {
    "two-part": encode_two_part(b"header", b"body"),
    "two-part-empty": encode_two_part(b"", b"", checksum="always"),
    "two-part-without-checksum": encode_two_part(b"", b"", checksum="never"),
    "n-part": encode_n_part(NPart((b"envelope", b"one", b"two"))),
    "n-part-control": encode_n_part(NPart((b"stop",), control=True)),
    "request": encode_request(
        Request(endpoint="echo", body=b"hi"), id="r1", headers={"x-request-id": "q"}, remaining_seconds=1.5
    ),
    "error": encode_error(TransportError("no such model", code="NOT_FOUND")),
    "hello": _frame(Kind.HELLO, msgspec.json.encode(Hello(PROTOCOL, [VERSION], "a")), NO_STREAM),
    "hello-ack": _frame(Kind.HELLO_ACK, msgspec.json.encode(HelloAck(VERSION, "b")), NO_STREAM),
    "accepted": _frame(Kind.ACK),
    "data-goes-on": _frame(Kind.DATA, b"item", flags=MORE),
    "window": _frame(Kind.WINDOW, (128 << 10).to_bytes(4, "big")),
    "goaway-draining": _frame(Kind.GOAWAY, b"\x01", NO_STREAM),
    "envelope": encode_envelope(ITEM).parts[0],
    "envelope-over-nats": encode_n_part(encode_envelope(ITEM)),
    "envelope-over-grpc": encode_message(encode_envelope(ITEM)),
    "handshake": handshake_message(Handshake("s", "response", 1)),
    "prologue": prologue_message(),
    "prologue-failed": prologue_message(HandlerError("boom")),
    "item-raw": item_message(b"x", "raw", bytes_max=1000),
    "item-json": item_message(b'"x"', "json", bytes_max=1000),
    "item-msgpack": item_message(b"\xa1x", "msgpack", bytes_max=1000),
    "final-json": final_message("json"),
    "final-msgpack": final_message("msgpack"),
    "stop": control_message(Control.STOP),
    "kill": control_message(Control.KILL),
    "sentinel": control_message(Control.SENTINEL),
    "v0-request": encode_v0_request("demo.echo", {}, b"payload"),
    "v0-reply": encode_v0_reply(b""),
    "v0-refusal": encode_v0_reply(refusal_text(RefusedError("3 at work", code="RESOURCE_EXHAUSTED"))),
}


def _rows(heading: str, first_column: str) -> list[list[str]]:
    """The cells of a table under a heading, known by its first column's title."""
    section = re.split(rf"\n#+ {re.escape(heading)}\n", PAGE)[1]
    table = section.partition(f"\n| {first_column} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_the_vectors_of_the_page_are_what_is_written(name: str, block: str) -> None:
    """A-216, A-386, A-387: byte for byte."""
    assert _bytes(block) == WRITTEN[name]


def test_the_page_shows_every_vector_once() -> None:
    """The pattern that finds its vectors finds them all."""
    assert sorted(name for name, _ in BLOCKS) == sorted(WRITTEN)


def test_the_vectors_can_be_read_again() -> None:
    """Each by the reader of its wire."""
    shown = {name: _bytes(block) for name, block in BLOCKS}

    assert decode_two_part(shown["two-part"]) == (b"header", b"body")
    assert decode_n_part(shown["n-part"]).parts == (b"envelope", b"one", b"two")
    assert decode_request(shown["request"]).request.endpoint == "echo"
    assert decode_error(shown["error"]).code == "NOT_FOUND"
    assert decode_envelope(decode_n_part(shown["envelope-over-nats"])) == ITEM
    assert decode_envelope(decode_message(shown["envelope-over-grpc"])) == ITEM
    assert decode_handshake(decode_two_part(shown["handshake"])) == Handshake("s", "response", 1)
    assert decode_prologue(decode_two_part(shown["prologue"])) is None
    assert str(decode_prologue(decode_two_part(shown["prologue-failed"]))) == "boom"
    assert decode_control(decode_two_part(shown["sentinel"])) is Control.SENTINEL
    assert ItemReader("json").read(memoryview(decode_two_part(shown["item-json"]).body)) == b'"x"'
    assert tcp_v0.RequestReader().feed(shown["v0-request"]) == [("demo.echo", {}, b"payload")]


def test_the_page_says_what_each_transport_is_for() -> None:
    """A-281: every transport that a worker can be reached by has its row."""
    ids = {name for row in _rows("Which transport", "transport") for name in re.findall(r"`(\w+)`", row[1])}
    with pytest.raises(TransportError) as unknown:
        make_server("pigeon", Endpoints(), host="127.0.0.1")

    assert ids == set(str(unknown.value).partition("known: ")[2].split(", "))


def test_the_kinds_of_the_page_are_the_codes() -> None:
    """A-216: numbers and names."""
    rows = _rows("TCP, multiplexed", "kind")

    assert {(int(number), name) for number, name, _ in rows} == {(int(kind), kind.name) for kind in Kind}


def test_the_errors_of_the_page_are_the_codes() -> None:
    """A-210, A-384: every class, its code, whether it may be retried."""
    stated = {
        name.strip("`"): (code.strip("`"), retried == "yes") for name, code, retried, _ in _rows("Errors", "error")
    }
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, TransportError)]
    classes = [each for each in classes if each is not TransportError] + [NoTransportError, PoolExhaustedError]

    assert stated == {each.__name__: (each("x").code, each("x").retryable) for each in classes}


def test_the_texts_of_refusals_are_the_codes() -> None:
    """What older peers read."""
    for code, begins in _rows("Errors", "code"):
        text = refusal_text(RefusedError("x", code=code.strip("`")))
        assert text.decode() == f"{begins.strip('`')}x"
        assert refusal_from_text(text).code == code.strip("`")


def test_the_members_of_a_request_are_the_codes() -> None:
    """A-118: the control header, and what call-home adds to it."""
    stated = {name.strip("`") for name, _ in _rows("Requests", "member")}
    known = set(messages.RequestControl.__struct_fields__)

    assert stated == known | {"connection_info", "request_stream_connection_info"}


def test_the_bounds_of_the_page_are_the_codes() -> None:
    """Numbers that are written in two places."""
    pool, beat = PoolSettings(), Heartbeat()
    for sentence in (
        f"of more than {two_part.MESSAGE_BYTES_MAX} bytes, prefix included",
        f"for messages of up to {two_part.CHECKSUM_BYTES_MAX} bytes",
        f"u16  number of parts, 1 to {PARTS_MAX}",
        f"bodies as `{CONTENT_TYPE}`",
        f"at most {messages.HEADERS_MAX} and {messages.HEADER_BYTES_MAX} characters",
        f"windows of {flow.WINDOW_BYTES} bytes",
        f"length of each piece and {flow.PIECE_COST} more",
        f"`{SERVICE}/{METHOD}`",
        f"PING after {beat.interval_seconds:g} s of silence, both sides | {beat.timeout_seconds:g} s of silence",
        f"a check of age ({pool.lifetime_seconds:g} s), idle time\n({pool.idle_seconds:g} s)",
        f"if fewer than {pool.connections_max} are in use",
        f"keeps {pool.idle_min} idle ones",
        f"A payload has at most {tcp_v0.REQUEST_BYTES_MAX} bytes, a reply {tcp_v0.REPLY_BYTES_MAX}.",
        f"A record lives for {LEASE_SECONDS:g} seconds",
        f"at most\n{INSTANCE_ID_MAX}. The value is JSON of at most {RECORD_BYTES_MAX} bytes",
    ):
        assert sentence in PAGE


def test_the_record_of_the_page_is_written_and_read() -> None:
    """A-221, A-222, A-223: both forms."""
    [shown] = re.findall(r"```json\n([^`]+)```", PAGE)
    call_home = TransportEndpoint(transport_id="tcp", address="", metadata={"mode": "call_home"})
    instance = Instance(
        namespace="demo", component="backend", endpoint="generate", instance_id=4711,
        transports=(
            TransportEndpoint(transport_id="nats", address="demo_backend.generate-1267"),
            TransportEndpoint(transport_id="zmq", address="tcp://10.0.0.1:5000", capabilities={"streaming": True}),
        ),
        response_transport=call_home, health="degraded", health_reason="warming up", zone="a",
        worker={"events": "tcp://10.0.0.1:5557", "ranks": 2},
    )  # fmt: skip

    assert decode_instance(shown.encode()) == instance
    assert json.loads(encode_instance(instance)) == json.loads(shown)


@pytest.mark.parametrize("row", _rows("Discovery records", "older form of `transport`"), ids=lambda row: row[0])
def test_the_older_records_of_the_page_are_read(row: list[str]) -> None:
    """A-223, A-234: which transport each means, and where its answers go."""
    record = {"namespace": "n", "component": "c", "endpoint": "e", "instance_id": 1}
    instance = decode_instance(json.dumps(record | {"transport": json.loads(row[0].strip("`"))}).encode())

    home = instance.response_transport is not None and instance.response_transport.metadata == {"mode": "call_home"}
    assert instance.transports[0].transport_id in row[1].lower()
    assert home == ("answers home" in row[1])


def test_the_request_by_hand_of_the_page_is_one() -> None:
    """A-133: what `curl` is given."""
    [program] = re.findall(r"^python -c '([^']+)'", PAGE, flags=re.MULTILINE)

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=90, check=True)

    decoded = decode_request(done.stdout)
    assert (decoded.id, decoded.request.endpoint, bytes(decoded.request.body)) == ("by-hand-1", "generate", b"{}")


def test_the_worker_and_the_client_of_the_page_work(tmp_path: Path) -> None:
    """A-113, A-115: two processes that find each other in a folder."""
    programs = [program.replace("/tmp/kvrouter", str(tmp_path / "store")) for program in PROGRAMS]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    worker = subprocess.Popen([sys.executable, "-c", programs[0]], env=environment)
    try:
        client = subprocess.run(
            [sys.executable, "-c", programs[1]],
            env=environment, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait(30)

    assert (client.stdout, client.stderr) == ("b'ONE'\nb'TWO'\n", "")
