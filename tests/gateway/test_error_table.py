"""What services call their errors becomes a status of HTTP (A-403, A-421)."""

import json
from typing import Any

import pytest

from kvrouter.errors import (
    DeadlineError,
    DisconnectedError,
    NoInstancesError,
    RefusedError,
    TransportError,
    UnreachableError,
)
from kvrouter.gateway.error_table import error_body, gateway_error, service_error, service_failure

TABLE = {
    "INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "CONFLICT": 409,
    "FAILED_PRECONDITION": 412, "RESOURCE_EXHAUSTED": 429, "INTERNAL": 500, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504, "ABORTED": 409, "OUT_OF_RANGE": 400, "UNKNOWN": 500,
}  # fmt: skip


@pytest.mark.parametrize(("code", "status"), TABLE.items())
@pytest.mark.parametrize("prefix", ["", "ERROR_CODE_", "error_"])
def test_a_code_has_its_status(code: str, status: int, prefix: str) -> None:
    """A-421: all rows, also as enums spell them with a prefix."""
    error = service_error({"code": prefix + code, "message": "why", "details": {"a": 1}})

    assert error is not None
    assert (error.status, error.code) == (status, code)
    assert json.loads(error_body(error)) == {"error": {"code": code, "message": "why", "details": {"a": 1}}}


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"code": 5}, 404),
        ({"code": 14}, 503),
        ({"code": 99}, 500),
        ({"code": "STRANGE"}, 500),
        ({}, 500),
        ({"code": ""}, 500),
    ],
)
def test_a_code_may_be_a_number_of_grpc_or_unknown(told: dict[str, Any], status: int) -> None:
    """D-21: an error is never a success, whatever its code is."""
    error = service_error(told)

    assert error is not None
    assert error.status == status
    assert error.message


@pytest.mark.parametrize("code", ["OK", 0])
def test_an_error_that_says_ok_is_none(code: object) -> None:
    """As Google's own status messages have it."""
    assert service_error({"code": code}) is None


@pytest.mark.parametrize(
    ("failure", "status", "retry_after"),
    [
        (NoInstancesError("x"), 503, 5),
        (DeadlineError("x"), 504, None),
        (DisconnectedError("x"), 503, 5),
        (UnreachableError("x"), 503, 5),
        (RefusedError("x", code="PAYLOAD_TOO_LARGE"), 413, None),
        (TransportError("x", code="RESOURCE_EXHAUSTED"), 429, None),
    ],
)
def test_a_failure_on_the_way_has_its_status(failure: TransportError, status: int, retry_after: int | None) -> None:
    """A-434, A-436: no responders 503 with a time to wait, no answer in time 504."""
    error = gateway_error(failure)

    assert (error.status, error.retry_after_seconds) == (status, retry_after)


@pytest.mark.parametrize(
    ("code", "status", "name"), [("404", 404, "NOT_FOUND"), ("7", 500, "INTERNAL"), ("x", 500, "INTERNAL")]
)
def test_services_of_the_micro_framework_fail_by_headers(code: str, status: int, name: str) -> None:
    """NATS' own framework has no message for errors."""
    error = service_failure({"Nats-Service-Error-Code": code, "Nats-Service-Error": "why"})

    assert error is not None
    assert (error.status, error.code, error.message) == (status, name, "why")
    assert service_failure({"Other": "x"}) is None
