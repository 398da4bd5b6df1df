"""What a worker is besides its load, and what a request may ask of it: labels, taints, zone, role, pins.

`Traits` describe a worker, `Constraints` a request. Conditions narrow the candidates; preferences give candidates that
do not meet them a price in seconds, which policies add to the predicted time. Reading either from text is
`service/placement_headers.py` and `service/worker_spec.py`; nothing here is I/O.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec

from kvrouter.errors import NoWorkerError, UnmetConstraintError
from kvrouter.events import Source

__all__ = [
    "PLAIN",
    "ROLES",
    "UNCONSTRAINED",
    "Constraints",
    "LabelTerm",
    "Role",
    "Taint",
    "Traits",
    "fitting",
]

Role: TypeAlias = Literal["prefill", "decode", "both"]
"""What a worker does for requests that are split in two; a worker without a role serves whole requests only."""

ROLES: tuple[Role, ...] = ("prefill", "decode", "both")
_LISTED_MAX = 8
_NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Taint(NamedTuple):
    """Keeps requests away that do not tolerate it; a soft one only makes its worker dearer."""

    key: str
    value: str
    soft: bool

    def __str__(self) -> str:
        return f"{self.name}:{'PreferNoSchedule' if self.soft else 'NoSchedule'}"

    @property
    def name(self) -> str:
        """Key and value as one text."""
        return f"{self.key}={self.value}" if self.value else self.key


class LabelTerm(NamedTuple):
    """One condition on labels: the label `key` is there and, if `values` are given, has one of them."""

    key: str
    values: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.key}={'|'.join(sorted(self.values))}" if self.values else self.key

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a worker with these labels meets it."""
        value = labels.get(self.key)
        return value is not None and (not self.values or value in self.values)


