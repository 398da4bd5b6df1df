"""Without tokens, the bytes of a request stand for them: equal beginnings are equal blocks."""

import json
from itertools import takewhile
from typing import Any

import pytest

from kvrouter.blocks import Prompt
from kvrouter.service.prompts import PrefixCache, PromptResolver, RequestReader
from kvrouter.service.prompts.byte_blocks import BYTES_MAX

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def _prompt(path: str, body: dict[str, Any], cache: PrefixCache | None = None) -> Prompt:
    cache = PrefixCache(1 << 20) if cache is None else cache
    resolver = PromptResolver(cache)
    prompt = resolver.resolve(RequestReader(cache).read(path, json.dumps(body).encode()), model_profile="m")
    assert isinstance(prompt, Prompt)
    assert resolver.statistics.byte_blocks == 1
    return prompt


def _shared(first: Prompt, second: Prompt) -> int:
    pairs = zip(first.hash_list(16), second.hash_list(16), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def test_four_bytes_count_as_one_token() -> None:
    """A guess at the length, for the load that a request will be."""
    prompt = _prompt(COMPLETIONS, {"prompt": "x" * 403})

    assert (prompt.tokens, prompt.exact) == (100, False)
    assert len(prompt.hash_list(16)) == 6


def test_a_text_that_grew_shares_its_blocks() -> None:
    """Whole blocks of the common beginning."""
    text = "The same beginning, again and again. " * 200

    first, second = _prompt(COMPLETIONS, {"prompt": text}), _prompt(COMPLETIONS, {"prompt": text + "And more."})

    assert _shared(first, second) == len(text) // 64


def test_a_conversation_that_grew_shares_its_blocks() -> None:
    """Although its array of messages was closed."""
    messages = [{"role": "user", "content": "x" * 3000}, {"role": "assistant", "content": "y" * 999}]
    more = [*messages, {"role": "user", "content": "z" * 100}]

    first, second = _prompt(CHAT, {"messages": messages}), _prompt(CHAT, {"messages": more})

    assert _shared(first, second) == len(first.hash_list(16)) > 60


def test_tools_come_before_messages() -> None:
    """As in templates: other tools are another beginning, the same tools a common one."""
    messages = [{"role": "user", "content": "x" * 500}]
    tools = [{"type": "function", "function": {"name": "f" * 300}}]

    plain, with_tools = _prompt(CHAT, {"messages": messages}), _prompt(CHAT, {"messages": messages, "tools": tools})
    other = _prompt(CHAT, {"messages": [{"role": "user", "content": "other"}], "tools": tools})

    assert _shared(plain, with_tools) == 0
    assert _shared(with_tools, other) >= 4


def test_responses_begin_with_their_instructions() -> None:
    """What they continue counts too."""
    body = {"input": "x" * 200, "instructions": "i" * 200}

    assert _shared(_prompt(RESPONSES, body), _prompt(RESPONSES, {**body, "input": "y" * 200})) == 3
    assert _shared(_prompt(RESPONSES, body), _prompt(RESPONSES, {**body, "previous_response_id": "r"})) == 3


def test_salts_keep_tenants_apart() -> None:
    """Also without tokens."""
    body = {"prompt": "x" * 1000}

    assert _shared(_prompt(COMPLETIONS, body), _prompt(COMPLETIONS, {**body, "cache_salt": "s"})) == 0


@pytest.mark.parametrize("length", [0, 1, 2047, 2048, 2049, 9000])
def test_cached_and_uncached_blocks_are_the_same(length: int) -> None:
    """Remembering pieces changes nothing."""
    cache = PrefixCache(1 << 20)
    body = {"prompt": "é" + "x" * length}

    prompts = [_prompt(COMPLETIONS, body, cache), _prompt(COMPLETIONS, body, cache)]
    prompts.append(_prompt(COMPLETIONS, body, PrefixCache(0)))

    assert len({tuple(prompt.hash_list(16)) for prompt in prompts}) == 1
    assert len({prompt.tokens for prompt in prompts}) == 1


def test_what_no_engine_could_hold_is_not_hashed() -> None:
    """A huge body costs a bounded time."""
    prompt = _prompt(COMPLETIONS, {"prompt": "x" * (BYTES_MAX + 5000)})

    assert prompt.tokens == BYTES_MAX // 4


def test_bytes_never_look_like_tokens() -> None:
    """Four bytes of JSON are a number far above any vocabulary, so no worker's event can match."""
    prompt = _prompt(CHAT, {"messages": [{"role": "user", "content": "hello " * 50}]})
    words = bytes(prompt.token_ids)

    assert min(int.from_bytes(words[at : at + 4], "little") for at in range(0, len(words), 4)) > 10_000_000
