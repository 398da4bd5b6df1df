"""Index services behind their public HTTP interfaces, as the cases of this folder see them.

A new kind of service needs one class here. Answers are in tokens, counted from the start of the prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

__all__ = ["KINDS", "DynamoIndexer", "Held", "IndexService", "Kvrouter"]

MODEL = "conformance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How many leading tokens of a prompt a worker holds; `cpu` and `disk` count with the tiers above them.

    `usable` is what the engine would reuse, under the rules of all its groups of layers but for the last token; where a
    service has no such notion it is what it says of the GPU.
    """

    gpu: int = 0
    cpu: int = 0
    disk: int = 0
    usable: int = 0


class IndexService(Protocol):
    """What is asked of a service. Every call returns when the service has answered."""

    def register(self, worker: int, endpoint: str, *, replay: str | None, block_size: int) -> None:
        """Follow the events of a worker with one rank."""
        ...

    def unregister(self, worker: int) -> None:
        """Follow it no longer."""
        ...

    def held(self, token_ids: Sequence[int]) -> Mapping[int, Held]:
        """What each worker holds of a prompt; workers without any may be absent."""
        ...

    def close(self) -> None:
        """Ask no more."""
        ...


class Kvrouter:
    """`kvrouter serve`: POST /workers, POST /overlap_scores. The names and shapes of the fields are also Dynamo's."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=60)

    def close(self) -> None:
        """See `IndexService`."""
        self._client.close()

    def register(self, worker: int, endpoint: str, *, replay: str | None, block_size: int) -> None:
        """See `IndexService`."""
        body: dict[str, Any] = {
            "worker_id": worker,
            "model_name": MODEL,
            "endpoint": f"worker-{worker}",
            "block_size": block_size,
            "kv_events_endpoint": endpoint,
        }
        if replay is not None:
            body["replay_endpoint"] = replay
        self._client.post("/workers", json=body).raise_for_status()

    def unregister(self, worker: int) -> None:
        """See `IndexService`."""
        self._client.delete(f"/workers/{worker}").raise_for_status()

    def held(self, token_ids: Sequence[int]) -> Mapping[int, Held]:
        """See `IndexService`."""
        # One token more than the prompt, so that the last-token rule takes nothing away.
        body = {"model_name": MODEL, "token_ids": [*token_ids, 0]}
        answer = self._client.post("/overlap_scores", json=body).raise_for_status().json()
        size = answer["block_size"]
        return {
            int(row["worker_id"]): Held(
                gpu=size * row["device_blocks"],
                cpu=size * row["host_pinned_blocks"],
                disk=size * row["disk_blocks"],
                usable=row["usable_tokens"],
            )
            for row in answer["workers"]
        }


class DynamoIndexer:
    """`python -m dynamo.indexer`, and services of its shape: POST /register, POST /query."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=60)

    def close(self) -> None:
        """See `IndexService`."""
        self._client.close()

    def register(self, worker: int, endpoint: str, *, replay: str | None, block_size: int) -> None:
        """See `IndexService`."""
        body: dict[str, Any] = {
            "instance_id": worker,
            "endpoint": endpoint,
            "model_name": MODEL,
            "block_size": block_size,
        }
        if replay is not None:
            body["replay_endpoint"] = replay
        self._client.post("/register", json=body).raise_for_status()

    def unregister(self, worker: int) -> None:
        """See `IndexService`."""
        self._client.post("/unregister", json={"instance_id": worker, "model_name": MODEL}).raise_for_status()

    def held(self, token_ids: Sequence[int]) -> Mapping[int, Held]:
        """See `IndexService`."""
        response = self._client.post("/query", json={"model_name": MODEL, "token_ids": list(token_ids)})
        if response.status_code == 404:  # Nobody is registered for the model.
            return {}
        rows = response.raise_for_status().json()["instances"]
        return {
            int(worker): Held(gpu=row["gpu"], cpu=row["cpu"], disk=row["disk"], usable=row["gpu"])
            for worker, row in rows.items()
        }


KINDS: Mapping[str, Callable[[str], IndexService]] = {"kvrouter": Kvrouter, "dynamo": DynamoIndexer}
