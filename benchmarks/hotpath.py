"""Where the time of one routed request goes, in process and without sockets: `python -m benchmarks.hotpath`.

`whole` is everything that the router process does for one proxied request, from the client's bytes to the answer's
last byte, on connections that lead nowhere. The other rows are parts of it, each timed alone on the same prompts. What
is missing from `whole` to `cpu-per-request` of the proxy benchmark is the event loop and the operating system. Medians
of many calls on one thread: far steadier on a busy machine than any rate.
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any, TypeVar, cast

from benchmarks.fleet.answers import COMPLETION
from benchmarks.load.workload import Workload, token_completions
from benchmarks.report import Report, argument_parser
from kvrouter.blocks import Prompt, sequence_hashes
from kvrouter.events import BlockStored, EventBatch, Source, encode_batch
from kvrouter.ingest import Ingest
from kvrouter.routing import Router
from kvrouter.service.app import Service
from kvrouter.service.prompts import PrefixCache, PromptResolver, RequestReader
from kvrouter.service.proxy.client import ClientConnection
from kvrouter.service.proxy.limits import ProxyLimits
from kvrouter.service.proxy.plane import DataPlane
from kvrouter.service.proxy.upstream import UpstreamConnection
from kvrouter.service.workers import parse_worker_spec
from kvrouter.settings import Settings

__all__ = ["main"]

_WORKERS, _BLOCK_SIZE = 4, 16
_SIZES = {"1k": 1024, "32k": 32 * 1024}
_PARTS = ("read", "resolve", "hash", "match", "decide", "commit", "free")
# At this rate predictions end while others begin, as they do in a router that has been running for a while.
_REQUESTS_PER_SECOND = {"1k": 1000, "32k": 100}

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
        """Return the median of the later half of what was noted, when everything was warm."""
        noted = self.nanoseconds[name]
        return statistics.median(noted[len(noted) // 2 :]) / 1000


class Connection:
    """A transport that leads nowhere; a worker's end is noted in `asked` when something is written to it."""

    def __init__(self, asked: "list[Connection] | None" = None) -> None:
        self._asked = asked
        self.protocol: UpstreamConnection | None = None
        self.written = b""

    def write(self, data: bytes) -> None:
        """Keep the last piece only."""
        self.written = data
        if self._asked is not None:
            self._asked.append(self)

    def writelines(self, pieces: Sequence[bytes]) -> None:
        """Join as the event loop does."""
        self.write(b"".join(pieces))

    def get_extra_info(self, name: str) -> object:
        """Return the address of a client."""
        return ("127.0.0.1", 1) if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        """Return 0: all is sent at once."""
        return 0

    def is_closing(self) -> bool:
        """Return False: it stays open."""
        return False


