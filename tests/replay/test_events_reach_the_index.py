"""The engine's events, encoded and ingested, are its cache: what the index promises is what the engine finds."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.events import EventBatch, Source, encode_batch
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest
from kvrouter.replay.engine.cache import Namespace
from kvrouter.replay.engine.scheduler import Scheduler
from tests.replay.driving import Recorded, finish, scheduler, step

SOURCE = Source("engine", 0)
RANK = 0
SIZE = 4


class Listener:
    """Feeds a scheduler's events to an `Ingest`, batch by batch, as bytes of the wire."""

    def __init__(self, engine: Scheduler, encoding: Literal["map", "array"] = "map") -> None:
        self._engine, self._encoding = engine, encoding
        self._sequence = 0
        self.index = PrefixIndex()
        self.ingest = Ingest(self.index)
        self.ingest.open(SOURCE, RANK, block_size=SIZE, now=0.0)
        self.ingest.connected(SOURCE, now=0.0)

    def hear(self) -> None:
        events = self._engine.cache.take_events()
        if not events:
            return
        batch = EventBatch(timestamp=1.0, events=tuple(events), data_parallel_rank=0, skipped={})
        payload = encode_batch(batch, encoding=self._encoding)
        receipt = self.ingest.receive(SOURCE, self._sequence, payload, now=0.0)
        assert receipt.outcome == "applied"
        self._sequence += 1

    def promised(self, tokens: list[int], namespace: Namespace) -> int:
        salt = (namespace.salt or "").encode()
        return self.ingest.usable_tokens(Prompt(tokens, salt=salt, lora=namespace.lora_name)).get(RANK, 0)


NAMESPACES = (Namespace(), Namespace(salt="tenant"), Namespace(lora_id=1, lora_name="sql"))


@st.composite
def _requests(draw: Any) -> list[tuple[list[int], int, Namespace]]:
    """Draw requests that continue, branch off or repeat earlier ones, within and across namespaces."""
    made: list[tuple[list[int], int, Namespace]] = []
    for _ in range(draw(st.integers(2, 20))):
        kept: list[int] = []
        if made and draw(st.integers(0, 3)):
            earlier = draw(st.sampled_from(made))[0]
            kept = earlier[: draw(st.integers(0, len(earlier)))]
        tokens = (kept + draw(st.lists(st.integers(0, 2), min_size=1, max_size=14)))[:60]
        made.append((tokens, draw(st.integers(0, 5)), draw(st.sampled_from(NAMESPACES))))
    return made


@pytest.mark.parametrize("encoding", ["map", "array"])
@given(requests=_requests(), blocks=st.integers(17, 30))
@settings(max_examples=60, deadline=None)
def test_what_is_promised_is_what_the_engine_finds(
    encoding: Literal["map", "array"], requests: list[tuple[list[int], int, Namespace]], blocks: int
) -> None:
    """Under evictions, repeated blocks, salts and adapters: every single request, exactly."""
    engine = scheduler(blocks=blocks, block_size=SIZE)
    listener = Listener(engine, encoding)

    for tokens, output, namespace in requests:
        promised = listener.promised(tokens, namespace)
        job = Recorded(tokens, output=output, namespace=namespace)
        finish(engine, [job])
        listener.hear()

        assert job.cached_tokens == promised


@given(requests=_requests(), blocks=st.integers(17, 30), running_max=st.integers(1, 5), budget=st.integers(3, 40))
@settings(max_examples=60, deadline=None)
def test_the_index_holds_what_the_pool_holds_after_every_step(
    requests: list[tuple[list[int], int, Namespace]], blocks: int, running_max: int, budget: int
) -> None:
    """Also while requests overlap, copies exist twice and the youngest lose their blocks."""
    engine = scheduler(blocks=blocks, block_size=SIZE, running_max=running_max, step_tokens_max=budget)
    listener = Listener(engine)
    for tokens, output, namespace in requests:
        engine.submit(Recorded(tokens, output=output, namespace=namespace))

    while step(engine):
        listener.hear()

        assert listener.index.blocks(RANK) == len(engine.cache.pool.contents())


def test_a_cleared_cache_clears_the_index() -> None:
    """One event is enough."""
    engine = scheduler(block_size=SIZE)
    listener = Listener(engine)
    finish(engine, [Recorded(range(40))])
    listener.hear()
    before = listener.promised(list(range(40)), Namespace())

    engine.cache.clear()
    listener.hear()

    assert (before, listener.promised(list(range(40)), Namespace())) == (36, 0)
