"""How exactly ingest knows an engine's cache: replays recordings of real engines beside their own truth.

A recording holds the batches that an engine published and, at every request, how many tokens the
engine itself would have found cached on each rank. One row per recording; `over` predicts a hit that
is not there, `under` misses one.
"""

import gzip
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import Report, argument_parser
from kvrouter.blocks import Prompt
from kvrouter.events import Source
from kvrouter.index import PrefixIndex, implementation
from kvrouter.ingest import Ingest

__all__ = ["Accuracy", "replay_recording"]

_BUNDLED = Path(__file__).resolve().parent.parent / "tests" / "golden" / "recordings"
_QUICK_LOOKUPS = 60


@dataclass(slots=True)
class Accuracy:
    """What one recording showed. `lookups` counts each rank at each request."""

    name: str
    lookups: int = 0
    exact: int = 0
    over: int = 0
    under: int = 0
    dumps: int = 0
    dumps_exact: int = 0
    batches: int = 0
    misses: list[str] = field(default_factory=list)

    def compare(self, where: str, predicted: int, truth: int) -> None:
        """Note one prediction beside the engine's own answer."""
        self.lookups += 1
        self.exact += predicted == truth
        self.over += predicted > truth
        self.under += predicted < truth
        if predicted != truth:
            self.misses.append(f"{where}: predicted {predicted}, engine says {truth}")


class _Replay:
    """One recording's fleet: a source per rank, batches held back until the engine's line says so."""

    def __init__(self, name: str) -> None:
        self.accuracy = Accuracy(name)
        self.ingest = Ingest(PrefixIndex())
        self._sources: dict[int, Source] = {}
        self._applied: dict[int, int] = defaultdict(lambda: -1)
        self._ahead: dict[int, list[dict[str, Any]]] = defaultdict(list)

    def line(self, line: dict[str, Any]) -> None:
        kind = line["k"]
        if kind == "meta":
            for rank in line["ranks"]:
                self._source(rank)
        elif kind == "batch":
            self._batch(line)
        elif kind == "arrive":
            self._arrive(line)
        elif kind == "state":
            self._dump(line)
        elif kind == "restart":
            for rank in line.get("ranks", [line["rank"]] if "rank" in line else list(self._sources)):
                self._applied[rank] = -1

    def _source(self, rank: int) -> Source:
        source = self._sources.get(rank)
        if source is None:
            source = self._sources[rank] = Source("recorded", rank)
            self.ingest.open(source, rank, now=0.0)
        return source

    def _batch(self, line: dict[str, Any]) -> None:
        rank, payload = line["rank"], bytes.fromhex(line["payload"])
        self.ingest.receive(self._source(rank), line["seq"], payload, now=line.get("t", 0.0))
        self.accuracy.batches += 1

    def _arrive(self, line: dict[str, Any]) -> None:
        lora = line.get("lora")
        if lora is not None and not isinstance(lora, str):
            name, number = lora
            for source in self._sources.values():
                self.ingest.name_adapter(source, lora_id=number, name=name)
            lora = name
        prompt = Prompt(line["tokens"], salt=(line.get("salt") or "").encode(), lora=lora)
        usable = self.ingest.usable_tokens(prompt)
        for rank, peek in line["peek"].items():
            self.accuracy.compare(f"{line['id']} on rank {rank}", usable.get(int(rank), 0), peek["capped"])

    def _dump(self, line: dict[str, Any]) -> None:
        """The engine's whole cache, with the number of copies where the engine has such."""
        counts = self.ingest.copies(self._source(line["rank"]))
        ours = {(place[1], key): count for place, keys in counts.items() if place[0] == "gpu" for key, count in keys.items()}
        if "blocks" in line:
            theirs = {(group, key % 2**64): copies for key, group, copies in line["blocks"]}
        else:
            theirs = {(0, key % 2**64): 1 for key in line["hashes"]}
        self.accuracy.dumps += 1
        self.accuracy.dumps_exact += ours == theirs


def replay_recording(path: Path, *, lookups_max: int | None = None) -> Accuracy:
    """Replay the recording at `path` (JSON lines, gzipped or not) and compare every prediction."""
    replay = _Replay(path.name.removesuffix(".gz").removesuffix(".jsonl"))
    for line in _lines(path):
        if lookups_max is not None and replay.accuracy.lookups >= lookups_max:
            break
        replay.line(line)
    return replay.accuracy


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with opened as lines:
        for line in lines:
            yield json.loads(line)
