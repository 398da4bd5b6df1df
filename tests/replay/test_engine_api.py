"""What clients see of a simulated engine: OpenAI's API, honest usage, refusals in OpenAI's shape."""

import asyncio
import json
import re
from typing import Any

import httpx
import openai
import pytest

from tests.replay.serving import engine, eventually, run

COMPLETION = "/v1/completions"
CHAT = "/v1/chat/completions"


def events(text: str) -> list[Any]:
    """Return the JSON of a stream's events, without the final [DONE]."""
    lines = [line[len("data: ") :] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_a_completion_says_what_it_used() -> None:
    """Tokens in, tokens out, tokens found in the cache."""

    async def work() -> None:
        async with engine("--block-size", "4") as (client, _):
            body = {"prompt": list(range(9)), "max_tokens": 5}
            first = (await client.post(COMPLETION, json=body)).json()
            again = (await client.post(COMPLETION, json=body)).json()

        assert first["usage"] == {
            "prompt_tokens": 9,
            "completion_tokens": 5,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}
        assert again["choices"][0]["text"] == first["choices"][0]["text"]
        assert first["choices"][0]["finish_reason"] == "length"

    run(work)


def test_equal_prompts_get_equal_answers_everywhere() -> None:
    """The answers depend on prompt and seed alone, so two runs of a workload can be compared."""

    async def answer(*arguments: str) -> str:
        async with engine(*arguments) as (client, _):
            reply = await client.post(COMPLETION, json={"prompt": "Once upon a time", "max_tokens": 12})
            return str(reply.json()["choices"][0]["text"])

    async def work() -> None:
        assert await answer() == await answer()
        assert await answer() != await answer("--seed", "2")

    run(work)


def test_a_stream_carries_the_same_tokens_and_ends_with_usage() -> None:
    """Piece by piece or whole: one answer."""

    async def work() -> None:
        async with engine() as (client, _):
            body = {"prompt": "tell me", "max_tokens": 7, "return_token_ids": True}
            whole = (await client.post(COMPLETION, json=body)).json()
            stream = {**body, "stream": True, "stream_options": {"include_usage": True}}
            streamed = await client.post(COMPLETION, json=stream)
            without = await client.post(COMPLETION, json={**body, "stream": True})

        *chunks, last = events(streamed.text)
        choices = [chunk["choices"][0] for chunk in chunks]
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
        assert [token for choice in choices for token in choice["token_ids"]] == whole["choices"][0]["token_ids"]
        assert [choice["finish_reason"] for choice in choices] == [None] * 6 + ["length"]
        assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 7)
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert all("usage" not in chunk for chunk in events(without.text))

    run(work)


