"""What a worker's record says of its place in the fleet: labels, taints, zone, role, engine. Text in, `Traits` out.

`worker_spec.py` checks everything else of a record; what the traits do to requests is `routing/constraints.py`.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

from kvrouter.errors import RequestError
from kvrouter.routing.constraints import ROLES, Role, Taint, Traits

__all__ = ["ENGINES", "LABELS_MAX", "NAME", "VALUE", "Engine", "read_engine", "read_traits"]

Engine: TypeAlias = Literal["vllm", "sglang"]
"""Whose request conventions a worker understands."""

ENGINES: tuple[Engine, ...] = ("vllm", "sglang")
LABELS_MAX = 64
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?"
VALUE = r"[A-Za-z0-9._/:@-]{0,128}"

_LABEL = re.compile(rf"({NAME})=({VALUE})")
_TAINT = re.compile(rf"({NAME})(?:=([A-Za-z0-9._/@-]{{0,128}}))?:(NoSchedule|PreferNoSchedule)")
_ZONE = re.compile(NAME)
_TEXT_CHARACTERS_MAX = 512


def read_traits(fields: Mapping[str, object]) -> Traits:
    """Return the traits in the fields of a worker.

    Raises:
        RequestError: 400, with `param` naming the field and the text what it must be.
    """
    labels = _labels(fields.get("labels"))
    zone, engine, role = _zone(fields.get("zone")), read_engine(fields), _role(fields.get("role"))
    if role == "both" and engine == "sglang":
        raise RequestError(
            "role must be prefill or decode for SGLang, whose servers are one or the other", param="role"
        )
    # A role says how engines meet, so it matters whose they are; nothing else of a plain worker is said.
    told = engine if role is not None or "engine" in fields else None
    known = {name: value for name, value in (("zone", zone), ("engine", told), ("role", role)) if value is not None}
    taints, names = _taints(fields.get("taints"))
    return Traits(
        labels=MappingProxyType({**known, **labels}),
        names=names | {f"{key}={value}" for key, value in labels.items()} | _topology(fields.get("topology_domains")),
        taints=taints,
        zone=zone,
        role=role,
        # An SGLang decode server has nothing to compute prompts with.
        whole=role != "prefill" and not (role == "decode" and engine == "sglang"),
    )


def read_engine(fields: Mapping[str, object]) -> Engine:
    """Return whose conventions the worker understands; vLLM's where nothing is said."""
    value = fields.get("engine", "vllm")
    for engine in ENGINES:
        if value == engine:
            return engine
    raise RequestError(f"engine must be {' or '.join(ENGINES)}, not {value!r}", param="engine")


def _role(value: object) -> Role | None:
    if value is None:
        return None
    for role in ROLES:
        if value == role:
            return role
    raise RequestError(f"role must be one of {', '.join(ROLES)}, not {value!r}", param="role")


def _zone(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _ZONE.fullmatch(value):
        raise RequestError("zone must be 1..128 of A-Z a-z 0-9 . _ / -", param="zone")
    return value


def _labels(value: object) -> dict[str, str]:
    given = [f"{key}={each}" for key, each in value.items()] if isinstance(value, Mapping) else value
    pairs = _listed(given, "labels")
    labels = {}
    for pair in pairs:
        match = _LABEL.fullmatch(pair)
        if match is None:
            raise RequestError(
                f"labels: {pair[:64]!r} is not NAME=VALUE of at most 128 of A-Z a-z 0-9 . _ / - each", param="labels"
            )
        labels[match[1]] = match[2]
    return labels


def _taints(value: object) -> tuple[tuple[Taint, ...], frozenset[str]]:
    """Taints with an effect keep requests away; the rest are names that a selection may require, as Dynamo has them."""
    taints, names = [], set()
    for text in _listed(value, "taints"):
        match = _TAINT.fullmatch(text)
        if match is not None:
            taints.append(Taint(match[1], match[2] or "", soft=match[3] == "PreferNoSchedule"))
        elif text.endswith(("NoSchedule", "NoExecute")):
            raise RequestError(
                f"taints: {text[:64]!r} is not NAME[=VALUE]:NoSchedule or NAME[=VALUE]:PreferNoSchedule", param="taints"
            )
        else:
            names.add(text)
    return tuple(taints), frozenset(names)


def _topology(value: object) -> set[str]:
    """The names under which Dynamo's selections require a place."""
    if value is None:
        return set()
    if not isinstance(value, Mapping) or len(value) > LABELS_MAX:
        raise RequestError(f"topology_domains must map at most {LABELS_MAX} names to text", param="topology_domains")
    return {f"dynamo.topology/{domain}={place}" for domain, place in value.items()}


def _listed(value: object, name: str) -> list[str]:
    if value is None:
        return []
    if (
        not isinstance(value, (list, tuple))
        or len(value) > LABELS_MAX
        or not all(isinstance(each, str) and 0 < len(each) <= _TEXT_CHARACTERS_MAX for each in value)
    ):
        raise RequestError(f"{name} must be a list of at most {LABELS_MAX} texts", param=name)
    return list(value)
