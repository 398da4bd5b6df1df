"""Bodies are read once, leniently where engines differ, and refused clearly where none could serve them."""

import json
from typing import Any

import pytest

from kvrouter.errors import RequestError
from kvrouter.service.prompts import InferenceBody, PrefixCache, RequestReader

pytestmark = pytest.mark.usefixtures("implementation")

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, RESPONSES = "/v1/embeddings", "/v1/responses"


def _read(path: str, body: Any) -> InferenceBody:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return RequestReader(PrefixCache(1 << 20)).read(path, data)


def _refusal(path: str, body: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        _read(path, body)
    assert caught.value.status == 400
    assert caught.value.kind == "invalid_request_error"
    return caught.value


def test_fields_that_routing_needs_are_read() -> None:
    """Model, stream, limits, priority, salt: as they were sent."""
    body = _read(
        CHAT,
        {
            "model": "llama",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "max_tokens": 12,
            "priority": -3,
            "cache_salt": "tenant",
        },
    )

    assert (body.model, body.kind, body.stream) == ("llama", "messages", True)
    assert (body.max_tokens, body.priority, body.cache_salt) == (12, -3, "tenant")


def test_fields_that_we_do_not_know_are_ignored() -> None:
    """Whatever an engine invents passes, of any type, at any depth."""
    body = _read(COMPLETIONS, {"prompt": "x", "vllm_xargs": {"a": [1, {"b": None}]}, "logit_bias": {"1": 2.5}, "é": 1})

    assert (body.kind, body.text, body.model) == ("text", "x", None)


@pytest.mark.parametrize(
    ("fields", "session"),
    [
        ({"user": "u"}, "u"),
        ({"user": "u", "prompt_cache_key": "k"}, "k"),
        ({"user": "u", "prompt_cache_key": "k", "session_id": "s"}, "s"),
        ({"user": {"id": 3}, "session_id": 7}, None),
        ({"session_id": "", "user": "u"}, "u"),
        ({}, None),
    ],
)
def test_a_session_is_whatever_says_who_is_asking(fields: dict[str, Any], session: str | None) -> None:
    """The most specific text wins; other types are the engine's to judge."""
    assert _read(COMPLETIONS, {"prompt": "x", **fields}).session == session


@pytest.mark.parametrize(
    ("prompt", "kind", "batch"),
    [
        ("text", "text", 1),
        ([1, 2, 3], "token_ids", 1),
        (["first", "second"], "text", 2),
        ([[1, 2], [3]], "token_ids", 2),
        ("", "none", 1),
        ([], "none", 1),
        ([""], "none", 1),
        ([[]], "none", 1),
        (None, "none", 1),
    ],
)
@pytest.mark.parametrize(("path", "name"), [(COMPLETIONS, "prompt"), (EMBEDDINGS, "input")])
def test_every_form_of_a_prompt_is_read(path: str, name: str, prompt: Any, kind: str, batch: int) -> None:
    """Of several prompts the first one is routed by, and their number is told."""
    body = _read(path, {name: prompt})

    assert (body.kind, body.batch) == (kind, batch)
    if kind == "text":
        assert body.text == ("first" if batch == 2 else "text")


def test_token_ids_are_words() -> None:
    """Token ids come out as little-endian 32-bit integers."""
    assert _read(COMPLETIONS, {"prompt": [1, 0, 2**32 - 1]}).words == bytes.fromhex("0100000000000000ffffffff")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is empty; it must be a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"model": "m",}', "not valid JSON"),
        (b'{"model": "m"} trailing', "not valid JSON"),
        (b"{'model': 'm'}", "not valid JSON"),
        (b'{"model": "\xff\xfe"}', "not valid JSON"),
        (b'{"user": "\\ud800"}', "not valid JSON"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b"[1, 2]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"17", "must be a JSON object"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES])
def test_what_is_not_a_json_object_is_refused(path: str, data: bytes, text: str) -> None:
    """400, in words."""
    assert text in _refusal(path, data).message


@pytest.mark.parametrize(
    ("path", "fields", "param", "text"),
    [
        (CHAT, {"model": 7}, "model", "model: expected str or null, got int"),
        (CHAT, {"messages": [], "stream": "yes"}, "stream", "stream: expected bool or null, got str"),
        (CHAT, {"messages": "hi"}, "messages", "messages: expected an array"),
        (CHAT, {"messages": {"role": "user"}}, "messages", "messages: expected an array"),
        (COMPLETIONS, {"prompt": 7}, "prompt", "prompt: expected"),
        (COMPLETIONS, {"prompt": {"a": 1}}, "prompt", "prompt: expected"),
        (COMPLETIONS, {"prompt": "x", "max_tokens": "12"}, "max_tokens", "max_tokens: expected"),
        (COMPLETIONS, {"prompt": "x", "cache_salt": 1}, "cache_salt", "cache_salt: expected"),
        (COMPLETIONS, {"prompt": [1, -2]}, "prompt", "prompt[1] is -2; a token id is 0..4294967295"),
        (COMPLETIONS, {"prompt": [2**32]}, "prompt", "prompt[0] is 4294967296"),
        (COMPLETIONS, {"prompt": [10**400]}, "prompt", "prompt[0] is a huge number"),
        (COMPLETIONS, {"prompt": [1, 2.5]}, "prompt", "prompt[1] is a fraction, not a token id"),
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt", "prompt[1] is a text, not a token id"),
        (COMPLETIONS, {"prompt": [1, None]}, "prompt", "prompt[1] is a null, not a token id"),
        (COMPLETIONS, {"prompt": [[1, "a"], [2]]}, "prompt", "prompt[1] is a text"),
        (EMBEDDINGS, {"input": [1, -2]}, "input", "input[1] is -2"),
        (RESPONSES, {"input": 7}, "input", "input: expected an array or text"),
    ],
)
def test_a_field_of_a_wrong_type_is_named(path: str, fields: dict[str, Any], param: str, text: str) -> None:
    """The client reads which field is wrong, what it is and what it should be."""
    error = _refusal(path, fields)

    assert error.param == param
    assert text in error.message


@pytest.mark.parametrize(
    ("given", "read"),
    [(12, 12), (12.0, 12), (0, 0), (-1, None), (10**400, None), (1e300, None), (2**53, 2**53), (None, None)],
)
def test_numbers_that_only_an_engine_can_judge_pass(given: Any, read: int | None) -> None:
    """A limit out of its range is not ours to refuse, and not ours to count with."""
    assert _read(COMPLETIONS, {"prompt": "x", "max_tokens": given}).max_tokens == read


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (CHAT, "max_tokens"),
        (CHAT, "max_completion_tokens"),
        (RESPONSES, "max_output_tokens"),
        (COMPLETIONS, "max_tokens"),
    ],
)
def test_the_limit_of_an_answer_has_several_names(path: str, name: str) -> None:
    """Each API calls it differently."""
    assert _read(path, {"messages": [], "input": "x", "prompt": "x", name: 5}).max_tokens == 5


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES])
def test_a_body_without_a_prompt_passes(path: str) -> None:
    """The engine refuses it with its own words."""
    assert _read(path, {"model": "m"}).kind == "none"
    assert _read(path, {"model": "m", "messages": None, "prompt": None, "input": None}).kind == "none"