def test_a_conversation_in_text_keeps_its_cached_prefix() -> None:
    """Answers tokenise back to the tokens that were generated, so the next turn finds them."""

    async def work() -> None:
        async with engine("--block-size", "4") as (client, _):
            messages = [{"role": "user", "content": "What is a cache? Please explain it to me."}]
            first = (await client.post(CHAT, json={"messages": messages, "max_tokens": 20})).json()
            messages += [first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
            second = (await client.post(CHAT, json={"messages": messages, "max_tokens": 4})).json()

        seen = first["usage"]["total_tokens"] - 1
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= seen - seen % 4 - 4

    run(work)


def test_an_answer_that_nothing_limits_ends_by_itself() -> None:
    """Unless its end is to be ignored."""

    async def work() -> None:
        async with engine("--output-tokens", "4") as (client, _):
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
            natural = (await client.post(CHAT, json=body)).json()
            forced = (await client.post(CHAT, json={**body, "ignore_eos": True})).json()

        assert natural["choices"][0]["finish_reason"] == "stop"
        assert natural["usage"]["completion_tokens"] <= 8
        assert forced["choices"][0]["finish_reason"] == "length"
        assert forced["usage"]["completion_tokens"] == 50

    run(work)


def test_several_prompts_get_several_choices() -> None:
    """A batch of token lists is one request."""

    async def work() -> None:
        async with engine() as (client, _):
            body = {"prompt": [[1, 2, 3], [4, 5]], "max_tokens": 3}
            whole = (await client.post(COMPLETION, json=body)).json()
            streamed = events((await client.post(COMPLETION, json={**body, "stream": True})).text)

        texts = ["", ""]
        for chunk in streamed:
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert [choice["text"] for choice in whole["choices"]] == texts
        assert whole["usage"]["prompt_tokens"] == 5

    run(work)


def test_the_openai_client_understands_everything() -> None:
    """Chat, responses and embeddings, whole and streamed, through the public client."""

    async def work() -> None:
        async with engine("--output-tokens", "4") as (_, simulated):
            base_url = f"http://127.0.0.1:{simulated.port}/v1"
            async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as client:
                models = [model.id async for model in client.models.list()]
                message: Any = {"role": "user", "content": [{"type": "text", "text": "hello there"}]}
                chat = await client.chat.completions.create(model="simulated", messages=[message], max_tokens=6)
                pieces = [
                    chunk.choices[0].delta.content
                    async for chunk in await client.chat.completions.create(
                        model="simulated", messages=[message], max_tokens=6, stream=True
                    )
                ]
                response = await client.responses.create(model="simulated", input="hello")
                async with client.responses.stream(model="simulated", input="hello") as stream:
                    kinds = [event.type async for event in stream]
                    final = await stream.get_final_response()
                vectors = await client.embeddings.create(model="simulated", input=["one", "two", "one"])

        assert models == ["simulated"]
        assert "".join(piece or "" for piece in pieces) == chat.choices[0].message.content
        assert final.output_text == response.output_text
        assert response.usage is not None
        assert response.usage.input_tokens_details.cached_tokens == 0
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        assert kinds.count("response.output_text.delta") == response.usage.output_tokens
        assert vectors.data[0].embedding == vectors.data[2].embedding != vectors.data[1].embedding

    run(work)


def test_embeddings_come_as_numbers_too() -> None:
    """The public client asks for base64; others do not."""

    async def work() -> None:
        async with engine() as (client, _):
            plain = (await client.post("/v1/embeddings", json={"input": "a text"})).json()

        assert len(plain["data"][0]["embedding"]) == 16
        assert plain["usage"]["completion_tokens"] == 0

    run(work)


def test_adapters_are_models_with_a_parent_and_a_cache_of_their_own() -> None:
    """As vLLM lists LoRA adapters."""

    async def work() -> None:
        async with engine("--adapter", "sql", "--block-size", "4") as (client, _):
            listed = (await client.get("/v1/models")).json()["data"]
            cached = []
            for model in ("simulated", "sql", "sql"):
                reply = await client.post(COMPLETION, json={"model": model, "prompt": list(range(9))})
                cached.append(reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert [(card["id"], card["parent"]) for card in listed] == [("simulated", None), ("sql", "simulated")]
        assert cached == [0, 0, 8]

    run(work)


def test_a_salt_is_a_cache_of_its_own() -> None:
    """Tenants do not share."""

    async def work() -> None:
        async with engine("--block-size", "4") as (client, _):
            cached = []
            for salt in ({}, {"cache_salt": "a"}, {"cache_salt": "b"}, {"cache_salt": "a"}):
                reply = await client.post(COMPLETION, json={"prompt": list(range(9)), **salt})
                cached.append(reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert cached == [0, 0, 0, 8]

    run(work)


def test_text_survives_tokenizing() -> None:
    """Any text comes back, and chat messages take the chat template."""
    text = "The cache, überall! 日本語\n\t<|im_start|> 0123 zzz"

    async def work() -> None:
        async with engine() as (client, _):
            tokens = (await client.post("/tokenize", json={"prompt": text, "return_token_strs": True})).json()
            back = (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
            chat = (await client.post("/tokenize", json={"messages": [{"role": "user", "content": "x"}]})).json()

        assert back == {"prompt": text}
        assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
        assert tokens["max_model_len"] == 32_768
        assert chat["count"] > 3

    run(work)


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        (COMPLETION, b"{not json", 400, "not JSON"),
        (COMPLETION, b'{"prompt": "\xff\xfe"}', 400, "not JSON"),
        (COMPLETION, b'{"prompt": ' + b"[" * 100_000, 400, "not JSON"),
        (COMPLETION, b"[]", 400, "object"),
        (COMPLETION, {"prompt": ""}, 400, "empty"),
        (COMPLETION, {}, 400, "prompt"),
        (COMPLETION, {"prompt": [1, -1]}, 400, "token id"),
        (COMPLETION, {"prompt": [1, "x"]}, 400, "token id"),
        (COMPLETION, {"prompt": "x", "n": 2}, 400, "n must be 1"),
        (COMPLETION, {"prompt": "x", "max_tokens": -1}, 400, "max_tokens"),
        (COMPLETION, {"prompt": "x", "cache_salt": ""}, 400, "cache_salt"),
        (COMPLETION, {"prompt": "x", "model": "other"}, 404, "other"),
        (COMPLETION, {"prompt": list(range(90)), "max_tokens": 11}, 400, "maximum context length is 100"),
        (CHAT, {"messages": []}, 400, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": 7}]}, 400, "content"),
        ("/v1/responses", {"input": 7}, 400, "input"),
        ("/v1/embeddings", {"input": None}, 400, "input"),
        ("/detokenize", {"tokens": "x"}, 400, "tokens"),
        ("/nothing", {}, 404, "/nothing"),
        ("/health", {}, 405, "GET"),
    ],
)
def test_what_is_wrong_is_refused_in_openais_shape(path: str, body: Any, status: int, word: str) -> None:
    """Status, message and type, always the same way."""

    async def work() -> None:
        async with engine("--context-tokens", "100") as (client, _):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            reply = await client.post(path, content=content)

        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (status, status)
        assert word in error["message"]
        assert {"message", "type", "param", "code"} == error.keys()

    run(work)


def test_ranks_are_chosen_by_header_and_have_caches_of_their_own() -> None:
    """X-data-parallel-rank, as vLLM reads it."""

    async def work() -> None:
        async with engine("--ranks", "2", "--block-size", "4") as (client, simulated):

            async def cached(rank: str) -> Any:
                headers = {"x-data-parallel-rank": rank}
                body = {"prompt": list(range(9)), "max_tokens": 1}
                reply = await client.post(COMPLETION, json=body, headers=headers)
                return reply.json().get("usage", {}).get("prompt_tokens_details") or reply.status_code

            seen = [await cached(rank) for rank in ("0", "1", "1", "2", "x")]
            used = [len(rank.scheduler.cache.pool.contents()) for rank in simulated.ranks]

        assert seen == [{"cached_tokens": 0}, {"cached_tokens": 0}, {"cached_tokens": 8}, 400, 400]
        assert used == [2, 2]

    run(work)


def test_a_client_that_leaves_frees_its_blocks() -> None:
    """The request is aborted in the middle of its answer."""

    async def work() -> None:
        async with engine("--decode-seconds", "0.005") as (client, simulated):
            scheduler = simulated.ranks[0].scheduler
            body = {"prompt": list(range(100)), "max_tokens": 5000, "ignore_eos": True, "stream": True}
            async with client.stream("POST", COMPLETION, json=body) as reply:
                await anext(reply.aiter_lines())
                used = scheduler.cache.pool.used
            await eventually(lambda: not scheduler.running)
            metrics = (await client.get("/metrics")).text

        assert used > 0
        assert scheduler.cache.pool.used == 0
        assert 'vllm:request_success_total{finished_reason="abort",engine="0",model_name="simulated"} 1' in metrics

    run(work)


def test_metrics_have_vllms_names() -> None:
    """Scrapers made for vLLM find what they look for."""

    async def work() -> None:
        async with engine("--block-size", "4") as (client, _):
            for _ in range(2):
                await client.post(COMPLETION, json={"prompt": list(range(9)), "max_tokens": 3})
            reply = await client.get("/metrics")

        lines = dict(line.rsplit(" ", 1) for line in reply.text.splitlines() if not line.startswith("#"))
        label = '{engine="0",model_name="simulated"}'
        assert lines["vllm:prefix_cache_queries_total" + label] == "18"
        assert lines["vllm:prefix_cache_hits_total" + label] == "8"
        assert lines["vllm:num_requests_running" + label] == "0"
        assert lines["vllm:num_requests_waiting" + label] == "0"
        assert lines["vllm:kv_cache_usage_perc" + label] == "0.0"
        assert lines["vllm:time_to_first_token_seconds_count" + label] == "2"
        assert lines["vllm:generation_tokens_total" + label] == "6"

    run(work)


def test_the_cache_can_be_reset() -> None:
    """As with vLLM's POST /reset_prefix_cache."""

    async def work() -> None:
        async with engine("--block-size", "4") as (client, _):
            body = {"prompt": list(range(9)), "max_tokens": 1}
            await client.post(COMPLETION, json=body)
            reset = await client.post("/reset_prefix_cache")
            after = (await client.post(COMPLETION, json=body)).json()

        assert reset.status_code == 200
        assert after["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}

    run(work)


def test_a_key_is_asked_for_where_there_is_one() -> None:
    """On the API; health stays open."""

    async def work() -> None:
        async with engine("--api-key", "secret") as (client, _):
            body = {"prompt": "x", "max_tokens": 1}
            codes = [
                (await client.post(COMPLETION, json=body, headers=headers)).status_code
                for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer secret"})
            ]
            health = await client.get("/health")

        assert codes == [401, 401, 200]
        assert health.status_code == 200

    run(work)


def test_a_full_queue_refuses() -> None:
    """Waiting is bounded: 503 and Retry-After."""

    async def work() -> None:
        async with engine("--running-max", "1", "--waiting-max", "1", "--decode-seconds", "0.005") as (
            client,
            simulated,
        ):
            body = {"prompt": "x", "max_tokens": 1000, "ignore_eos": True}
            scheduler = simulated.ranks[0].scheduler
            slow = [asyncio.ensure_future(client.post(COMPLETION, json=body))]
            await eventually(lambda: len(scheduler.running) == 1)
            slow.append(asyncio.ensure_future(client.post(COMPLETION, json=body)))
            await eventually(lambda: len(scheduler.waiting) == 1)
            refused = await client.post(COMPLETION, json=body)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)

        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"

    run(work)


def test_pipelined_requests_are_answered_in_order() -> None:
    """And a connection that is to be closed is."""

    async def work() -> None:
        async with engine() as (_, simulated):
            reader, writer = await asyncio.open_connection("127.0.0.1", simulated.port)
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
            writer.write(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            answers = await reader.read()
            writer.close()

        assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404", b"200"]

    run(work)


def test_what_is_not_http_is_refused() -> None:
    """With 400 and an end."""

    async def work() -> None:
        async with engine() as (_, simulated):
            reader, writer = await asyncio.open_connection("127.0.0.1", simulated.port)
            writer.write(b"\x16\x03\x01 hello\r\n\r\n")
            answer = await reader.read()
            writer.close()

        assert answer.startswith(b"HTTP/1.1 400 ")

    run(work)


def test_the_request_id_comes_back() -> None:
    """So that a proxy in between can be checked."""

    async def work() -> httpx.Response:
        async with engine() as (client, _):
            return await client.get("/health", headers={"x-request-id": "abc"})

    assert run(work).headers["x-request-id"] == "abc"


def test_head_has_no_body() -> None:
    """Or the next answer on the connection would be misread."""

    async def work() -> tuple[httpx.Response, httpx.Response]:
        async with engine() as (client, _):
            return await client.head("/version"), await client.get("/version")

    head, got = run(work)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
