"""The grid of the routing benchmark, and what its rows say of wins and losses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report import Report
from benchmarks.routing import Field, add_rows, measure, verdict
from benchmarks.routing_grid import LOADS, Cell, Grid
from benchmarks.routing_journal import Journal, JournalError
from benchmarks.routing_table import tables
from tests.replay.test_comparison import MEASURES


def grid(folder: Path, **changes: object) -> Grid:
    """A grid of two cells over made-up chats."""
    given = {
        "kinds": ["multi-turn"],
        "workers": [2],
        "caches": [100_000],
        "loads": ["light", "heavy"],
        "requests": 50,
        "made_up_share": 0.05,
        **changes,
    }
    return Grid(folder, **given)  # type: ignore[arg-type]


def figures(*means: float) -> dict[int, object]:
    """Measures of one policy by seed."""
    return {seed: replace(MEASURES, ttft_mean=mean) for seed, mean in enumerate(means)}


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((1.0, 2.0, 3.0), (1.5, 2.5, 3.5), "best"),
        ((1.5, 2.5, 3.5), (1.0, 2.0, 3.0), "lost"),
        ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), "best"),
        ((1.1, 2.0, 3.0), (1.0, 2.1, 2.9), "tied"),
        ((1.0, 2.0, 3.0), (1.1, 1.9, 3.1), "tied"),
        ((1.0,), (1.1,), "best"),
        ((1.1,), (1.0,), "lost"),
    ],
)
def test_differences_decide_seed_by_seed(ours: tuple[float, ...], theirs: tuple[float, ...], said: str) -> None:
    """A steady difference is a win or a loss, one that may be chance is a tie."""
    assert verdict(figures(*ours), figures(*theirs), "ttft_mean") == said  # type: ignore[arg-type]


def test_recorded_traces_are_part_of_the_grid(tmp_path: Path) -> None:
    """Each with all numbers of workers; without a folder there are only made-up ones."""
    line = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    lines = [json.dumps(line | {"timestamp": 100 * number}) for number in range(80)]
    (tmp_path / "chats_trace.jsonl").write_text("\n".join(lines))

    found = grid(tmp_path, workers=[2, 4], caches=[100_000, 200_000])

    assert [cell.name for cell in found.cells if cell.trace == "chats"] == [
        f"chats-{workers}w-{cache}k-{load}" for workers in (2, 4) for cache in (100, 200) for load in ("light", "heavy")
    ]
    assert [source.name for source in found.sources] == ["chats", "multi-turn", "multi-turn"]
    assert len(found.sources[0].trace(0).turns) == 50
    assert len(grid(tmp_path / "absent").sources) == 1


def test_a_level_of_load_is_a_level_of_work(tmp_path: Path) -> None:
    """Heavy is denser than light by what the levels say."""
    light, heavy = grid(tmp_path / "absent").cells

    assert heavy.rate_scale / light.rate_scale == pytest.approx(LOADS["heavy"] / LOADS["light"])
    assert (light.fleet.workers, light.fleet.rates.cache_tokens) == (2, 100_000)


def test_every_cell_is_reported_and_they_are_summed_up(tmp_path: Path) -> None:
    """Two cells, three policies, two seeds."""
    small = grid(tmp_path / "absent")
    report = Report("routing")
    policies = ["kv", "least-loaded", "random"]

    add_rows(report, small.cells, measure(small, Field(policies, [1, 2]), 1, Journal(None, {})))

    *rows, share, worst = report.rows
    assert [row["name"] for row in rows] == [cell.name for cell in small.cells]
    for row in rows:
        assert row["peer_name"] in policies[1:]
        assert {row["mean"], row["p99"]} <= {"best", "tied", "lost"}
        assert list(row["policies"]) == policies  # type: ignore[call-overload]
    assert share["name"] == "share-of-cells-best-or-tied"
    assert 0 <= share["ours"] <= 1  # type: ignore[operator]
    assert worst["name"] == "worst-cell-mean-ttft-ratio"
    assert worst["ours"] >= 1  # type: ignore[operator]


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    """Also if its last line is torn; and a journal of other runs is refused."""
    small, path = grid(tmp_path / "absent", loads=["light"]), tmp_path / "journal"
    whole = measure(small, Field(["kv", "random"], [1, 2]), 1, Journal(path, {"requests": 50}))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[3][:40]]))

    found = measure(small, Field(["kv", "random"], [1, 2]), 1, Journal(path, {"requests": 50}), plays=False)
    again = measure(small, Field(["kv", "random"], [1, 2]), 1, Journal(path, {"requests": 50}))

    assert sum(len(rows) for rows in found[small.cells[0].name].values()) == 2
    assert again == whole
    assert sorted(path.read_text().splitlines()) == sorted("".join(lines).splitlines())
    with pytest.raises(JournalError, match="other conditions"):
        Journal(path, {"requests": 51})
    path.write_text(lines[0] + json.dumps({"cell": "a"}) + "\n")
    with pytest.raises(JournalError, match="other measures"):
        Journal(path, {"requests": 50})


def test_caches_that_were_never_full_need_not_be_larger(tmp_path: Path) -> None:
    """A run in one of them is that in a larger one; it is not repeated, and would not have been another."""
    caches = [40_000, 5_000_000, 50_000_000]
    both, path = grid(tmp_path / "absent", loads=["heavy"], caches=caches), tmp_path / "journal"
    large = grid(tmp_path / "absent", loads=["heavy"], caches=caches[2:])

    found = measure(both, Field(["kv"], [1]), 1, Journal(path, {}))
    alone = measure(large, Field(["kv"], [1]), 1, Journal(None, {}))

    small, middle, roomy = (found[cell.name]["kv"][1] for cell in both.cells)
    assert small.full_workers > 0
    assert middle.full_workers == 0
    assert roomy == middle == alone[large.cells[0].name]["kv"][1]
    assert len(path.read_text().splitlines()) == 1 + 2


def test_who_is_out_of_reach_is_not_repeated(tmp_path: Path) -> None:
    """But ours is, whatever it is; and only who has played under all seeds is its peer."""
    small = grid(tmp_path / "absent", loads=["heavy"])
    cell = small.cells[0].name
    first = measure(small, Field(["kv", "least-loaded", "random"], [1]), 1, Journal(None, {}))[cell]
    ratio = first["random"][1].ttft_mean / min(row[1].ttft_mean for row in first.values())
    field = Field(["kv", "least-loaded", "random"], [1, 2], within=1.0)

    found = measure(small, field, 1, Journal(None, {}))

    rivals = ("least-loaded", "random")
    best = {min(rivals, key=lambda policy: getattr(first[policy][1], figure)) for figure in ("ttft_mean", "ttft_p99")}
    assert ratio > 1
    assert {policy for policy, rows in found[cell].items() if len(rows) == 2} == {"kv", *best}
    assert field.is_whole(found[cell])
    assert not Field(field.policies, field.seeds).is_whole(found[cell])


def test_a_page_shows_every_cell(tmp_path: Path) -> None:
    """What was lost is marked, and counted."""
    small = grid(tmp_path / "absent")
    report = Report("routing")
    add_rows(report, small.cells, measure(small, Field(["kv", "random"], [1, 2]), 1, Journal(None, {})))
    rows = {str(row["name"]): row for row in report.rows}
    rows[small.cells[0].name]["p99"] = "lost"
    rows[small.cells[1].name] |= {"mean": "best", "p99": "tied"}

    page = tables(small.cells, rows)

    assert "### Light load: 0 of 1 cells" in page
    assert "### Heavy load: 1 of 1 cells" in page
    assert page.count("| multi-turn | 2 | 100 k |") == 2
    assert page.count("**lost**") == 1
    assert " tied |" in page


def test_cells_are_named_by_their_conditions() -> None:
    """So that a row can be found again."""
    cell = Cell(source=0, trace="agents", workers=8, cache_tokens=1_000_000, load="medium", rate_scale=1.0)

    assert cell.name == "agents-8w-1000k-medium"
    assert {run.seed for run in cell.runs(["kv"], [1, 2])} == {1, 2}
