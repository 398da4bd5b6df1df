"""How the proxy benchmark measures: every candidate in turn, several times over, and then the median.

Rounds go A B C A B C, so that what changes on the machine while the benchmark runs meets all candidates alike. CPU time
per request is taken beside every rate: it holds also where the rate was disturbed by other work on the machine.
"""

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.candidates import Candidate, Rig, UnavailableError
from benchmarks.load.run import LoadError, Runner
from benchmarks.load.workload import Workload
from benchmarks.processes import Child, NotReadyError

__all__ = ["DIRECT", "Results", "Running", "Scenario", "measure_rounds", "start_candidates"]

DIRECT = "direct"
_FAILED_SHARE_MAX = 0.01
_CONNECTIONS, _STREAMS = 64, 512
_REQUESTS_PER_SECOND, _STREAM_STARTS_PER_SECOND = 200.0, 50.0

Measures = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A started candidate; `child` is None for the workers themselves."""

    name: str
    port: int
    child: Child | None
    reads: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One thing to measure: `kind` is full, streams, latency or first-chunk; workloads by the form of the prompt."""

    name: str
    kind: str
    workloads: Mapping[str, Workload]
    who: Callable[[str], bool] = lambda _: True


class Results:
    """What was measured, and why something was not."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, str], list[Measures]] = defaultdict(list)
        self._reasons: dict[tuple[str | None, str], str] = {}

    def add(self, scenario: str, name: str, sample: Measures) -> None:
        """Add one measurement."""
        self._samples[scenario, name].append(sample)

    def excuse(self, scenario: str | None, name: str, reason: str) -> None:
        """Say why `name` has no figure, in one scenario or (None) in all."""
        self._reasons[scenario, name] = reason

    def value(self, scenario: str, name: str, measure: str) -> float | None:
        """Return the median over the rounds."""
        found = self.all(scenario, name, measure)
        return statistics.median(found) if found else None

    def all(self, scenario: str, name: str, measure: str) -> list[float]:
        """Return the figure of every round."""
        return [sample[measure] for sample in self._samples[scenario, name] if measure in sample]

    def reason(self, scenario: str, name: str) -> str | None:
        """Return why there is no figure."""
        return self._reasons.get((scenario, name)) or self._reasons.get((None, name))


def start_candidates(rig: Rig, candidates: Sequence[Candidate], results: Results) -> list[Running]:
    """Start all candidates; those that cannot be started are excused with their reason."""
    started = [Running(name=DIRECT, port=rig.fleet.ports[0], child=None, reads="token-ids")]
    for candidate in candidates:
        try:
            child, port = candidate.start(rig)
        except (UnavailableError, NotReadyError) as error:
            results.excuse(None, candidate.name, str(error))
        else:
            started.append(Running(name=candidate.name, port=port, child=child, reads=candidate.reads))
    return started


def measure_rounds(
    runner: Runner,
    running: Sequence[Running],
    scenarios: Sequence[Scenario],
    results: Results,
    *,
    rounds: int,
    seconds: float,
) -> None:
    """Measure every scenario of every candidate `rounds` times, each for `seconds`."""
    for number in range(rounds):
        for scenario in scenarios:
            for one in running if number % 2 == 0 else reversed(running):
                if scenario.who(one.name) and results.reason(scenario.name, one.name) is None:
                    _tell(f"round {number + 1} of {rounds}: {scenario.name}: {one.name}")
                    _measure(runner, one, scenario, results, seconds)
    _tell("")


def _measure(runner: Runner, one: Running, scenario: Scenario, results: Results, seconds: float) -> None:
    workload = scenario.workloads.get(one.reads) or next(iter(scenario.workloads.values()))
    measure = _paced if scenario.kind in {"latency", "first-chunk"} else _full
    try:
        results.add(scenario.name, one.name, measure(runner, one, scenario, workload, seconds))
    except (LoadError, NotReadyError, OSError) as error:
        results.excuse(scenario.name, one.name, str(error))


def _full(runner: Runner, one: Running, scenario: Scenario, workload: Workload, seconds: float) -> Measures:
    streams = scenario.kind == "streams"
    unit_bytes = runner.answer_bytes(workload, one.port) if streams else 0
    before = one.child.cpu_seconds() if one.child else 0.0
    came = runner.full(workload, one.port, seconds=seconds, connections=_STREAMS if streams else _CONNECTIONS)
    used = one.child.cpu_seconds() - before if one.child else 0.0
    if came.failed > came.requests * _FAILED_SHARE_MAX:
        raise LoadError(f"{came.failed} requests failed, {came.requests} were answered")
    # Streams are still running when the load ends: the bytes that came say how many there were, in fractions.
    done = came.bytes / unit_bytes if streams else float(came.requests)
    if done == 0:
        raise LoadError("nothing was answered")
    sample = {"rate": done / came.seconds}
    if one.child:
        sample |= {"cpu": used / done, "cores": used / came.seconds}
    return sample


def _paced(runner: Runner, one: Running, scenario: Scenario, workload: Workload, seconds: float) -> Measures:
    rate = _REQUESTS_PER_SECOND if scenario.kind == "latency" else _STREAM_STARTS_PER_SECOND
    came = runner.paced(workload, one.port, seconds=seconds, rate=rate)
    if came.failed > seconds * rate * _FAILED_SHARE_MAX:
        raise LoadError(f"{came.failed} of {seconds * rate:.0f} requests failed")
    return {"p50": came.p50, "p99": came.p99, "first-p50": came.first_byte_p50, "first-p99": came.first_byte_p99}


def _tell(text: str) -> None:
    """Say on a terminal what is running now; a full run takes minutes."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
