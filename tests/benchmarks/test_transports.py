"""The benchmark of transports: a short run of some of them."""

import json
import subprocess
import sys

from benchmarks.transports_callers import CALLERS
from benchmarks.transports_side import PEERS, WORKERS


def test_every_worker_has_somebody_who_asks_it() -> None:
    """By the same name."""
    assert set(CALLERS) == set(WORKERS) | set(PEERS)


def test_a_short_run_has_every_figure_beside_its_peer() -> None:
    """A-203, A-215, A-274: unary calls, streams, CPU, sockets, the pool on and off, and an order."""
    asked = ("tcp", "call-home", "call-home-unpooled", "nats")
    options = [part for name in asked for part in ("--transport", name)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.transports", "--json", "--quick", "--rounds", "1", *options],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = {row["name"]: row for row in document["rows"]}
    for name, peer in (("tcp", "plain-grpc"), ("call-home", "plain-grpc"), ("nats", "plain-nats")):
        for figure in ("unary-p50", "unary-32-per-second", "items-per-second", "cpu-per-request", "sockets"):
            row = rows[f"{name}-{figure}"]
            assert (row["ours"] > 0, row["peer"] > 0, row["peer_name"]) == (True, True, peer)
    assert all(rows[name]["ratio"] > 0 for name in ("pool-p50", "pool-p99", "order-tcp-before-call-home"))
    assert rows["order-call-home-before-http"]["reason"] == "not asked for"
    assert sorted(document["conditions"]["order"]["measured"]) == ["call-home", "tcp"]
