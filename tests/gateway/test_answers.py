"""Whole answers through a real gateway: translated, traced, refused, failed (A-401 to A-407, A-419 to A-436)."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvrouter.transport.http_errors import STATUSES
from tests.gateway.scene import INFER, GatewayProcess, gateway, infer
from tests.servers import NatsServer
from tests.service.processes import eventually

CODES = (
    "UNKNOWN", "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "CONFLICT",
    "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "INTERNAL", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED",
    "ABORTED", "OUT_OF_RANGE",
)  # fmt: skip


def test_a_request_of_the_seed_is_answered(shared: GatewayProcess) -> None:
    """A-401, A-402, A-405, A-419: JSON in, JSON out, with the proto file's names, and who asked."""
    body = {
        "model_id": "echo",
        "input": {"prompt": "Hello, world!"},
        "params": {"temperature": 0.7, "max_tokens": 100},
        "unknown": {"is": "ignored"},
    }

    answer = shared.post(INFER, body, x_trace_id="abc123", x_user_id="user_456", X_Custom_Team="red")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    values = answer.json()
    assert values["output"] == {"text": "Hello, world!"}
    meta = values["meta"]
    assert (meta["trace_id"], meta["user_id"], meta["client_id"]) == ("abc123", "user_456", "http-gateway")
    assert meta["labels"] == {"team": "red"}
    assert meta["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["x-trace-id"] == "abc123"


def test_a_trace_goes_on_both_ways(shared: GatewayProcess) -> None:
    """D-24: `traceparent` alone gives the trace id, and both are headers of the NATS message."""
    trace = "0af7651916cd43dd8448eb211c80319c"

    answer = shared.post(INFER, infer("echo"), traceparent=f"00-{trace}-b7ad6b7169203331-01").json()

    sent = json.loads(answer["generation_id"])
    assert answer["meta"]["trace_id"] == sent["X-Trace-ID"] == trace
    assert sent["traceparent"].startswith(f"00-{trace}-")


def test_who_asks_is_not_the_clients_to_say_in_the_body(shared: GatewayProcess) -> None:
    """A balancer sets headers; a body comes from anybody."""
    answer = shared.post(INFER, infer("echo", meta={"user_id": "root", "request_id": "mine"}), x_user_id="ann").json()

    assert answer["meta"]["user_id"] == "ann"
    assert answer["meta"]["request_id"] != "mine"


@pytest.mark.parametrize("code", CODES)
def test_an_error_of_the_service_has_its_status(shared: GatewayProcess, code: str) -> None:
    """A-403, A-421: the whole way, with message and details; UNKNOWN too is no success (D-21)."""
    answer = shared.post(INFER, infer(f"fail:{code}"))

    assert answer.status_code == STATUSES[code]
    assert answer.json() == {"error": {"code": code, "message": "as asked", "details": {"reason": "a test"}}}


@pytest.mark.parametrize(
    ("act", "status", "code"),
    [("empty_error", 500, "UNKNOWN"), ("garbage", 502, "INVALID_RESPONSE"), ("micro:404", 404, "NOT_FOUND")],
)
def test_answers_that_are_none_are_errors(shared: GatewayProcess, act: str, status: int, code: str) -> None:
    """A-435: an answer of another schema is 502, an error without a code is an error."""
    answer = shared.post(INFER, infer(act))

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_schema_mismatch_is_in_the_log(shared: GatewayProcess) -> None:
    """A-435: whoever operates it can see which route."""
    shared.post(INFER, infer("garbage"))

    def logged() -> list[dict[str, Any]]:
        return [
            line for line in shared.lines() if line["event"] == "request_failed" and line["route"] == "ai/llm/infer"
        ]

    assert eventually(logged)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"model_id": 5}', "model_id: text is expected"),
        (b'{"input": {"messages": [{"role": 1}]}}', "input.messages[0].role: text is expected"),
        (b'{"params": {"max_tokens": -1}}', "params.max_tokens: "),
        (b'{"idempotency_key": 5}', "idempotency_key must be text"),
    ],
)
def test_a_body_that_is_no_request_is_refused(shared: GatewayProcess, body: bytes, problem: str) -> None:
    """The client reads what is wrong, and where."""
    answer = shared.client.post(INFER, content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "INVALID_ARGUMENT"
    assert problem in answer.json()["error"]["message"]


def test_a_body_may_have_ten_mebibytes_and_no_more(shared: GatewayProcess) -> None:
    """A-436: told before it is sent where its length is, and while it comes where it is not."""
    large = b"x" * (10 << 20) + b"x"

    told = shared.client.post(INFER, content=large, headers={"expect": "100-continue"})
    coming = shared.client.post(INFER, content=iter([large[: 5 << 20], large[5 << 20 :]]))

    assert (told.status_code, coming.status_code) == (413, 413)
    assert told.json()["error"]["code"] == "PAYLOAD_TOO_LARGE"


def test_a_message_that_nats_does_not_take_is_too_large(shared: GatewayProcess) -> None:
    """A body below our bound can be above the server's, 1 MiB unless told otherwise."""
    answer = shared.post(INFER, infer("echo", "x" * (2 << 20)))

    assert answer.status_code == 413
    assert "NATS" in answer.json()["error"]["message"]


def test_without_a_service_clients_are_told_when_to_come_again(shared: GatewayProcess) -> None:
    """A-436, D-21: the NATS server says at once that nobody listens, and today's client library how."""
    answer = shared.post("/quest/generate", {"player_id": "p"})

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["error"]["code"] == "UNAVAILABLE"


def test_a_service_that_says_nothing_is_a_timeout(server: NatsServer, service: object, tmp_path: Path) -> None:
    """A-434: 504 after the time that NATS_TIMEOUT_SECONDS says."""
    with gateway(tmp_path, server, environment={"NATS_TIMEOUT_SECONDS": "0.05"}) as quick:
        answer = quick.post(INFER, infer("silent"))

    assert answer.status_code == 504
    assert "within 0.05 s" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", INFER, 405), ("POST", "/absent", 404), ("PUT", "/health", 405)]
)
def test_what_is_no_route_is_told_in_the_same_form(shared: GatewayProcess, method: str, path: str, status: int) -> None:
    """One shape for every error."""
    answer = shared.client.request(method, path)

    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message"}
    assert ("allow" in answer.headers) == (status == 405)


