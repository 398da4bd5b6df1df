"""The index benchmark: its fleet tells a true story, and it runs without Dynamo."""

import json
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.index_workload import BLOCK_SIZE, Fleet, load_trace, synthetic_trace
from kvrouter.blocks import HASH_SEED, chain_hashes


def test_every_event_follows_from_those_before() -> None:
    """Parents are held when children are stored, only what is held is removed, and no rank has more than it can."""
    fleet = Fleet(ranks=3, blocks_max=3000)
    held: dict[int, set[int]] = {rank: set() for rank in range(3)}
    removals = 0
    for request in synthetic_trace(300):
        for change in fleet.serve(request):
            hashes, own = set(change.hashes.tolist()), held[change.rank]
            if len(change.tokens):
                assert change.parent is None or change.parent in own
                assert hashes.isdisjoint(own)
                own |= hashes
            else:
                assert hashes <= own
                own -= hashes
                removals += 1
            assert len(own) <= 3000

    assert removals > 10
    assert sum(map(len, held.values())) == fleet.pairs()


def test_work_is_spread_over_a_large_fleet() -> None:
    """Figures for hundreds of ranks are not those of a few that never tire."""
    fleet = Fleet(ranks=400, blocks_max=2000)

    ranks = {change.rank for request in synthetic_trace(2500) for change in fleet.serve(request)}

    assert len(ranks) > 200


def test_a_prompt_is_what_its_events_said() -> None:
    """Questions and events name the same blocks."""
    fleet = Fleet(ranks=1, blocks_max=100_000)
    (request, *_) = synthetic_trace(1)
    stored = [key for change in fleet.serve(request) for key in change.hashes.tolist()]

    hashes, local = fleet.prompt(request)

    assert hashes.tolist() == stored[: len(hashes)]
    assert len(local) == len(hashes)


def test_local_hashes_are_those_of_the_tokens() -> None:
    """What the peer hashes from engines' bytes is what it was told beforehand."""
    fleet = Fleet(ranks=1, blocks_max=100_000)
    (change, *_) = (each for each in fleet.serve(synthetic_trace(1)[0]) if len(each.tokens))

    first = change.tokens[:BLOCK_SIZE].astype("<u4").tobytes()

    assert len(change.tokens) == BLOCK_SIZE * len(change.local)
    assert int(change.local[0]) == chain_hashes(None, first, BLOCK_SIZE, HASH_SEED)[0]


def test_copies_of_a_trace_share_nothing(tmp_path: Path) -> None:
    """They are other users with the same habits."""
    trace = tmp_path / "trace.jsonl"
    trace.write_text(json.dumps({"timestamp": 0, "output_length": 40, "hash_ids": [0, 1, 2]}) + "\n")

    first, second = load_trace(trace, copies=2)

    assert set(first.chunks).isdisjoint(second.chunks)
    assert first.answer_blocks == 2


def test_the_benchmark_runs_without_dynamo_and_says_so(tmp_path: Path) -> None:
    """Our own figures are there, the implementations agree, and Dynamo's figures are null."""
    trace = tmp_path / "trace.jsonl"
    entries = [{"output_length": 64, "hash_ids": [0, *range(start, start + 5)]} for start in range(1, 3000, 2)]
    trace.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    command = [sys.executable, "-m", "benchmarks.index", "--json", "--quick", "--pairs", "20000", "--ranks", "4"]
    no_peers = tmp_path / "no-peers"
    venv.create(no_peers, with_pip=False, symlinks=True)
    command += ["--peers-python", str(no_peers / "bin" / "python"), str(trace)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)

    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    rows = {row["name"]: row for row in printed["rows"]}
    assert printed["conditions"]["answers_agree"]
    assert {"match-p50-reference", "apply-hashes-reference", "bytes-per-pair-reference"} <= rows.keys()
    assert rows["apply-engine-bytes"]["ours"] > 0
    assert rows["match-p50-reference"]["peer"] is None
    assert "ai-dynamo-runtime" in rows["match-p50-reference"]["reason"]
