"""Requests per second and core, and added latency, of kvrouter and of its peers: `python -m benchmarks.proxy`.

One router at a time works, alone on its core, in front of four workers that answer at once; the others idle. Measured
are plain answers to bodies of 1 KB and 32 KB, prompts that are all different and prompts that continue conversations,
and streams of 64 chunks. The method and its limits are in docs/benchmarks.md.
"""

import argparse
import contextlib
import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.candidates import CANDIDATES, Candidate, Rig
from benchmarks.fleet.cache_events import BLOCK_SIZE, CacheEvents
from benchmarks.fleet.workers import WORKERS, start_plain_fleet, start_streaming_fleet
from benchmarks.load.run import Runner, answer_header
from benchmarks.load.workload import text_completions, token_completions
from benchmarks.peers import PeerEnvironment, add_peers_option
from benchmarks.processes import Children, Cores, NotReadyError, wait_until
from benchmarks.proxy_rounds import Results, Running, Scenario, measure_rounds, start_candidates
from benchmarks.proxy_rows import add_rows
from benchmarks.report import Report, argument_parser

__all__ = ["main"]

_SIZES = {"1k": 1024, "32k": 32 * 1024}
_OURS = "kvrouter"
_BOUNDS = {"nginx", "pass-through"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argument_parser("proxy", (__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=None, help="length of one measurement (default: 3; quick: 1)")
    parser.add_argument("--rounds", type=int, default=None, help="measurements of each figure (default: 3; quick: 1)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="compare with this one (repeatable)"
    )
    add_peers_option(parser)
    options = parser.parse_args(arguments)
    report = Report("proxy", packages=("uvloop", "httptools"))
    _run(options, report)
    report.emit(options.json)
    return 0


def _run(options: argparse.Namespace, report: Report) -> None:
    """Measure plain answers, then streams: each with a fleet of its own, and all candidates in front of it."""
    peers, cores, results = PeerEnvironment.find(options.peers_python), Cores.divide(), Results()
    candidates = [each for each in CANDIDATES if _wanted(each, options)]
    seconds = options.seconds or (1.0 if options.quick else 3.0)
    rounds = options.rounds or (1 if options.quick else 3)
    report.versions |= peers.versions
    report.conditions |= {"seconds": seconds, "rounds": rounds, "workers": WORKERS, **asdict(cores)}
    with Children() as children, CacheEvents(WORKERS) as events:
        runner = Runner(children, cores.load)
        fleet = start_plain_fleet(children, cores)
        report.conditions |= {"load": runner.software, "backend": f"{fleet.software}, {fleet.processes} processes"}
        rig = Rig(children=children, cores=cores, fleet=fleet, events=events, peers=peers)
        running = start_candidates(rig, candidates, results)
        scenarios = _plain_scenarios(quick=options.quick)
        report.conditions |= _fill_caches(events, running, scenarios)
        measure_rounds(runner, running, scenarios, results, rounds=rounds, seconds=seconds)
        report.conditions["memory_bytes"] = {each.name: each.child.memory_bytes() for each in running if each.child}
    with Children() as children, CacheEvents(WORKERS) as events:
        runner = Runner(children, cores.load)
        fleet = start_streaming_fleet(children, cores)
        report.conditions["stream_backend"] = f"{fleet.software}, {fleet.processes} processes"
        rig = Rig(children=children, cores=cores, fleet=fleet, events=events, peers=peers)
        running = start_candidates(rig, candidates, results)
        seconds = seconds if seconds > 1 else 2 * seconds  # a third of a second passes before the first stream ends
        scenarios = _stream_scenarios(quick=options.quick)
        measure_rounds(runner, running, scenarios, results, rounds=rounds, seconds=seconds)
    add_rows(report, results, [each.name for each in candidates if each.name != _OURS], ours=_OURS)


def _wanted(candidate: Candidate, options: argparse.Namespace) -> bool:
    if options.only:
        return candidate.name == _OURS or candidate.name in options.only
    return candidate.quick or not options.quick


def _plain_scenarios(*, quick: bool) -> list[Scenario]:
    """Return the scenarios in front of workers that answer at once; a quick run leaves some out."""
    scenarios = []
    for size, length in _SIZES.items():
        text = text_completions(f"{size}-text", length, conversations=False)
        ids = token_completions(size, length, conversations=False)
        talk = {
            "token-ids": token_completions(f"{size}-conversation", length, conversations=True),
            "text": text_completions(f"{size}-conversation-text", length, conversations=True),
        }
        scenarios.append(Scenario(name=size, kind="full", workloads={"token-ids": ids, "text": text}))
        scenarios.append(Scenario(name=f"{size}-conversation", kind="full", workloads=talk, who=_looks_at_prompts))
        if not quick:
            both = {"token-ids": text, "text": text}
            scenarios.append(Scenario(name=f"{size}-text", kind="full", workloads=both, who=_routes_text))
    scenarios.append(Scenario(name="latency", kind="latency", workloads=scenarios[0].workloads))
    return scenarios


def _stream_scenarios(*, quick: bool) -> list[Scenario]:
    workloads = {
        "token-ids": token_completions("stream", _SIZES["1k"], conversations=False, stream=True),
        "text": text_completions("stream-text", _SIZES["1k"], conversations=False, stream=True),
    }
    if quick:
        return [Scenario(name="streams", kind="streams", workloads=workloads, who=lambda name: name not in _BOUNDS)]
    streams = Scenario(name="streams", kind="streams", workloads=workloads)
    return [streams, Scenario(name="first-chunk", kind="first-chunk", workloads=workloads)]


def _looks_at_prompts(name: str) -> bool:
    """Conversations are measured where they may make a difference, and for Envoy, which the result is held against."""
    return name in {each.name for each in CANDIDATES if each.cache_aware} | {"envoy"}


def _routes_text(name: str) -> bool:
    return name in {_OURS, "sglang-router"}


def _fill_caches(events: CacheEvents, running: Sequence[Running], scenarios: Sequence[Scenario]) -> dict[str, object]:
    """Publish what the workers hold, and wait until our router answers by it; return the proof for the result."""
    talks = {each.name: each.workloads["token-ids"] for each in scenarios if each.name.endswith("-conversation")}
    blocks = events.publish_fill()
    for workload in talks.values():
        events.publish_prompts(workload.stem_ids())
    port = next((each.port for each in running if each.name == _OURS), None)
    if port is None:
        return {"other_cached_blocks": blocks}
    found: dict[str, int] = {}

    expected = {name: len(each.stem_ids()[0]) // BLOCK_SIZE * BLOCK_SIZE for name, each in talks.items()}
    seeds = itertools.count()  # never the same request twice: it would match what the first one left behind

    def matched() -> bool:
        for name, each in talks.items():
            found[name] = answer_header(each, port, "x-kvrouter-overlap-tokens", seed=next(seeds))
        return all(found[name] >= expected[name] for name in talks)

    with contextlib.suppress(NotReadyError):  # no overlap is then what the result says
        wait_until(matched, "conversations are known as cached", seconds=20)
    return {"other_cached_blocks": blocks, "overlap_tokens": found}


if __name__ == "__main__":
    sys.exit(main())
