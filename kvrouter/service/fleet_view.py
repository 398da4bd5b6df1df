"""What can be told about the whole fleet, made once per change of the registry and then only read.

Models and their workers, routing groups, and the ready-made answer of `GET /v1/models`.
"""

from typing import Any

import msgspec

from kvrouter.service.workers import Worker, WorkerRegistry

__all__ = ["FleetView", "FleetViews"]

DEFAULT_MODEL = "default"


class FleetView:
    """The fleet at one version of the registry."""

    __slots__ = ("groups", "models", "models_body", "parents", "sole_model", "version")

    def __init__(self, registry: WorkerRegistry) -> None:
        self.version = registry.version
        self.models: dict[str, list[Worker]] = {}
        """Workers by what they serve, whether they can be chosen now or not."""
        groups: dict[str, set[str]] = {}
        cards: dict[str, dict[str, Any]] = {}
        for worker in registry:
            groups.setdefault(worker.spec.routing_group, set()).add(worker.spec.worker_id)
            for model in worker.models:
                self.models.setdefault(model, []).append(worker)
            for card in worker.cards:
                cards.setdefault(card["id"], card)
        self.groups = {name: frozenset(members) for name, members in groups.items()}
        self.parents = {name: parent for name, card in cards.items() if isinstance(parent := card.get("parent"), str)}
        """Base models of LoRA adapters, by the adapter's name."""
        self.sole_model = next(iter(self.models)) if len(self.models) == 1 else None
        """The model that a request means which names none."""
        self.models_body = {name: _card(name, cards.get(name)) for name in sorted(self.models)}

    def group_members(self, group: str | None) -> frozenset[str] | None:
        """Return the ids of the workers in a group, or None where the group is the whole fleet."""
        if len(self.groups) <= 1 and (group is None or group in self.groups):
            return None
        return self.groups.get(group or "default", frozenset())

    def selection_model(self, named: str | None) -> str | None:
        """Return the model that a selection is for: the one named, else `default`, else any."""
        return named or (DEFAULT_MODEL if DEFAULT_MODEL in self.models else None)


class FleetViews:
    """Hands out the current view."""

    def __init__(self, registry: WorkerRegistry) -> None:
        self._registry = registry
        self._view = FleetView(registry)

    def current(self) -> FleetView:
        """Return the view of the fleet as it is now."""
        if self._view.version != self._registry.version:
            self._view = FleetView(self._registry)
        return self._view

    def models_answer(self) -> bytes:
        """Return the body of `GET /v1/models`: the union over all workers that are known."""
        listing = list(self.current().models_body.values())
        return msgspec.json.encode({"object": "list", "data": listing})


def _card(name: str, card: dict[str, Any] | None) -> dict[str, Any]:
    return card or {"id": name, "object": "model", "created": 0, "owned_by": "kvrouter"}