class Workers:
    """Stands in the place of the connection pool: every worker has a free connection."""

    def __init__(self) -> None:
        self.asked: list[Connection] = []
        self._idle: list[UpstreamConnection] = []

    def take(self, endpoint: object) -> UpstreamConnection:  # noqa: ARG002 - the pool's signature
        """Return a connection."""
        if self._idle:
            return self._idle.pop()
        connection, transport = UpstreamConnection(self), Connection(self.asked)
        connection.connection_made(cast("Any", transport))
        transport.protocol = connection
        return connection

    def opened(self) -> None:
        """Nothing is counted."""

    def released(self, connection: UpstreamConnection) -> None:
        """Take a connection back."""
        self._idle.append(connection)

    def closed(self, connection: UpstreamConnection) -> None:
        """Nothing closes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = argument_parser("hotpath", (__doc__ or "").splitlines()[0]).parse_args(arguments)
    report = Report("hotpath", packages=("msgspec", "numpy", "xxhash"))
    for size, length in _SIZES.items():
        for conversations in (False, True):
            workload = token_completions(size, length, conversations=conversations)
            rate = _REQUESTS_PER_SECOND[size]
            watch = Stopwatch()
            # Predictions live for five seconds: what counts is measured when the first ones have ended.
            _route_many(watch, workload, requests=rate * (10 if options.quick else 20), rate=rate)
            _answer_many(watch, workload, requests=rate * (5 if options.quick else 20))
            for part in ("whole", *_PARTS):
                name = f"{part}-{size}{'-conversation' if conversations else ''}"
                report.row(name, "µs", watch.microseconds(part), calls=len(watch.nanoseconds[part]))
    report.emit(options.json)
    return 0


def _answer_many(watch: Stopwatch, workload: Workload, *, requests: int) -> None:
    """Carry requests through the whole data plane of a service that was never started."""
    service = Service(Settings())
    specs = [f"http://127.0.0.1:{1 + n},id=w{n},model=bench,block_size={_BLOCK_SIZE}" for n in range(_WORKERS)]
    service.add_workers([parse_worker_spec(spec) for spec in specs])
    for worker in service.registry:
        service.registry.check_passed(worker, now=service.clock())
    _hold(service.ingest, workload)
    workers = Workers()
    plane = DataPlane(service.dispatcher, ProxyLimits(), pool=cast("Any", workers), on_error=None)
    client, transport = ClientConnection(plane, set()), Connection()
    client.connection_made(cast("Any", transport))
    answer = _answer()

    def exchange(request: bytes) -> None:
        client.get_buffer(-1)[: len(request)] = request
        client.buffer_updated(len(request))
        asked = workers.asked.pop()
        assert asked.protocol is not None
        asked.protocol.data_received(answer)

    for number in range(requests):
        watch.time("whole", exchange, workload.request(number, 1, "127.0.0.1:8080"))
        assert transport.written.startswith(b"HTTP/1.1 200"), transport.written[:300]
    service.resolver.close()


def _route_many(watch: Stopwatch, workload: Workload, *, requests: int, rate: float) -> None:
    """Do the parts one by one."""
    router, cache = Router(policy="kv"), PrefixCache(256 << 20)
    for number in range(_WORKERS):
        router.add_worker(f"w{number}", models=("bench",), block_size=_BLOCK_SIZE, now=0.0)
    _hold(router.ingest, workload)
    reader, resolver = RequestReader(cache), PromptResolver(cache)
    for number in range(requests):
        now = number / rate
        body = watch.time("read", reader.read, workload.path, workload.body(number, seed=1))
        prompt = watch.time("resolve", resolver.resolve, body, model_profile=body.model)
        assert isinstance(prompt, Prompt)
        watch.time("hash", prompt.hash_list, _BLOCK_SIZE)
        watch.time("match", router.ingest.usable_tokens, prompt)
        decision = watch.time("decide", router.decide, prompt, model=body.model, now=now)
        watch.time("commit", router.commit, decision, id=number, now=now)
        watch.time("free", router.book.free, number)
    resolver.close()


def _hold(ingest: Ingest, workload: Workload) -> None:
    """Let the workers have the workload's conversations cached."""
    for number in range(_WORKERS):
        for sequence, tokens in enumerate(workload.stem_ids()[number::_WORKERS]):
            ingest.receive(Source(f"w{number}", 0), sequence, _stored(tokens), now=0.0)


def _stored(tokens: Sequence[int]) -> bytes:
    whole = tuple(tokens[: len(tokens) // _BLOCK_SIZE * _BLOCK_SIZE])
    hashes = tuple(int(each) for each in sequence_hashes(whole, _BLOCK_SIZE))
    event = BlockStored(block_hashes=hashes, token_ids=whole, block_size=_BLOCK_SIZE, medium="GPU")
    return encode_batch(EventBatch(timestamp=0.0, events=(event,), data_parallel_rank=None, skipped={}))


def _answer() -> bytes:
    body = json.dumps(COMPLETION).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


if __name__ == "__main__":
    sys.exit(main())