def test_embeddings_take_a_conversation_too() -> None:
    """Nothing is generated, so no generation prompt is added unless asked for."""
    body = _read(EMBEDDINGS, {"messages": [{"role": "user", "content": "x"}]})

    assert body.kind == "messages"
    assert body.chat is not None
    assert getattr(body.chat, "add_generation_prompt", None) is False


def test_responses_take_a_text_or_items() -> None:
    """Both are conversations."""
    assert _read(RESPONSES, {"input": "hello"}).kind == "messages"
    assert _read(RESPONSES, {"input": [{"role": "user", "content": "x"}]}).kind == "messages"


def test_the_last_of_equal_names_counts() -> None:
    """As in every JSON reader that engines use."""
    assert _read(COMPLETIONS, b'{"prompt": "a", "model": "x", "prompt": "b"}').text == "b"


def test_other_paths_are_read_for_their_model_only() -> None:
    """Whatever the body is, it is never refused."""
    reader = RequestReader(PrefixCache(0))

    for data, model in [
        (b'{"model": "m", "x": 1}', "m"),
        (b'{"model": 7}', None),
        (b"[1]", None),
        (b"", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
        (b"--boundary\r\n", None),
    ]:
        body = reader.read("/v1/audio/transcriptions", data)
        assert (body.kind, body.model) == ("none", model)
        assert reader.model_of(data) == model


def test_a_view_of_bytes_is_read_like_bytes() -> None:
    """The data plane may hand over a part of a buffer."""
    data = b'junk{"model": "m", "prompt": "x"}'

    assert RequestReader(PrefixCache(0)).read(COMPLETIONS, memoryview(data)[4:]).text == "x"


def test_unicode_reaches_the_prompt_whole() -> None:
    """Escaped or not, beyond the first plane or not."""
    assert _read(COMPLETIONS, '{"prompt": "é\\u00e9 🙂\\ud83d\\ude42"}'.encode()).text == "éé 🙂🙂"
