"""Two simulated engines share a request, by vLLM's and by SGLang's convention; each refuses what the original would."""

import asyncio
from typing import Any

import httpx
import pytest

from kvrouter.replay.engine.simulated import SimulatedEngine
from tests.replay.serving import engine, eventually, run

PROMPT = list(range(1000, 1200))
PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}
SGLANG = ("--dialect", "sglang", "--role")


async def _complete(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"prompt": PROMPT, "max_tokens": 4, "ignore_eos": True, **fields}
    return await client.post("/v1/completions", json=body)


def _room(prefill: SimulatedEngine, number: object = 7) -> dict[str, Any]:
    return {"bootstrap_host": "127.0.0.1", "bootstrap_port": prefill.transfers.port, "bootstrap_room": number}


def test_vllms_answer_says_where_the_blocks_are() -> None:
    """The decode engine fetches them, and computes one token of the prompt."""

    async def work() -> None:
        async with engine("--role", "prefill") as (prefill, one), engine("--role", "decode") as (decode, other):
            first = (await _complete(prefill, max_tokens=1, kv_transfer_params=PREFILL)).json()
            params = first["kv_transfer_params"]
            assert (params["do_remote_prefill"], params["do_remote_decode"]) == (True, False)
            assert len(params["remote_block_ids"]) == 13

            second = (await _complete(decode, kv_transfer_params=params)).json()

            assert second["usage"]["completion_tokens"] == 4
            assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == len(PROMPT) - 1
            assert other.transfers.counts["fetched"] == one.transfers.counts["served"] == 1
            # The blocks are given away once.
            again = await _complete(decode, kv_transfer_params=params)
            assert (again.status_code, "could not be fetched" in again.text) == (500, True)

    run(work)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"remote_engine_id": "another"}, 500),
        ({"remote_request_id": "another"}, 500),
        ({"remote_port": 1}, 500),
        ({"remote_host": None}, 200),
    ],
)
def test_vllm_fetches_only_what_was_offered(change: dict[str, Any], status: int) -> None:
    """What it was not told enough about it computes itself, with a warning."""

    async def work() -> None:
        async with engine("--role", "prefill") as (prefill, _), engine("--role", "decode") as (decode, other):
            first = (await _complete(prefill, max_tokens=1, kv_transfer_params=PREFILL)).json()

            answer = await _complete(decode, kv_transfer_params={**first["kv_transfer_params"], **change})

            assert answer.status_code == status
            assert other.transfers.counts["invalid"] == (status == 200)

    run(work)


def test_the_blocks_of_another_prompt_are_of_no_use() -> None:
    """A decode engine that asks with another prompt is refused."""

    async def work() -> None:
        async with engine("--role", "prefill") as (prefill, _), engine("--role", "decode") as (decode, _other):
            first = (await _complete(prefill, max_tokens=1, kv_transfer_params=PREFILL)).json()

            answer = await _complete(decode, prompt=PROMPT[1:], kv_transfer_params=first["kv_transfer_params"])

            assert (answer.status_code, "answered 409" in answer.text) == (500, True)

    run(work)


def test_an_engine_without_a_part_ignores_vllms_parameters() -> None:
    """As one without a connector does; but it wants them well-formed where it has one."""

    async def work() -> None:
        async with engine() as (plain, _), engine("--role", "decode") as (decode, _other):
            assert "kv_transfer_params" not in (await _complete(plain, kv_transfer_params=PREFILL)).json()
            assert (await _complete(decode, kv_transfer_params=[])).status_code == 400
            assert (await _complete(decode, kv_transfer_params={})).status_code == 200

    run(work)


def test_sglangs_servers_meet_whoever_comes_first() -> None:
    """Both get the same request; the prefill server answers when its blocks are fetched."""

    async def work() -> None:
        async with engine(*SGLANG, "prefill") as (prefill, one), engine(*SGLANG, "decode") as (decode, other):
            for room, early, late in ((7, prefill, decode), (8, decode, prefill)):
                first = asyncio.ensure_future(_complete(early, **_room(one, room)))
                await asyncio.sleep(0)
                second = await _complete(late, **_room(one, room))
                answers = {early: (await first).json(), late: second.json()}

                assert answers[prefill]["usage"]["completion_tokens"] == 1
                assert answers[decode]["usage"]["completion_tokens"] == 4
                assert answers[decode]["usage"]["prompt_tokens_details"]["cached_tokens"] == len(PROMPT) - 1
            assert (one.transfers.counts["served"], other.transfers.counts["fetched"]) == (2, 2)
            assert one.transfers.report()["held"] == 0

    run(work)


def test_sglang_wants_a_room_of_whoever_plays_a_part() -> None:
    """Neither kind of server takes whole requests."""

    async def work() -> None:
        async with engine(*SGLANG, "prefill") as (prefill, one), engine(*SGLANG, "decode") as (decode, _):
            for client in (prefill, decode):
                answer = await _complete(client)
                assert (answer.status_code, "without bootstrap room id" in answer.text) == (400, True)
            for room in ("7", -1, True, 2**63):
                assert (await _complete(decode, **_room(one, room))).status_code == 400
            assert (await _complete(decode, bootstrap_room=1)).status_code == 400
        async with engine("--dialect", "sglang") as (plain, _):
            assert (await _complete(plain)).status_code == 200

    run(work)


def test_sglangs_room_says_the_rank_unless_the_body_does() -> None:
    """The decode server looks for the blocks on the rank that it was told."""

    async def work() -> None:
        prefilling, decoding = (*SGLANG, "prefill", "--ranks", "3"), (*SGLANG, "decode")
        async with engine(*prefilling) as (prefill, one), engine(*decoding) as (decode, _):

            async def both(room: int, own: dict[str, Any], told: dict[str, Any]) -> int:
                first = asyncio.ensure_future(_complete(prefill, **_room(one, room), **own))
                status = (await _complete(decode, **_room(one, room), **told)).status_code
                first.cancel()
                return status

            assert await both(10, {}, {"disagg_prefill_dp_rank": 1}) == 200
            assert await both(12, {"data_parallel_rank": 2, "routed_dp_rank": 2}, {"disagg_prefill_dp_rank": 2}) == 200
            assert await both(13, {"routed_dp_rank": 2}, {"disagg_prefill_dp_rank": 1}) == 500
            for wrong in ({"routed_dp_rank": 3}, {"data_parallel_rank": 0, "routed_dp_rank": 1}):
                assert (await _complete(prefill, **_room(one), **wrong)).status_code == 400

    run(work)


def test_who_waits_in_vain_is_told_after_a_while() -> None:
    """And what nobody fetches is forgotten."""

    async def work() -> None:
        short = ("--transfer-seconds", "0.01")
        async with (
            engine(*SGLANG, "prefill", *short) as (prefill, one),
            engine(*SGLANG, "decode", *short) as (decode, _),
        ):
            assert (await _complete(prefill, **_room(one, 1))).status_code == 500
            assert (await _complete(decode, **_room(one, 2))).status_code == 500
        async with engine("--role", "prefill", *short) as (prefill, one):

            async def one_expired() -> bool:
                await _complete(prefill, max_tokens=1, kv_transfer_params=PREFILL)
                return one.transfers.counts["expired"] > 0

            await eventually(one_expired)

    run(work)
