"""Reads the body of an inference request: once, and only the fields that routing needs.

What is refused here is what no engine could serve: bad JSON, no object, a field of a wrong type. What an engine may
judge differently (a missing prompt, an unknown field, a value out of its range) is left to the engine, whose answer
the client gets. The body is never written again: the data plane forwards the bytes that came.
"""

import re
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from kvrouter import native_core
from kvrouter.errors import RequestError
from kvrouter.service.prompts.body import (
    ChatFields,
    CommonFields,
    CompletionFields,
    EmbeddingFields,
    InferenceBody,
    ModelField,
    ResponsesFields,
)
from kvrouter.service.prompts.prefix_cache import PrefixCache
from kvrouter.service.prompts.token_array import TokenArrayReader, token_words

__all__ = ["RequestReader"]

_INTEGER_MAX = 2**53
_FIELD = re.compile(r"^(?P<problem>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_FIELD_NAME = re.compile(r"^\.([A-Za-z_0-9]+)")


class RequestReader:
    """Reads bodies by path. `cache` is shared with the `PromptResolver`, which puts the prompts together."""

    def __init__(self, cache: PrefixCache) -> None:
        root = cache.root()
        self._prompts = TokenArrayReader(cache, root, "prompt", CompletionFields)
        self._inputs = TokenArrayReader(cache, root, "input", EmbeddingFields)
        self._completion = msgspec.json.Decoder(CompletionFields).decode
        self._embedding = msgspec.json.Decoder(EmbeddingFields).decode
        self._chat = msgspec.json.Decoder(ChatFields).decode
        self._responses = msgspec.json.Decoder(ResponsesFields).decode
        self._model = msgspec.json.Decoder(ModelField).decode
        self._usual: dict[str, Callable[[bytes], InferenceBody | None]] = {}
        if native_core.present:
            self._usual["/v1/completions"] = self._prompts.read_usual
            self._usual["/v1/embeddings"] = self._inputs.read_usual
        self._readers: dict[str, Callable[[bytes], InferenceBody]] = {
            "/v1/chat/completions": self._read_chat,
            "/v1/completions": self._read_completion,
            "/v1/embeddings": self._read_embedding,
            "/v1/responses": self._read_responses,
        }

    def read(self, path: str, body: bytes | memoryview) -> InferenceBody:
        """Read one body; for a path that is none of ours only its `model`, if it has one.

        Raises:
            RequestError: 400; `param` names the field.
        """
        data = body if type(body) is bytes else bytes(body)
        read_usual = self._usual.get(path)
        if read_usual is not None:
            usual = read_usual(data)
            if usual is not None:
                return usual
        reader = self._readers.get(path)
        return reader(data) if reader is not None else InferenceBody("none", self.model_of(data))

    def model_of(self, body: bytes | memoryview) -> str | None:
        """Return the `model` that any body names; None if it is not a JSON object or names none."""
        try:
            return self._model(body).model if body else None
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return None

    def _read_completion(self, data: bytes) -> InferenceBody:
        found = self._prompts.read(data)
        if found is not None:
            fields, nodes, words = found
            return _token_ids(fields, nodes, words)
        whole = _decoded(self._completion, data)
        return _prompt(whole, whole.prompt, "prompt")

    def _read_embedding(self, data: bytes) -> InferenceBody:
        found = self._inputs.read(data)
        if found is not None:
            fields, nodes, words = found
            return _token_ids(fields, nodes, words)
        whole = _decoded(self._embedding, data)
        if whole.input is None and _given(whole.messages):
            chat = _decoded(self._chat, data)
            if chat.add_generation_prompt is None:
                chat.add_generation_prompt = False  # nothing is generated; vLLM's default here
            return _conversation(chat, chat.messages, "messages")
        return _prompt(whole, whole.input, "input")

    def _read_chat(self, data: bytes) -> InferenceBody:
        fields = _decoded(self._chat, data)
        if fields.max_tokens is None:
            fields.max_tokens = fields.max_completion_tokens
        return _conversation(fields, fields.messages, "messages")

    def _read_responses(self, data: bytes) -> InferenceBody:
        fields = _decoded(self._responses, data)
        if fields.max_tokens is None:
            fields.max_tokens = fields.max_output_tokens
        return _conversation(fields, fields.input, "input", or_text=True)


def _decoded(decode: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        _refuse_field(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not data:
            raise RequestError("the request body is empty; it must be a JSON object", code="invalid_json") from None
        raise RequestError(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise RequestError("the request body is nested too deeply", code="invalid_json") from None


def _refuse_field(problem: str) -> NoReturn:
    """Turn "Expected `bool | null`, got `int` - at `$.stream`" into an answer."""
    found = _FIELD.match(problem)
    name = _FIELD_NAME.match(found["path"] or "") if found else None
    if found is None or name is None:
        raise RequestError("the request body must be a JSON object", code="invalid_type")
    what = found["problem"].replace("`", "").replace(" | ", " or ")
    what = what.replace("Expected ", "expected ", 1)
    raise RequestError(f"{name[1]}: {what}", code="invalid_type", param=name[1])


def _body(kind: Any, fields: CommonFields) -> InferenceBody:
    body = InferenceBody(kind, fields.model, fields.stream or False, fields.cache_salt)
    body.has_engine_arguments = _given(fields.vllm_xargs)
    for candidate in (fields.session_id, fields.prompt_cache_key, fields.user):
        if candidate and type(candidate) is str:
            body.session = candidate
            break
    if type(fields.user) is str:
        body.user = fields.user
    if fields.max_tokens is not None:
        body.max_tokens = _whole(fields.max_tokens, 0)
    if fields.priority is not None:
        body.priority = _whole(fields.priority, -_INTEGER_MAX) or 0
    if fields.truncate_prompt_tokens is not None:
        body.truncate_prompt_tokens = _whole(fields.truncate_prompt_tokens, 1)
    if fields.add_special_tokens is not None:
        body.add_special_tokens = fields.add_special_tokens
    return body


def _whole(number: float, least: int) -> int | None:
    """Return a number that an engine could mean; others are the engine's to refuse."""
    return int(number) if least <= number <= _INTEGER_MAX else None


def _token_ids(fields: CommonFields, nodes: Any, words: bytes) -> InferenceBody:
    body = _body("token_ids", fields)
    body.nodes, body.words = nodes, words
    return body


def _prompt(fields: CommonFields, prompt: Any, name: str) -> InferenceBody:
    """A text, token ids, or a list of either, of which the first one decides where the request goes."""
    batch = 1
    if type(prompt) is list and prompt and type(prompt[0]) in (str, list):
        batch = len(prompt)
        prompt = prompt[0]
    if type(prompt) is str:
        body = _body("text" if prompt else "none", fields)
        body.text = prompt
    elif prompt:
        body = _token_ids(fields, (), token_words(prompt, name))
    else:
        body = _body("none", fields)
    body.batch = batch
    return body


def _conversation(
    fields: ChatFields | ResponsesFields, raw: msgspec.Raw, name: str, *, or_text: bool = False
) -> InferenceBody:
    if not _given(raw):
        return _body("none", fields)
    first = bytes(memoryview(raw)[:1])
    if first != b"[" and not (or_text and first == b'"'):
        wanted = "an array or text" if or_text else "an array"
        raise RequestError(f"{name}: expected {wanted}", code="invalid_type", param=name)
    body = _body("messages", fields)
    body.chat = fields
    return body


def _given(raw: msgspec.Raw) -> bool:
    view = memoryview(raw)
    return view.nbytes > 0 and bytes(view[:4]) != b"null"
