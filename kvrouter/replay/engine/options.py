"""Everything that can be chosen about a simulated engine, and its command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from kvrouter.replay.engine.timing import Timing

__all__ = ["EngineOptions", "parse_options"]

_DESCRIPTION = """\
A simulated OpenAI-compatible inference engine: no GPU, no model, but a real paged prefix cache, continuous
batching in real time, and vLLM's KV-cache events. Put it behind a router to see what a fleet would do.

It prints one JSON line when it is ready:
  {"event": "engine_ready", "url": "http://127.0.0.1:41873", "events": "tcp://127.0.0.1:41874", "replay": ...}
"""

_EPILOG = """\
try it:
  python -m kvrouter.replay.engine --port 8000 --events-port 5557 --replay-port 5657
  curl http://127.0.0.1:8000/v1/completions -d '{"prompt": "hello", "max_tokens": 8}'
  curl http://127.0.0.1:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "hi"}], "stream": true}'
  curl http://127.0.0.1:8000/tokenize -d '{"prompt": "hello"}'
  curl http://127.0.0.1:8000/metrics
  curl -X POST http://127.0.0.1:8000/reset_prefix_cache

break it (the answer of GET /fault lists every kind):
  curl http://127.0.0.1:8000/fault -d '{"kind": "die", "after_chunks": 3}'       exit in the middle of a stream
  curl http://127.0.0.1:8000/fault -d '{"kind": "stall", "seconds": 5}'          stop computing, keep connections
  curl http://127.0.0.1:8000/fault -d '{"kind": "error", "status": 503, "requests": 2}'
  curl http://127.0.0.1:8000/fault -d '{"kind": "restart_cache"}'                new life: empty cache, sequence 0

the answers are words chosen by a hash of the prompt: equal prompts get equal answers on every engine with the same
--seed, which is what makes two runs of a workload comparable.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """One engine. Ports of 0 are chosen by the system; rank r publishes on its base port + r."""

    model: str = "simulated"
    adapters: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 0
    events: bool = True
    events_port: int = 0
    replay_port: int = 0
    topic: str = ""
    event_encoding: str = "map"
    ranks: int = 1
    blocks: int = 4096
    block_size: int = 16
    context_tokens: int = 32_768
    running_max: int = 64
    waiting_max: int = 10_000
    step_tokens_max: int = 2048
    output_tokens: int = 64
    timing: Timing = field(default_factory=Timing)
    seed: int = 0
    cache_seed: int | None = None
    api_key: str | None = None
    dialect: str = "vllm"
    role: str | None = None
    side_port: int = 0
    transfer_seconds: float = 300.0
    exit_with_parent: bool = False

    @property
    def tokens_max(self) -> int:
        """Tokens of the longest request, prompt and output together: the context, if the pool can hold it."""
        return min(self.context_tokens, self.blocks * self.block_size)


def parse_options(arguments: Sequence[str] | None = None) -> EngineOptions:
    """Return the options of a command line; a wrong one ends the process with 2."""
    given = vars(_parser().parse_args(arguments))
    timing = Timing(**{name: given.pop(name) for name in Timing.__dataclass_fields__})
    return EngineOptions(timing=timing, adapters=tuple(given.pop("adapters")), **given)


class _OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong, as every command of `kvrouter` does, instead of a usage of twenty."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"engine: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="python -m kvrouter.replay.engine",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_service(parser)
    _add_events(parser)
    _add_cache(parser)
    _add_speed(parser)
    _add_transfer(parser)
    return parser


