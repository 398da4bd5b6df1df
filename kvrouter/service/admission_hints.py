"""What a client says of how soon its request should be served, and who it is: from headers and body fields.

Whose share a request takes is the operator's choice (`queue.tenant_by`): a client that may name its own tenant could
take as many shares as it invents names.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeAlias

from kvrouter.errors import RequestError
from kvrouter.routing.queue_order import PRIORITY_MAX
from kvrouter.service.prompts import InferenceBody
from kvrouter.service.proxy import Request

__all__ = ["DEADLINE_MS_MAX", "Hints", "HintsReader", "TenantBy", "key_tenant"]

TenantBy: TypeAlias = Literal["api-key", "header", "user"]

DEADLINE_MS_MAX = 86_400_000
_NAME_CHARACTERS_MAX = 128
_KEYS_REMEMBERED = 4096
_ANONYMOUS = "anonymous"

_PRIORITY: Final = b"x-kvrouter-priority"
_DEADLINE: Final = b"x-kvrouter-deadline-ms"
_SLO: Final = b"x-slo-ttft-ms"
"""What clients of llm-d and of the Gateway API's inference extension send; it means the same."""

_WHOLE = re.compile(rb"[+-]?[0-9]{1,9}")
_MILLISECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")
_NAME = re.compile(r"[\x21-\x7e]{1,128}")


class Hints(NamedTuple):
    """What one request asks for."""

    tenant: str
    priority: int
    deadline_seconds: float | None
    """From its arrival to its first token, if it names one."""


class HintsReader:
    """Reads them, the way that the settings say."""

    def __init__(self, *, tenant_by: TenantBy, tenant_header: str) -> None:
        self._header = tenant_header.lower().encode("latin-1")
        tenants: dict[TenantBy, Callable[[Request, InferenceBody], str]] = {
            "api-key": self._by_key,
            "header": self._by_header,
            "user": _by_user,
        }
        self._tenant = tenants[tenant_by]
        self._keys: dict[bytes, str] = {}

    def read(self, request: Request, body: InferenceBody) -> Hints:
        """Read the hints of a request.

        Raises:
            RequestError: 400; `param` names the header.
        """
        priority, deadline = body.priority, None
        for name, value in request.headers:
            if name == _PRIORITY:
                priority = _priority(value)
            elif name == _DEADLINE or (name == _SLO and deadline is None):
                deadline = _seconds(name, value)
        # An engine may take any number; beyond the bounds of ours one is as urgent as another.
        priority = max(-PRIORITY_MAX, min(priority, PRIORITY_MAX))
        return Hints(self._tenant(request, body), priority, deadline)

    def _by_key(self, request: Request, _: InferenceBody) -> str:
        authorization = request.header(b"authorization")
        if not authorization:
            return _ANONYMOUS
        found = self._keys.get(authorization)
        if found is None:
            if len(self._keys) >= _KEYS_REMEMBERED:
                self._keys.clear()
            found = self._keys[authorization] = key_tenant(authorization.partition(b" ")[2].strip())
        return found

    def _by_header(self, request: Request, _: InferenceBody) -> str:
        value = request.header(self._header)
        if not value:
            return _ANONYMOUS
        name = value.decode("latin-1")
        if not _NAME.fullmatch(name):
            header = self._header.decode("latin-1")
            raise _refusal(header, f"at most {_NAME_CHARACTERS_MAX} visible ASCII characters without blanks")
        return name


def key_tenant(key: bytes) -> str:
    """The name of whoever has an API key; keys themselves are never shown."""
    return f"key-{hashlib.sha256(key).hexdigest()[:12]}"


def _by_user(_: Request, body: InferenceBody) -> str:
    user = body.user
    if not user:
        return _ANONYMOUS
    if _NAME.fullmatch(user):
        return user
    return f"user-{hashlib.sha256(user.encode()).hexdigest()[:12]}"


def _priority(value: bytes) -> int:
    if not _WHOLE.fullmatch(value) or abs(int(value)) > PRIORITY_MAX:
        raise _refusal(
            "x-kvrouter-priority", f"a whole number from {-PRIORITY_MAX} to {PRIORITY_MAX}; smaller goes first"
        )
    return int(value)


def _seconds(name: bytes, value: bytes) -> float:
    if not _MILLISECONDS.fullmatch(value) or not 0 < float(value) <= DEADLINE_MS_MAX:
        raise _refusal(name.decode(), f"a number of milliseconds above 0, at most {DEADLINE_MS_MAX}")
    return float(value) / 1000


def _refusal(header: str, wanted: str) -> RequestError:
    return RequestError(f"{header} must be {wanted}", code="invalid_header", param=header)
