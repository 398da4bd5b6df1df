"""The cells of the routing benchmark as a page: one table for each level of load, one line for each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.routing_grid import Cell

__all__ = ["tables"]

_HEAD = """| traffic | workers | cache | `kv`: mean | p99 | hits | best other mean | best other p99 | |
|---|---|---|---|---|---|---|---|---|"""


def tables(cells: Sequence[Cell], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return Markdown; `rows` are those of the report by the name of their cell, and cells without one are left out."""
    return "\n".join(_lines([cell for cell in cells if cell.name in rows], rows))


def _lines(cells: Sequence[Cell], rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for load in dict.fromkeys(cell.load for cell in cells):
        alike = [cell for cell in cells if cell.load == load]
        lost = sum("lost" in (rows[cell.name]["mean"], rows[cell.name]["p99"]) for cell in alike)
        yield f"### {load.capitalize()} load: {len(alike) - lost} of {len(alike)} cells\n"
        yield _HEAD
        yield from (_line(cell, rows[cell.name]) for cell in alike)
        yield ""


def _line(cell: Cell, row: Mapping[str, Any]) -> str:
    ours, peers = row["policies"]["kv"], row["policies"]
    cells = [
        cell.trace,
        str(cell.workers),
        f"{cell.cache_tokens // 1000} k",
        f"{ours['mean']:.3g} s",
        f"{ours['p99']:.3g} s",
        f"{ours['hits']:.1%}",
        _peer(ours, peers, row["peer_name"], "mean", row["mean"]),
        _peer(ours, peers, row["p99_peer"], "p99", row["p99"]),
        "**lost**" if "lost" in (row["mean"], row["p99"]) else "",
    ]
    return f"| {' | '.join(cells)} |"


def _peer(ours: Mapping[str, float], peers: Mapping[str, Any], name: str, figure: str, verdict: str) -> str:
    theirs = peers[name][figure]
    return f"{theirs:.3g} s `{name}`, {ours[figure] / theirs:.2f}" + ("" if verdict == "best" else f" {verdict}")
