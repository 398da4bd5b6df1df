"""A whole service without sockets: requests go straight to its dispatcher, time is a number that the test moves."""

import json
from typing import Any

from kvrouter.errors import KvrouterError
from kvrouter.events import BlockStored, EventBatch, Source, encode_batch
from kvrouter.service.app import Service
from kvrouter.service.proxy import Reply, Request, asked_lines, error_reply
from kvrouter.service.workers import Worker, worker_spec_from_fields
from kvrouter.settings import Settings


class Clock:
    """Time in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class InProcess:
    """A service built from settings, opening nothing."""

    def __init__(self, **sections: Any) -> None:
        self.clock = Clock()
        self.service = Service(Settings(**sections), clock=self.clock)
        for listener in self.service.admin._sockets or ():
            listener.close()
        self._sequences: dict[Source, int] = {}

    def add(self, healthy: bool = True, **fields: Any) -> Worker:
        """Register a worker; by default its first health check passes."""
        registry = self.service.registry
        worker = registry.upsert(worker_spec_from_fields(fields), now=self.clock.now)
        if healthy:
            registry.check_passed(worker, now=self.clock.now)
        return worker

    def store(self, worker: Worker, token_ids: list[int], *, rank: int = 0, medium: str = "GPU") -> None:
        """Let a worker announce the full blocks of a prompt, 16 tokens each."""
        source = Source(worker.spec.worker_id, rank)
        hashes = [hash((rank, *token_ids[: end + 16])) & (2**63 - 1) for end in range(0, len(token_ids) - 15, 16)]
        event = BlockStored(
            block_hashes=tuple(hashes),
            parent_block_hash=None,
            token_ids=tuple(token_ids[: len(hashes) * 16]),
            block_size=16,
            medium=medium,
        )
        payload = encode_batch(
            EventBatch(timestamp=0.0, events=(event,), data_parallel_rank=rank, skipped={}), encoding="map"
        )
        sequence = self._sequences.get(source, 0)
        if not sequence:
            self.service.ingest.connected(source, now=self.clock.now)
            self.service.ingest.replay_finished(source, now=self.clock.now, complete=True)
        self._sequences[source] = sequence + 1
        self.service.ingest.receive(source, sequence, payload, now=self.clock.now)

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Request:
        """Make a request as the data plane would."""
        path, _, query = path.partition("?")
        lines = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        asked = asked_lines(lines)
        return Request("request-1", method, path, query, lines, raw, "127.0.0.1", self.clock.now, asked)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask for a path that is answered without a worker; return status and JSON."""
        try:
            reply = self.service.dispatcher.try_local(self.request(method, path, body))
        except KvrouterError as error:
            reply = error_reply(error)
        assert isinstance(reply, Reply)
        return reply.status, json.loads(reply.body)
