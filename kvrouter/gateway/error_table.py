"""What services call their errors, and what HTTP calls them. Pure."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kvrouter.errors import DeadlineError, GatewayError, NoInstancesError, TransportError
from kvrouter.transport.http_errors import STATUSES

__all__ = ["error_body", "gateway_error", "service_error", "service_failure"]

NO_ERROR = "OK"
NO_RESPONDERS_SECONDS = 5
_GRPC_NUMBERS: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_MESSAGE_CHARACTERS_MAX = 4096


def service_error(error: Mapping[str, Any]) -> GatewayError | None:
    """Turn the `error` member of an answer, as JSON, into ours; None if it says that there is none.

    Its code may be a name, also with a prefix as enums have them (`ERROR_CODE_NOT_FOUND`), or one of gRPC's numbers. An
    error without a code, or with one that nobody knows, is an error all the same: 500.
    """
    code = _name_of(error.get("code"))
    if code == NO_ERROR:
        return None
    message = str(error.get("message") or "the service failed without saying why")[:_MESSAGE_CHARACTERS_MAX]
    return GatewayError(message, status=STATUSES.get(code, 500), code=code, details=error.get("details"))


def service_failure(headers: Mapping[str, str]) -> GatewayError | None:
    """Read the headers by which services of NATS' micro framework say that they failed; None if they did not.

    The code is theirs to choose (ADR-32 of NATS); HTTP's are taken as they are, all others are 500.
    """
    code = headers.get("Nats-Service-Error-Code")
    if code is None:
        return None
    status = int(code) if code.isdigit() and 400 <= int(code) <= 599 else 500
    name = next((name for name, each in STATUSES.items() if each == status), "UNKNOWN")
    text = headers.get("Nats-Service-Error") or "the service failed without saying why"
    return GatewayError(text[:_MESSAGE_CHARACTERS_MAX], status=status, code=name)


def gateway_error(error: TransportError) -> GatewayError:
    """Turn a failure on the way into ours."""
    if isinstance(error, NoInstancesError):
        return GatewayError(str(error), status=503, code="UNAVAILABLE", retry_after_seconds=NO_RESPONDERS_SECONDS)
    if isinstance(error, DeadlineError):
        return GatewayError(str(error), status=504, code="DEADLINE_EXCEEDED")
    status = STATUSES.get(error.code, 500)
    return GatewayError(
        str(error),
        status=status,
        code=error.code,
        retry_after_seconds=NO_RESPONDERS_SECONDS if status == 503 else None,
    )


def error_body(error: GatewayError) -> bytes:
    """Return the body that tells a client of an error."""
    told: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.details:
        told["details"] = error.details
    return msgspec.json.encode({"error": told})


def _name_of(code: object) -> str:
    if isinstance(code, int) and not isinstance(code, bool):
        return _GRPC_NUMBERS[code] if 0 <= code < len(_GRPC_NUMBERS) else "UNKNOWN"
    name = str(code or "UNKNOWN").upper()
    if name in STATUSES or name == NO_ERROR:
        return name
    known = [each for each in STATUSES if name.endswith(f"_{each}")]
    return max(known, key=len, default="UNKNOWN")
