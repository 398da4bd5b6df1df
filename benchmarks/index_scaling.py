"""How the prefix index behaves as it grows, beside Dynamo's: `python -m benchmarks.index_scaling [--plot FILE]`.

Each index is filled with chains of random blocks, some on several ranks, and stopped at one size after the other: what
a match costs there, how many bytes a pair of block and rank takes, and how many blocks were stored per second since the
last stop. Each runs alone in its process (`index_scaling_side`). `--plot` draws the curves as an SVG file.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.line_chart import Chart, Line, draw
from benchmarks.peers import PeerEnvironment, add_peers_option
from benchmarks.report import Report, argument_parser
from kvrouter import native_core

__all__ = ["main"]

_SIDE = Path(__file__).with_name("index_scaling_side.py")
_PACKAGE = "ai-dynamo-runtime"
_SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 50_000_000)
# Dynamo's events are JSON, and take longer to write than to apply.
_PEER_PAIRS_MAX = 10_000_000
_CHARTS = (
    ("match_512_us", "Match of 512 blocks that are held, median", "µs"),
    ("match_8192_us", "Match of 8,192 blocks that are held, median", "µs"),
    ("blocks_per_second", "Blocks stored per second", "1/s"),
    ("bytes_per_pair", "Bytes per block and rank", "bytes"),
)

Curve = list[dict[str, float]]


def main() -> None:
    """Run the benchmark."""
    parser = argument_parser("index_scaling", __doc__.splitlines()[0])
    add_peers_option(parser)
    parser.add_argument("--pairs-max", type=int, help="the largest size (default: 50 M; quick 0.3 M)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves into this SVG file")
    arguments = parser.parse_args()
    largest = arguments.pairs_max or (300_000 if arguments.quick else _SIZES[-1])
    sizes = [size for size in _SIZES if size <= largest]
    peers = PeerEnvironment.find(arguments.peers_python)
    report = Report("index_scaling", packages=["numpy"])
    report.versions |= {_PACKAGE: peers.versions[_PACKAGE]} if _PACKAGE in peers.versions else {}
    ours = _run(Path(sys.executable), "native" if native_core.present else "reference", sizes)
    theirs: Curve = []
    if _PACKAGE in peers.versions:
        theirs = _run(peers.python, "dynamo", [size for size in sizes if size <= _PEER_PAIRS_MAX])
    _report(report, ours, theirs, peers)
    if arguments.plot is not None:
        arguments.plot.write_text(_plot(ours, theirs), encoding="utf-8")
    report.emit(arguments.json)


def _run(python: Path, kind: str, sizes: list[int]) -> Curve:
    command = [str(python), str(_SIDE), kind, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False, cwd=_SIDE.parents[1])
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr}")
    curve: Curve = json.loads(done.stdout)
    return curve


def _report(report: Report, ours: Curve, theirs: Curve, peers: PeerEnvironment) -> None:
    beside = {point["pairs"]: point for point in theirs}
    for point in ours:
        peer = beside.get(point["pairs"])
        reason = None
        if peer is None:
            reason = f"not run beyond {_PEER_PAIRS_MAX:,} pairs" if theirs else peers.missing(_PACKAGE)
        for key, _, unit in _CHARTS:
            if point[key] <= 0:  # The prompts of that depth would be more than all.
                continue
            name = f"{key.replace('_', '-')}-at-{int(point['pairs'])}"
            figure = None if peer is None or peer[key] <= 0 else peer[key]
            less = not key.endswith("per_second")
            report.row(name, unit, point[key], figure, "dynamo RadixTree", reason=reason, less_is_better=less)


def _plot(ours: Curve, theirs: Curve) -> str:
    charts = []
    for key, title, unit in _CHARTS:
        curves = {"kvrouter": _points(ours, key), "Dynamo RadixTree": _points(theirs, key)}
        lines = tuple(Line(name=name, points=points) for name, points in curves.items() if points)
        if lines:
            charts.append(Chart(title=title, unit=unit, lines=lines))
    return draw(charts, across="pairs of block and rank")


def _points(curve: Curve, key: str) -> tuple[tuple[float, float], ...]:
    rows: list[dict[str, Any]] = [point for point in curve if point[key] > 0]
    return tuple((row["pairs"], row[key]) for row in rows)


if __name__ == "__main__":
    main()
