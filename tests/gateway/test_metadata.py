"""Headers become meta data (A-405, A-419, A-423), and a trace goes on whichever way it came (D-24)."""

import pytest

from kvrouter.errors import GatewayError
from kvrouter.gateway.metadata import Caller, meta_fields, nats_headers, read_headers

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def caller(**headers: str) -> Caller:
    """Read headers; underscores stand for hyphens."""
    return read_headers([(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()])


def fields(who: Caller, key: str = "") -> dict[str, object]:
    """The meta data of a request of theirs."""
    return meta_fields(who, request_id="1b4e28ba-2fa1-11d2-883f-0016d3cca427", idempotency_key=key, seconds=5.25)


def sent(who: Caller, key: str = "") -> dict[str, str] | None:
    """The headers beside their message."""
    return nats_headers(who, span_id="00f067aa0ba902b7", idempotency_key=key, message_id=f"route:tenant:{key}")


@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.title])
def test_headers_are_meta_data_however_they_are_spelled(spelled: object) -> None:
    """A-423, D-21: names have no case; labels have the end of theirs, in lower case."""
    assert callable(spelled)
    names = {"x-trace-id": "t", "x-client-id": "c", "x-user-id": "u", "x-tenant-id": "n", "x-custom-team": "red"}

    who = read_headers([(spelled(name).encode(), value.encode()) for name, value in names.items()])

    assert fields(who, "k") == {
        "request_id": "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        "trace_id": "t",
        "client_id": "c",
        "user_id": "u",
        "tenant_id": "n",
        "idempotency_key": "k",
        "labels": {"team": "red"},
        "timestamp": {"seconds": 5, "nanos": 250_000_000},
    }


def test_who_says_nothing_is_the_gateway_and_begins_a_trace() -> None:
    """A-405: the service finds a trace id in any case."""
    found = fields(caller())

    assert (found["client_id"], found["trace_id"]) == ("http-gateway", "1b4e28ba2fa111d2883f0016d3cca427")
    assert "user_id" not in found
    assert sent(caller()) is None


def test_a_traceparent_is_a_trace_id_and_goes_on_with_our_span() -> None:
    """D-24: both forms are taken, both are sent."""
    who = caller(traceparent=PARENT, tracestate="a=b")

    assert fields(who)["trace_id"] == TRACE
    assert sent(who) == {
        "X-Trace-ID": TRACE,
        "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
        "tracestate": "a=b",
    }


def test_a_trace_id_of_its_own_wins_over_the_one_of_traceparent() -> None:
    """D-24: who sends both wants both."""
    who = caller(x_trace_id="abc123", traceparent=PARENT)

    assert fields(who)["trace_id"] == "abc123"
    assert sent(who) == {"X-Trace-ID": "abc123", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


def test_a_trace_id_that_could_be_one_becomes_a_traceparent() -> None:
    """D-24: only where it has the form that the standard asks for."""
    assert (sent(caller(x_trace_id=TRACE)) or {})["traceparent"] == f"00-{TRACE}-00f067aa0ba902b7-01"
    assert sent(caller(x_trace_id="abc123")) == {"X-Trace-ID": "abc123"}


@pytest.mark.parametrize("broken", ["", "00-abc-def-01", f"00-{'0' * 32}-b7ad6b7169203331-01", PARENT.upper()])
def test_a_broken_traceparent_is_no_trace(broken: str) -> None:
    """The standard says to go on without."""
    assert sent(caller(traceparent=broken, tracestate="a=b")) is None


def test_a_key_goes_with_the_message() -> None:
    """A-406: in the headers too, and as what JetStream tells duplicates by."""
    assert sent(caller(), "k1") == {"Idempotency-Key": "k1", "Nats-Msg-Id": "route:tenant:k1"}


def test_control_characters_stay_here() -> None:
    """They would end a NATS header where the client wants."""
    assert sent(caller(x_trace_id="a\x01b\x7f")) == {"X-Trace-ID": "ab"}


@pytest.mark.parametrize(
    "headers",
    [[(b"x-user-id", b"u" * 5000)], [(f"x-custom-{number}".encode(), b"v") for number in range(65)]],
)
def test_meta_data_have_a_bound(headers: list[tuple[bytes, bytes]]) -> None:
    """They are copied into every message."""
    with pytest.raises(GatewayError) as caught:
        read_headers(headers)

    assert caught.value.status == 431