def _add_service(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("service")
    default = EngineOptions()
    group.add_argument("--host", default=default.host, help="address to bind (default: %(default)s)")
    group.add_argument("--port", type=_port, default=default.port, help="HTTP port; 0 picks a free one")
    group.add_argument("--model", default=default.model, help="name of the model (default: %(default)s)")
    group.add_argument(
        "--adapter", dest="adapters", action="append", default=[], metavar="NAME", help="a LoRA adapter (repeatable)"
    )
    group.add_argument("--api-key", metavar="KEY", help="bearer token that /v1/* asks for")
    group.add_argument("--seed", type=int, default=default.seed, help="chooses the answers (default: %(default)s)")
    group.add_argument(
        "--output-tokens",
        type=_positive,
        default=default.output_tokens,
        metavar="N",
        help="mean length of an answer that nothing else limits (default: %(default)s)",
    )
    group.add_argument(
        "--exit-with-parent", action="store_true", help="stop when standard input closes, as it does when a parent dies"
    )


def _add_events(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("KV-cache events (vLLM's format, over ZeroMQ)")
    default = EngineOptions()
    group.add_argument("--no-events", dest="events", action="store_false", help="publish nothing")
    group.add_argument(
        "--events-port", type=_port, default=default.events_port, metavar="PORT", help="of rank 0; rank r adds r"
    )
    group.add_argument(
        "--replay-port", type=_port, default=default.replay_port, metavar="PORT", help="of rank 0; rank r adds r"
    )
    group.add_argument("--topic", default=default.topic, help="topic of the published frames (default: none)")
    group.add_argument(
        "--event-encoding",
        choices=("map", "array"),
        default=default.event_encoding,
        help="events as vLLM >= 0.24 writes them, or as older ones do (default: %(default)s)",
    )


def _add_cache(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cache and batches, for each rank")
    default = EngineOptions()
    group.add_argument(
        "--ranks", type=_positive, default=default.ranks, metavar="N", help="data-parallel ranks (default: %(default)s)"
    )
    for flag, text in (
        ("blocks", "blocks in the cache"),
        ("block_size", "tokens in a block"),
        ("context_tokens", "longest prompt and answer together"),
        ("running_max", "requests computed at a time"),
        ("waiting_max", "requests that may wait for that"),
        ("step_tokens_max", "tokens computed in one step; longer prefills are cut into chunks"),
    ):
        group.add_argument(
            f"--{flag.replace('_', '-')}",
            type=_positive,
            default=getattr(default, flag),
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    group.add_argument(
        "--cache-seed", type=int, metavar="N", help="seed of the block hashes (default: random, as in vLLM)"
    )


def _add_speed(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speed, for each rank")
    default = Timing()
    for flag, text in (
        ("prefill_tokens_per_second", "uncached prompt tokens computed per second"),
        ("step_seconds", "fixed cost of a step"),
        ("decode_seconds", "cost of a step that decodes, whatever the batch"),
        ("decode_seconds_per_request", "what each decoding request adds"),
    ):
        group.add_argument(
            f"--{flag.replace('_', '-')}",
            type=_seconds if flag != "prefill_tokens_per_second" else _rate,
            default=getattr(default, flag),
            metavar="X",
            help=f"{text} (default: %(default)s)",
        )


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("split requests (GET /transfers tells what became of them)")
    default = EngineOptions()
    group.add_argument(
        "--dialect",
        choices=("vllm", "sglang"),
        default=default.dialect,
        help="whose conventions: how a rank is asked for, how prefill and decode meet (default: %(default)s)",
    )
    group.add_argument(
        "--role", choices=("prefill", "decode"), default=default.role, help="part in split requests (default: none)"
    )
    group.add_argument(
        "--side-port",
        type=_port,
        default=default.side_port,
        metavar="PORT",
        help="where blocks are fetched from; SGLang's bootstrap port; 0 picks a free one",
    )
    group.add_argument(
        "--transfer-seconds",
        type=_seconds,
        default=default.transfer_seconds,
        metavar="X",
        help="how long the two wait for each other (default: %(default)s)",
    )


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65_535:
        raise argparse.ArgumentTypeError(f"{value} is not a port")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 3600:
        raise argparse.ArgumentTypeError(f"{value} is not a time between 0 and 3600 seconds")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a positive rate")
    return value
