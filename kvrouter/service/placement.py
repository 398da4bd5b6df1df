"""What requests ask of their worker, as text: in headers, and in the fields of a selection. Text in, `Constraints` out.

What they mean is `routing/constraints.py`. Clients repeat themselves, so equal sets of headers are read once.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import structs

from kvrouter.errors import RequestError
from kvrouter.events import Source
from kvrouter.routing.constraints import ROLES, UNCONSTRAINED, Constraints, LabelTerm, Role
from kvrouter.service.worker_traits import NAME, VALUE

__all__ = ["SESSION_END", "TERMS_MAX", "PlacementReader"]

TERMS_MAX = 16
_TEXT_CHARACTERS_MAX = 1024
_REMEMBERED_MAX = 1024

REQUIRE: Final = b"x-kvrouter-require"
TOLERATE: Final = b"x-kvrouter-tolerate"
WORKER: Final = b"x-kvrouter-worker"
ZONE: Final = b"x-kvrouter-zone"
SESSION_END: Final = b"x-kvrouter-session-end"
# What Dynamo's clients send.
_DYNAMO_WORKER: Final = b"x-worker-instance-id"
_DYNAMO_RANK: Final = b"x-dp-rank"

_TERM = re.compile(rf"(!?)\s*({NAME})(?:\s*(!=|=)\s*({VALUE}(?:\|{VALUE})*))?")
_TOLERATION = re.compile(rf"\*|{NAME}(?:={VALUE})?")
_ZONE = re.compile(NAME)
_WORKER = re.compile(r"([A-Za-z0-9._:@\[\]-]{1,128})(?:/([0-9]{1,4}))?")


class PlacementReader:
    """Reads constraints; `defaults` are those of a request that asks for nothing, and the base of all others."""

    def __init__(self, defaults: Constraints = UNCONSTRAINED) -> None:
        self._defaults = defaults
        self._remembered: dict[tuple[tuple[bytes, bytes], ...], Constraints | None] = {}

    def set_defaults(self, defaults: Constraints) -> None:
        """Read from now on over these."""
        self._defaults = defaults
        self._remembered.clear()

    def headers(self, asked: tuple[tuple[bytes, bytes], ...]) -> Constraints | None:
        """Read the headers of one request that are for us; None where they ask nothing of a worker.

        Raises:
            RequestError: 400; `param` names the header.
        """
        try:
            return self._remembered[asked]
        except KeyError:
            pass
        fields: dict[bytes, str] = {}
        for name, value in asked:
            text = value.decode("latin-1")
            fields[name] = f"{fields[name]},{text}" if name in fields else text
        found = self._read_headers(fields)
        if len(self._remembered) >= _REMEMBERED_MAX:
            self._remembered.clear()
        self._remembered[asked] = found
        return found

    def fields(
        self,
        *,
        require: str | None = None,
        tolerate: str | None = None,
        zone: str | None = None,
        role: str | None = None,
        names: Iterable[str] = (),
        preferred: Mapping[str, float] | None = None,
    ) -> Constraints | None:
        """Read the fields of a selection; None where they ask nothing of a worker.

        A preferred name weighs its number times the price of another zone.

        Raises:
            RequestError: 400; `param` names the field.
        """
        price = self._defaults.zone_seconds
        wanted = tuple(sorted((name, weight * price) for name, weight in (preferred or {}).items()))
        if len(wanted) > TERMS_MAX:
            raise RequestError(f"at most {TERMS_MAX} taints can be preferred", param="routing_constraints")
        if not (require or tolerate or zone or role or names or wanted):
            return None
        required, forbidden = _terms(require, "require")
        return structs.replace(
            self._defaults,
            required=required,
            forbidden=forbidden,
            tolerated=_tolerations(tolerate, "tolerate"),
            zone=_zone(zone, "zone") or self._defaults.zone,
            role=_role(role),
            names=frozenset(names),
            preferred=wanted,
        )

    def _read_headers(self, fields: Mapping[bytes, str]) -> Constraints | None:
        worker, rank = _pin(fields)
        required, forbidden = _terms(fields.get(REQUIRE), REQUIRE.decode())
        tolerated = _tolerations(fields.get(TOLERATE), TOLERATE.decode())
        zone = _zone(fields.get(ZONE), ZONE.decode())
        if worker is None and not (required or forbidden or tolerated or zone):
            return None
        return structs.replace(
            self._defaults,
            pinned=None if worker is None or rank is None else Source(worker, rank),
            pinned_worker=worker if rank is None else None,
            required=required,
            forbidden=forbidden,
            tolerated=tolerated,
            zone=zone or self._defaults.zone,
        )


def _pin(fields: Mapping[bytes, str]) -> tuple[str | None, int | None]:
    """The worker, and the rank, that a request names."""
    text = fields.get(WORKER)
    if text is not None:
        match = _WORKER.fullmatch(text)
        if match is None:
            raise _malformed(WORKER.decode(), "WORKER or WORKER/RANK")
        return match[1], None if match[2] is None else int(match[2])
    worker, rank = fields.get(_DYNAMO_WORKER), fields.get(_DYNAMO_RANK)
    if worker is None:
        if rank is not None:
            raise RequestError("x-dp-rank is of no use without x-worker-instance-id", param=_DYNAMO_RANK.decode())
        return None, None
    match = _WORKER.fullmatch(worker if rank is None else f"{worker}/{rank}")
    if match is None:
        raise _malformed(_DYNAMO_WORKER.decode(), "a worker's id, with a number in x-dp-rank")
    return match[1], None if match[2] is None else int(match[2])


def _terms(text: str | None, name: str) -> tuple[tuple[LabelTerm, ...], tuple[LabelTerm, ...]]:
    """Conditions as Kubernetes' selectors write them: `gpu=h100|a100, tier!=spot, nvlink, !preemptible`."""
    required: list[LabelTerm] = []
    forbidden: list[LabelTerm] = []
    for part in _parts(text, name):
        match = _TERM.fullmatch(part)
        if match is None or (match[1] and match[3]):
            raise _malformed(name, "conditions such as gpu=h100|a100, tier!=spot, nvlink, !preemptible")
        term = LabelTerm(match[2], frozenset(match[4].split("|")) if match[3] else frozenset())
        (forbidden if match[1] or match[3] == "!=" else required).append(term)
    return tuple(required), tuple(forbidden)


def _tolerations(text: str | None, name: str) -> frozenset[str]:
    parts = _parts(text, name)
    if not all(_TOLERATION.fullmatch(part) for part in parts):
        raise _malformed(name, "names of taints such as dedicated=batch, spot, or *")
    return frozenset(parts)


def _zone(text: str | None, name: str) -> str | None:
    if text is not None and not _ZONE.fullmatch(text):
        raise _malformed(name, "a name of 1..128 of A-Z a-z 0-9 . _ / -")
    return text


def _role(text: str | None) -> Role | None:
    for role in ROLES:
        if text == role and role != "both":
            return role
    if text is not None:
        raise _malformed("role", "prefill or decode")
    return None


def _parts(text: str | None, name: str) -> list[str]:
    if text is None:
        return []
    if len(text) > _TEXT_CHARACTERS_MAX:
        raise RequestError(f"{name} is longer than {_TEXT_CHARACTERS_MAX} characters", param=name)
    parts = [each.strip() for each in text.split(",")]
    if len(parts) > TERMS_MAX:
        raise RequestError(f"{name} has more than {TERMS_MAX} conditions", param=name)
    return parts


def _malformed(name: str, wanted: str) -> RequestError:
    return RequestError(f"{name} must be {wanted}", code="invalid_constraint", param=name)
