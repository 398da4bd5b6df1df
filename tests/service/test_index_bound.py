"""A router with a bound on its index: what it shows, and that requests and events go on where less is known."""

from typing import Any

import httpx

from kvrouter.events import Source
from kvrouter.settings import IndexSettings
from tests.service.inprocess import InProcess
from tests.service.processes import Processes, eventually

BYTES_MAX = 1 << 20
PROMPTS = 6
PROMPT_TOKENS = 16 * 3000


def test_a_router_keeps_its_bound_and_says_what_that_cost(processes: Processes) -> None:
    """A real engine tells of more blocks than fit; every request is answered all the same."""
    engine = processes.engine(
        "--blocks", "20000", "--context-tokens", "65536", "--prefill-tokens-per-second", "1e9", "--step-seconds", "0"
    )
    router = processes.router("--worker", engine.spec, "--index-bytes-max", str(BYTES_MAX), workers=1)

    for number in range(PROMPTS):
        prompt = list(range(number * PROMPT_TOKENS, (number + 1) * PROMPT_TOKENS))
        assert router.post("/v1/completions", {"prompt": prompt, "max_tokens": 1}).status_code == 200

    shown: Any = eventually(lambda: index if (index := router.get("/index"))["blocks_dropped"]["refused"] else None)
    eventually(lambda: router.get("/sources")[0]["starved"] or None)
    (source,) = router.get("/sources")
    assert (source["state"], source["incomplete"]) == ("live", True)
    assert shown["bytes_max"] == BYTES_MAX
    assert 0 < shown["blocks"] < PROMPTS * 3000
    index = router.get("/index")
    assert index["bytes"] + index["bytes_beside"] <= BYTES_MAX
    metrics = httpx.get(f"{router.url}/metrics").text
    assert "kvrouter_index_max_bytes 1.048576e+06" in metrics
    assert 'kvrouter_index_dropped_blocks_total{reason="unconfirmed"} 0.0' in metrics
    assert 'kvrouter_index_bytes{part="beside"}' in metrics


def test_a_worker_in_doubt_makes_room_for_one_that_is_not() -> None:
    """The first one's connection is lost, and memory is short: the second one's blocks are all known."""
    router = InProcess(index=IndexSettings(bytes_max=8 * BYTES_MAX))
    ingest, index = router.service.ingest, router.service.index
    doubted, trusted = (router.add(url=f"http://127.0.0.1:{port}") for port in (1, 2))
    prompts = [list(range(start, start + 16 * 1000)) for start in (0, 1_000_000)]
    router.store(doubted, prompts[0])
    known = index.blocks(doubted.ranks[0])
    ingest.disconnected(Source(doubted.spec.worker_id, 0), now=router.clock.now)
    index.charge(int(7.55 * BYTES_MAX) - index.nbytes() - index.nbytes_beside())

    router.store(trusted, prompts[1][: 16 * 200])
    router.store(trusted, prompts[1][: 16 * 400])

    assert known == 1000
    assert [index.blocks(worker.ranks[0]) for worker in (doubted, trusted)] == [0, 400]
    assert index.dropped() == {"unconfirmed": 1000, "refused": 0}
    assert [status.starved for status in ingest.status(now=router.clock.now)] == [True, False]


def test_without_the_setting_there_is_no_bound(processes: Processes) -> None:
    """The bytes are shown all the same."""
    router = processes.router()

    index = router.get("/index")

    assert (index["bytes_max"], index["blocks"]) == (None, 0)
    assert index["bytes"] > 0
    assert index["blocks_dropped"] == {"unconfirmed": 0, "refused": 0}
    assert "kvrouter_index_max_bytes 0.0" in httpx.get(f"{router.url}/metrics").text
