"""What `GET /decisions/{id}` says can be worked out by hand, as docs/routing.md says it; and how a request ended."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.processes import Processes, Router, eventually

PAGE = (Path(__file__).parents[2] / "docs" / "routing.md").read_text(encoding="utf-8")
DOCUMENT = list(range(1000, 5096))
OTHER = list(range(20_000, 21_600))
EXACT, ROUNDED = 1e-9, 2e-3


def by_hand(candidate: dict[str, Any], prompt_tokens: int) -> dict[str, float]:
    """The formulas of the page, with a candidate's own numbers; waits, mates and charges are taken as they are."""
    new = prompt_tokens - candidate["credited_tokens"]
    token, pair = candidate["token_seconds"], candidate["pair_seconds"]
    prefill = new * token + new * (prompt_tokens - new / 2) * pair
    context = candidate["decode_blocks"] * candidate["block_size"]
    running = (candidate["active_requests"] * 160 + context * 0.01) * token
    cost = candidate["first_seconds"] + candidate["wait_seconds"] + prefill
    later = min(candidate["urgency"] * (candidate["wait_seconds"] + prefill / 2), 8)
    decoding = 0.005 * (candidate["active_requests"] - candidate["waiting"])
    charged = candidate["charged_seconds"]
    evicted = candidate["evicted_seconds"]
    price = (
        cost
        - (0 if candidate["waiting"] else prefill - charged)
        + running
        + evicted
        + (charged + evicted) * (0.2 + candidate["mates"] + later + decoding + candidate["miss_price"])
    )
    return {"prefill_seconds": prefill, "cost": cost, "price": price}


def check(decision: dict[str, Any], tolerance: float) -> None:
    """Every candidate costs what its numbers say, and the chosen one is the cheapest."""
    for candidate in decision["candidates"]:
        for name, value in by_hand(candidate, decision["prompt_tokens"]).items():
            assert candidate[name] == pytest.approx(value, rel=tolerance), name
    cheapest = min(decision["candidates"], key=lambda each: each["price"])
    chosen = next(each for each in decision["candidates"] if each["worker_id"] == decision["worker_id"])
    assert chosen["price"] == cheapest["price"]
    assert decision["cost"] == pytest.approx(chosen["cost"], rel=tolerance)


def ask(router: Router, prompt: list[int], tokens: int = 4, *, stream: bool = False) -> httpx.Response:
    """One completion."""
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": stream}
    return router.post("/v1/completions", {**body, "stream_options": {"include_usage": True}} if stream else body)


def decided(router: Router, answer: httpx.Response) -> dict[str, Any]:
    """The decision about an answered request, when its end is known."""

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = router.get(f"/decisions/{answer.headers['x-request-id']}")
        return found if found["outcome"]["status"] != "running" else None

    return eventually(ended)


def test_the_cost_of_every_candidate_follows_from_its_numbers(processes: Processes) -> None:
    """Idle, busy, with and without a part of the prompt: live answers and the page's formulas agree."""
    slow = ("--prefill-tokens-per-second", "4000", "--context-tokens", "16384")
    workers = [each for name in "ab" for each in ("--worker", f"{processes.engine(*slow).spec},id={name}")]
    router = processes.router(*workers, workers=2)
    first = decided(router, ask(router, DOCUMENT))
    eventually(lambda: router.get("/index")["blocks"] >= 256)

    with ThreadPoolExecutor(8) as pool:
        prompts = [[*DOCUMENT, *range(30_000 + 2000 * each, 32_000 + 2000 * each)] for each in range(5)]
        prompts += [[each, *OTHER] for each in range(5)]
        answers = list(pool.map(lambda prompt: ask(router, prompt), prompts))
    decisions = [decided(router, answer) for answer in answers]

    assert {each["outcome"]["status"] for each in decisions} == {"ok"}
    for decision in (first, *decisions):
        check(decision, EXACT)
    assert max(each["confirmed_tokens"] for each in decisions) >= 4080


def test_a_decision_says_how_its_request_ended(processes: Processes) -> None:
    """How long it took from the decision on, what was cached, and what was answered."""
    router = processes.router("--worker", processes.engine().spec, workers=1)
    cold = decided(router, ask(router, DOCUMENT, 7, stream=True))
    eventually(lambda: router.get("/index")["blocks"] >= 256)
    warm = decided(router, ask(router, [*DOCUMENT, 7], 7, stream=True))

    for decision, cached in ((cold, 0), (warm, 4096)):
        outcome = decision["outcome"]
        assert (outcome["status"], outcome["output_tokens"]) == ("ok", 7)
        assert (outcome["cached_tokens"] or 0) == cached
        assert 0 < outcome["first_token_seconds"] <= outcome["total_seconds"]
    listed = router.get("/decisions?limit=1")
    assert [each["id"] for each in listed] == [warm["id"]]
    assert listed[0]["outcome"] == warm["outcome"]


def test_of_an_answer_in_one_piece_nobody_knows_when_it_began(processes: Processes) -> None:
    """What comes after 150 tokens teaches nothing of how fast a prompt is computed; all that the engine says counts."""
    router = processes.router("--worker", processes.engine().spec, workers=1)

    whole = decided(router, ask(router, DOCUMENT, 150))

    speeds = {each["token_seconds"] for each in whole["candidates"]}
    again = decided(router, ask(router, [7, *DOCUMENT], 1))
    assert whole["outcome"]["first_token_seconds"] is None
    assert whole["outcome"]["total_seconds"] > 0
    assert (whole["outcome"]["status"], whole["outcome"]["output_tokens"]) == ("ok", 150)
    assert {each["token_seconds"] for each in again["candidates"]} == speeds
    assert again["outcome"]["first_token_seconds"] > 0


def test_the_example_of_the_page_is_right() -> None:
    """It is from a real run; its numbers are rounded."""
    found = re.search(r"```json\n(\{.*?\n\})\n```", PAGE, re.DOTALL)
    assert found is not None

    decision = json.loads(found[1])

    check(decision, ROUNDED)
    assert decision["outcome"]["cached_tokens"] == decision["confirmed_tokens"]