class Traits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one worker is.

    Attributes:
        labels: what it is called by; conditions of requests compare them.
        names: labels without a value, compared as whole texts (Dynamo's taints and topology).
        taints: what keeps requests away that do not tolerate it.
        zone: where it stands.
        role: its part in split requests; None: whole requests only.
        whole: it can compute a prompt and its answer; what only prefills cannot, nor some that only decode.
    """

    labels: Mapping[str, str] = _NO_LABELS
    names: frozenset[str] = frozenset()
    taints: tuple[Taint, ...] = ()
    zone: str | None = None
    role: Role | None = None
    whole: bool = True


PLAIN = Traits()
"""A worker of which nothing is said."""


class Constraints(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one request asks of its worker; hashable, so that equal ones are narrowed once.

    Attributes:
        exclude: ids of workers that must not be chosen.
        allowed: ids of the only workers that may be chosen.
        pinned: the only rank that may be chosen; taints and roles do not matter for it.
        pinned_worker: the same for a worker, of which any rank may be chosen.
        required: conditions on labels that must hold.
        forbidden: conditions on labels that must not hold.
        names: names that a worker must have all.
        tolerated: keys, or `key=value`, of taints that do not keep it away; `*`: none does.
        role: `prefill` or `decode` for a stage of a split request; None for a whole one.
        zone: where the worker had better be; any other costs `zone_seconds`.
        preferred: names and their seconds: what a worker without it costs, or if negative, with it.
        affine: the rank that had better be chosen; any other costs `affine_seconds`.
        zone_seconds: see `zone`.
        affine_seconds: see `affine`.
        taint_seconds: price of each soft taint that is not tolerated.
    """

    exclude: frozenset[str] = frozenset()
    allowed: frozenset[str] | None = None
    pinned: Source | None = None
    pinned_worker: str | None = None
    required: tuple[LabelTerm, ...] = ()
    forbidden: tuple[LabelTerm, ...] = ()
    names: frozenset[str] = frozenset()
    tolerated: frozenset[str] = frozenset()
    role: Role | None = None
    zone: str | None = None
    preferred: tuple[tuple[str, float], ...] = ()
    affine: Source | None = None
    zone_seconds: float = 0.5
    affine_seconds: float = 0.0
    taint_seconds: float = 0.5

    def tolerates(self, taint: Taint) -> bool:
        """Whether a taint does not matter."""
        tolerated = self.tolerated
        return taint.key in tolerated or taint.name in tolerated or "*" in tolerated

    def seconds(self, source: Source, traits: Traits) -> float:
        """What the preferences that a rank does not meet cost."""
        price = sum(self.taint_seconds for each in traits.taints if each.soft and not self.tolerates(each))
        if self.zone is not None and traits.zone != self.zone:
            price += self.zone_seconds
        if self.affine is not None and source != self.affine:
            price += self.affine_seconds
        for name, seconds in self.preferred:
            if (name in traits.names) is (seconds < 0):
                price += abs(seconds)
        return price


UNCONSTRAINED = Constraints()
"""What a request asks for that asks for nothing."""


class Placed(Protocol):
    """A worker as far as constraints are concerned."""

    @property
    def worker_id(self) -> str:
        """Its name."""
        ...

    @property
    def traits(self) -> Traits:
        """What it is."""
        ...


_Worker = TypeVar("_Worker", bound=Placed)
_Condition: TypeAlias = tuple[Callable[[Placed], bool], Callable[[Sequence[Placed]], str]]
"""Whether a worker meets it; and what to say of workers of which none does."""


def fitting(workers: Iterable[_Worker], asked: Constraints) -> list[_Worker]:
    """The workers that meet all conditions.

    Raises:
        UnmetConstraintError: none is what the request asks for; the text names the condition and what there is.
        NoWorkerError: none can be had for a request like this, although it asks for nothing that is not there.
    """
    left = list(workers)
    for conditions, refusal in ((_asked(asked), UnmetConstraintError), (_given(asked), NoWorkerError)):
        for meets, complaint in conditions:
            kept = [each for each in left if meets(each)]
            if not kept and left:
                raise refusal(complaint(left))
            left = kept
    return left


def _asked(asked: Constraints) -> Iterator[_Condition]:
    """What the request asks for: whom, then what."""
    pinned, allowed = asked.pinned, asked.allowed
    if pinned is not None:
        yield _is_pinned(pinned.worker_id, f"rank {pinned.rank} of worker")
    if asked.pinned_worker is not None:
        yield _is_pinned(asked.pinned_worker, "worker")
    if allowed is not None:
        yield (
            lambda each: each.worker_id in allowed,
            lambda left: f"none of the allowed workers ({_listing(allowed)}) is there; there is: {_ids(left)}",
        )
    yield from map(_has_label, asked.required)
    yield from map(_lacks_label, asked.forbidden)
    if asked.names:
        yield _has_names(asked.names)


def _given(asked: Constraints) -> Iterator[_Condition]:
    """What holds for every request, and can only be tolerated."""
    exclude = asked.exclude
    if exclude:
        yield lambda each: each.worker_id not in exclude, lambda left: f"all workers are excluded: {_ids(left)}"
    if asked.pinned is None and asked.pinned_worker is None:
        yield _plays(asked.role)
        yield _is_tolerated(asked)


def _is_pinned(worker_id: str, what: str) -> _Condition:
    problem = f"{what} {worker_id!r}, to which this is pinned, is not available"
    return lambda each: each.worker_id == worker_id, lambda left: f"{problem}; there is: {_ids(left)}"


def _plays(role: Role | None) -> _Condition:
    """A stage needs a worker that says so; whole requests go where both stages can be done."""
    if role is None:
        return (
            lambda each: each.traits.whole,
            lambda left: f"all workers do only a part of a request, by their role: {_ids(left)}",
        )
    return (
        lambda each: each.traits.role in (role, "both"),
        lambda left: f"no worker has role {role} or both; there is: {_ids(left)}",
    )


def _has_label(term: LabelTerm) -> _Condition:
    def complaint(left: Sequence[Placed]) -> str:
        values = {each.traits.labels[term.key] for each in left if term.key in each.traits.labels}
        if values:
            return f"no worker has label {term}; there is {term.key} = {_listing(values)}"
        keys = {key for each in left for key in each.traits.labels}
        return f"no worker has label {term}; labels there are: {_listing(keys) or 'none'}"

    return lambda each: term.holds(each.traits.labels), complaint


def _lacks_label(term: LabelTerm) -> _Condition:
    return (
        lambda each: not term.holds(each.traits.labels),
        lambda left: f"all workers have label {term}, which is forbidden: {_ids(left)}",
    )


def _has_names(names: frozenset[str]) -> _Condition:
    def complaint(left: Sequence[Placed]) -> str:
        known = {name for each in left for name in each.traits.names}
        return f"no worker fits routing_constraints {_listing(names)}; known: {_listing(known) or 'none'}"

    return lambda each: names <= each.traits.names, complaint


def _is_tolerated(asked: Constraints) -> _Condition:
    def complaint(left: Sequence[Placed]) -> str:
        taints = {str(taint) for each in left for taint in each.traits.taints if not taint.soft}
        return f"what else would fit ({_ids(left)}) has taints that this does not tolerate: {_listing(taints)}"

    return lambda each: all(taint.soft or asked.tolerates(taint) for taint in each.traits.taints), complaint


def _ids(workers: Sequence[Placed]) -> str:
    return _listing(each.worker_id for each in workers)


def _listing(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _LISTED_MAX} more" if len(listed) > _LISTED_MAX else ""
    return ", ".join(listed[:_LISTED_MAX]) + more
