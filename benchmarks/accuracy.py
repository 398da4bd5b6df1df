"""How exactly ingest knows an engine's cache: replays recordings of real engines beside their own truth.

A recording holds the batches that an engine published and, at every request, how many tokens the
engine itself would have found cached on each rank. One row per recording; `over` predicts a hit that
is not there, `under` misses one.
"""

import gzip
import json
import sys
from collections import defaultdict
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


@dataclass(frozen=True, slots=True)
class _Lookup:
    request: str
    prompt: Prompt
    truth: int
    after: int


class _Replay:
    """One recording's fleet: a source per rank, fed as a subscriber would."""

    def __init__(self, name: str) -> None:
        self.accuracy = Accuracy(name)
        self.ingest = Ingest(PrefixIndex())
        self._sources: dict[int, Source] = {}
        self._newest: dict[int, int] = defaultdict(lambda: -1)
        self._early: dict[int, list[_Lookup]] = defaultdict(list)

    def line(self, line: dict[str, Any]) -> None:
        """Take one line; kinds that say nothing about the cache are passed over."""
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
            self._restart([line["rank"]] if "rank" in line else list(self._sources))

    def _source(self, rank: int) -> Source:
        source = self._sources.get(rank)
        if source is None:
            source = self._sources[rank] = Source("recorded", rank)
            self.ingest.open(source, rank, now=0.0)
        return source

    def _batch(self, line: dict[str, Any]) -> None:
        rank, sequence = line["rank"], line["seq"]
        payload = bytes.fromhex(line["payload"])
        self.ingest.receive(self._source(rank), sequence, payload, now=line.get("t", 0.0))
        self.accuracy.batches += 1
        self._newest[rank] = sequence
        due = [lookup for lookup in self._early[rank] if lookup.after <= sequence]
        self._early[rank] = [lookup for lookup in self._early[rank] if lookup.after > sequence]
        for lookup in due:
            self._compare(rank, lookup)

    def _arrive(self, line: dict[str, Any]) -> None:
        """A request: compare now, or when the batch has come after which the engine answered."""
        lora = line.get("lora")
        if lora is not None and not isinstance(lora, str):
            lora, number = lora
            for source in self._sources.values():
                self.ingest.name_adapter(source, lora_id=number, name=lora)
        prompt = Prompt(line["tokens"], salt=(line.get("salt") or "").encode(), lora=lora)
        for key, peek in line["peek"].items():
            rank = int(key)
            lookup = _Lookup(line["id"], prompt, peek["capped"], line["after_seq"][key])
            if lookup.after > self._newest[rank]:
                self._early[rank].append(lookup)
            else:
                self._compare(rank, lookup)

    def _compare(self, rank: int, lookup: "_Lookup") -> None:
        predicted = self.ingest.usable_tokens(lookup.prompt).get(rank, 0)
        self.accuracy.compare(f"{lookup.request} on rank {rank}", predicted, lookup.truth)

    def _restart(self, ranks: list[int]) -> None:
        """What a subscriber sees of a restart: a new connection whose replay does not know our last batch."""
        for rank in ranks:
            source = self._source(rank)
            self.ingest.disconnected(source, now=0.0)
            receipt = self.ingest.connected(source, now=0.0)
            while receipt.replay_from is not None:
                receipt = self.ingest.replay_finished(source, now=0.0, complete=True)
            self._newest[rank] = -1

    def _dump(self, line: dict[str, Any]) -> None:
        """The engine's whole cache, with the number of copies of each block where it keeps several."""
        held = self.ingest.copies(self._source(line["rank"]))
        gpu = {group: keys for (tier, group), keys in held.items() if tier == "gpu"}
        ours = {(group, key): copies for group, keys in gpu.items() for key, copies in keys.items()}
        blocks = line.get("blocks") or [[key, 0, 1] for key in line.get("hashes", ())]
        theirs = {(group, _folded(key)): copies for key, group, copies in blocks}
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


def main(arguments: list[str] | None = None) -> int:
    """Print one row per recording; exit status 1 if a recording cannot be read."""
    parser = argument_parser("accuracy", __doc__ or "")
    parser.add_argument("recordings", nargs="*", type=Path, metavar="RECORDING", help="default: those of the tests")
    parser.add_argument("--misses", type=int, default=0, metavar="N", help="list up to N wrong predictions on stderr")
    options = parser.parse_args(arguments)
    results: list[Accuracy] = []
    failures: list[tuple[str, str]] = []
    for path in options.recordings or sorted(_BUNDLED.glob("*.jsonl.gz")):
        try:
            results.append(replay_recording(path, lookups_max=_QUICK_LOOKUPS if options.quick else None))
        except (OSError, ValueError, KeyError, EOFError) as error:
            failures.append((path.name, f"{type(error).__name__}: {error}"))
    if options.json:
        _report(results, failures).emit(json=True)
    else:
        sys.stdout.write(_table(results))
        sys.stderr.writelines(f"{name}: {reason}\n" for name, reason in failures)
    for result in results:
        sys.stderr.writelines(f"{result.name}: {miss}\n" for miss in result.misses[: options.misses])
    return int(bool(failures))


def _report(results: list[Accuracy], failures: list[tuple[str, str]]) -> Report:
    report = Report("accuracy", packages=["numpy", "msgpack", "xxhash"])
    for result in results:
        report.row(
            result.name,
            "share exact",
            result.exact / result.lookups if result.lookups else None,
            index=implementation,
            lookups=result.lookups,
            exact=result.exact,
            over=result.over,
            under=result.under,
            cache_dumps=result.dumps,
            cache_dumps_exact=result.dumps_exact,
        )
    for name, reason in failures:
        report.row(name, "share exact", None, reason=reason)
    return report


def _table(results: list[Accuracy]) -> str:
    """One line per recording; `dumps` compares the engine's whole cache, copy by copy, where it was recorded."""
    width = max([len(result.name) for result in results] or [0])
    lines = [f"{'recording':{width}}  lookups   exact    over   under   share  dumps exact"]
    for result in results:
        share = f"{result.exact / result.lookups:7.2%}" if result.lookups else "      -"
        counts = "  ".join(f"{count:6}" for count in (result.exact, result.over, result.under))
        lines.append(
            f"{result.name:{width}}  {result.lookups:7}  {counts}  {share}  {result.dumps_exact:5} / {result.dumps}"
        )
    return "\n".join(lines) + "\n"


def _folded(key: int | str) -> int:
    """An engine hash as ingest knows it: 64 bits, of a digest the last eight bytes."""
    return int(key[-16:], 16) if isinstance(key, str) else key % 2**64


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as lines:
        for line in lines:
            yield json.loads(line)


if __name__ == "__main__":
    sys.exit(main())
