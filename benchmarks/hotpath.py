"""Where the time of one routed request goes, in process and without sockets: `python -m benchmarks.hotpath`.

The same prompts as in the proxy benchmark pass through the same parts of kvrouter, one after another, and each part is
timed alone. What is missing from the sum to `cpu-per-request` of the proxy benchmark is HTTP and the operating system.
"""

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import TypeVar

from benchmarks.load.workload import Workload, token_completions
from benchmarks.report import Report, argument_parser
from kvrouter.blocks import Prompt, sequence_hashes
from kvrouter.events import BlockStored, EventBatch, Source, encode_batch
from kvrouter.routing import Router
from kvrouter.service.prompts import PrefixCache, PromptResolver, RequestReader

__all__ = ["main"]

_WORKERS, _BLOCK_SIZE = 4, 16
_SIZES = {"1k": 1024, "32k": 32 * 1024}
_PARTS = ("read", "resolve", "hash", "match", "decide", "commit", "free", "sum")

Result = TypeVar("Result")


class Stopwatch:
    """Times calls, less what reading the clock costs."""

    def __init__(self) -> None:
        self.nanoseconds: dict[str, list[int]] = defaultdict(list)
        self._clock = min(-perf_counter_ns() + perf_counter_ns() for _ in range(1000))

    def time(self, name: str, call: Callable[..., Result], *arguments: object, **named: object) -> Result:
        """Call, and note how long it took."""
        before = perf_counter_ns()
        result = call(*arguments, **named)
        self.nanoseconds[name].append(perf_counter_ns() - before - self._clock)
        return result

    def microseconds(self, name: str) -> float:
        """Return the median of what was noted."""
        return statistics.median(self.nanoseconds[name]) / 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = argument_parser("hotpath", (__doc__ or "").splitlines()[0]).parse_args(arguments)
    report = Report("hotpath", packages=("msgspec", "numpy", "xxhash"))
    for size, length in _SIZES.items():
        for conversations in (False, True):
            workload = token_completions(size, length, conversations=conversations)
            watch = _route_many(workload, (3000 if size == "1k" else 300) * (1 if options.quick else 5))
            for part in _PARTS:
                name = f"{part}-{size}{'-conversation' if conversations else ''}"
                report.row(name, "µs", watch.microseconds(part), calls=len(watch.nanoseconds[part]))
    report.emit(options.json)
    return 0


def _route_many(workload: Workload, requests: int) -> Stopwatch:
    router, cache = _router(workload), PrefixCache(256 << 20)
    reader, resolver = RequestReader(cache), PromptResolver(cache)
    watch = Stopwatch()
    for number in range(requests):
        now = number / 5000  # predictions end while others begin, as they do under load
        body = watch.time("read", reader.read, workload.path, workload.body(number, seed=1))
        prompt = watch.time("resolve", resolver.resolve, body, model_profile=body.model)
        assert isinstance(prompt, Prompt)
        watch.time("hash", prompt.hash_list, _BLOCK_SIZE)
        watch.time("match", router.ingest.usable_tokens, prompt)
        decision = watch.time("decide", router.decide, prompt, model=body.model, now=now)
        watch.time("commit", router.commit, decision, id=number, now=now)
        watch.time("free", router.book.free, number)
        # A decision looks up the match itself, so that it is not counted again.
        parts = ("read", "resolve", "hash", "decide", "commit", "free")
        watch.nanoseconds["sum"].append(sum(watch.nanoseconds[part][-1] for part in parts))
    resolver.close()
    return watch


def _router(workload: Workload) -> Router:
    """Return a router whose workers hold the workload's conversations."""
    router = Router(policy="kv")
    for number in range(_WORKERS):
        (rank,) = router.add_worker(f"w{number}", models=("bench",), block_size=_BLOCK_SIZE, now=0.0)
        source = Source(f"w{number}", 0)
        assert router.ingest.is_trusted(rank)
        for sequence, tokens in enumerate(workload.stem_ids()[number::_WORKERS]):
            router.ingest.receive(source, sequence, _stored(tokens), now=0.0)
    return router


def _stored(tokens: Sequence[int]) -> bytes:
    whole = tuple(tokens[: len(tokens) // _BLOCK_SIZE * _BLOCK_SIZE])
    hashes = tuple(int(each) for each in sequence_hashes(whole, _BLOCK_SIZE))
    event = BlockStored(block_hashes=hashes, token_ids=whole, block_size=_BLOCK_SIZE, medium="GPU")
    return encode_batch(EventBatch(timestamp=0.0, events=(event,), data_parallel_rank=None, skipped={}))


if __name__ == "__main__":
    sys.exit(main())
