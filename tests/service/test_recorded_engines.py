"""What a router process answers when a real engine's recorded bytes reach it over ZMQ."""

import gzip
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.service.processes import Processes, Router, eventually

RECORDINGS = Path(__file__).parents[1] / "golden" / "recordings"


class RecordedEngine:
    """Publishes the batches of a recording as the engine did, one socket per rank."""

    def __init__(self, ranks: list[int]) -> None:
        self._context = zmq.Context()
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        base = self._bind(ranks)
        self.endpoint = f"tcp://127.0.0.1:{base}"
        self.published = dict.fromkeys(ranks, -1)

    def _bind(self, ranks: list[int]) -> int:
        """Bind each rank at base + rank, as engines do; another base where one of the ports is taken."""
        for base in range(20_000 + os.getpid() % 8_000, 30_000, 16):
            self._sockets = {rank: self._context.socket(zmq.PUB) for rank in ranks}
            try:
                for rank, each in self._sockets.items():
                    each.bind(f"tcp://127.0.0.1:{base + rank}")
            except zmq.ZMQError:
                self.release()
            else:
                return base
        raise AssertionError("no free ports")

    def publish(self, batch: dict[str, Any]) -> None:
        rank, sequence = batch["rank"], batch["seq"]
        frames = [b"", struct.pack(">Q", sequence), bytes.fromhex(batch["payload"])]
        self._sockets[rank].send_multipart(frames)
        self.published[rank] = sequence

    def release(self) -> None:
        for each in self._sockets.values():
            each.close(linger=0)

    def close(self) -> None:
        self.release()
        self._context.term()


def read(name: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of a recording."""
    with gzip.open(RECORDINGS / f"{name}.jsonl.gz", "rt") as lines:
        yield from map(json.loads, lines)


def usable_tokens(router: Router, arrival: dict[str, Any]) -> dict[int, int]:
    """Ask the service, as a gateway would."""
    question = {"token_ids": arrival["tokens"], "model_name": "recorded"}
    if arrival.get("lora"):
        question["lora_name"] = arrival["lora"][0]
    if arrival.get("salt"):
        question["cache_salt"] = arrival["salt"]
    answer = router.post("/overlap_scores", question).json()
    return {each["dp_rank"]: each["usable_tokens"] for each in answer["workers"]}


@pytest.mark.parametrize("name", ["vllm-0.33.0-full-2ranks", "sglang-0.5.23-page16-2ranks"])
def test_a_recorded_engine_is_known_exactly_through_the_service(processes: Processes, name: str) -> None:
    """At every request that the engine saw, the service says what the engine itself would have reused."""
    lines = list(read(name))
    ranks = lines[0]["ranks"]
    engine = RecordedEngine(ranks)
    router = processes.router(
        "--worker", f"http://127.0.0.1:9,model=recorded,events={engine.endpoint},ranks={len(ranks)}"
    )
    eventually(lambda: all(source["connected"] for source in router.get("/sources")))

    def caught_up() -> bool:
        applied = {source["rank"]: source["applied_sequence"] for source in router.get("/sources")}
        return all(sent < 0 or applied[rank] == sent for rank, sent in engine.published.items())

    wrong, lookups = [], 0
    for line in lines:
        if line["k"] == "batch":
            engine.publish(line)
        elif line["k"] == "arrive":
            eventually(caught_up)
            truth = {int(rank): peek["capped"] for rank, peek in line["peek"].items()}
            lookups += len(truth)
            answer = usable_tokens(router, line)
            wrong += [(line["id"], rank) for rank in truth if answer[rank] != truth[rank]]
    engine.close()

    assert lookups > 200
    assert wrong == []