def test_health_tells_of_the_connection_and_the_routes(shared: GatewayProcess) -> None:
    """A-407, A-424, A-439, D-20, D-22: the real number of routes; ready and live beside it."""
    health, ready, live = (shared.client.get(path) for path in ("/health", "/ready", "/live"))

    assert (health.status_code, health.json()) == (200, {"status": "healthy", "nats_connected": True, "routes": 8})
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    assert (live.status_code, live.json()) == (200, {"alive": True})


def test_the_document_describes_every_route(shared: GatewayProcess) -> None:
    """Schemas come from the descriptors, words from the comments of their source; references lead somewhere."""
    document = shared.client.get("/openapi.json").json()

    assert {"/ai/llm/infer", "/ai/models/{model_id}", "/health", "/admin/cutover"} <= set(document["paths"])
    operation = document["paths"]["/ai/models/{model_id}/select"]["post"]
    assert {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}} in operation["parameters"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(body) == {"purpose", "idempotency_key"}
    assert "text/event-stream" in document["paths"]["/ai/llm/infer"]["post"]["responses"]["200"]["content"]
    schemas = document["components"]["schemas"]
    assert schemas["kvrouter.gateway.v1.InferChunk"]["properties"]["is_final"]["description"] == "Nothing follows."
    references = set(_references(document))
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= set(schemas)


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [each for member in value.values() for each in _references(member)]
    return [each for member in value for each in _references(member)] if isinstance(value, list) else []
