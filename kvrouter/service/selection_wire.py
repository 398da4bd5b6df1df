"""The JSON of the selection API, in: what a gateway may ask, read without building an object per token.

Field names and shapes are those of Dynamo's standalone selection service; fields that we do not use are ignored, as
there. Only parsing and checking happens here, the choosing is `selection.py`.
"""

import re
from array import array
from typing import Any, NamedTuple

import msgspec
import numpy as np

from kvrouter.blocks import TOKEN_ID_MAX, HashArray, Prompt, sequence_hashes, token_bytes
from kvrouter.errors import RequestError

__all__ = [
    "GivenHashes",
    "OutputBlock",
    "Pinned",
    "SelectionRequest",
    "parse_output_block",
    "parse_selection",
    "prompt_of",
    "token_words",
]

_DIGITS = b"0123456789"
_SHORT_BYTES = 2048
_MASK = 2**64 - 1
_MISSING = msgspec.Raw(b"")


class Pinned(msgspec.Struct):
    """The one rank that may be chosen."""

    worker_id: int | str
    dp_rank: int | None = None


class SessionContext(msgspec.Struct):
    """What a gateway knows about the conversation; its id and its end are used."""

    session_id: str | None = None
    session_final: bool | None = None
    """Nothing comes after this request."""


class RoutingConstraints(msgspec.Struct):
    """Names that a worker must have, and those that it had better have, with how much better."""

    required_taints: list[str] | None = None
    preferred_taints: dict[str, float] | None = None


class MultimodalObject(msgspec.Struct):
    """One image, video or audio item in a block."""

    mm_hash: int


class BlockMultimodal(msgspec.Struct):
    """The items in one block."""

    mm_objects: list[MultimodalObject] = []


class MultimodalRouting(msgspec.Struct):
    """Token ids with the items that their blocks cover."""

    routing_token_ids: msgspec.Raw = _MISSING
    block_mm_infos: list[BlockMultimodal | None] | None = None


class SelectionRequest(msgspec.Struct):
    """A prompt with its options; all calls of the selection API share it."""

    token_ids: msgspec.Raw = _MISSING
    block_hashes: msgspec.Raw = _MISSING
    """Only counted: the sequence hashes are what is compared."""
    sequence_hashes: list[int] | None = None
    isl_tokens: int | None = None
    block_mm_infos: list[BlockMultimodal | None] | None = None
    mm_routing_info: MultimodalRouting | None = None
    model_name: str | None = None
    model: str | None = None
    routing_group: str | None = None
    lora_name: str | None = None
    cache_salt: str | None = None
    selection_id: str | None = None
    session_id: str | None = None
    session_context: SessionContext | None = None
    pinned_worker: Pinned | None = None
    allowed_worker_ids: list[int | str] | None = None
    routing_constraints: RoutingConstraints | None = None
    # Ours; as in the headers of the data plane.
    require: str | None = None
    tolerate: str | None = None
    zone: str | None = None
    role: str | None = None
    advisory: bool | None = None
    # Only for an explicit booking.
    worker_id: int | str | None = None
    dp_rank: int | None = None
    effective_prefill_tokens: int | None = None
    track_prefill_tokens: bool | None = None

    @property
    def session(self) -> str | None:
        """The conversation that the prompt belongs to."""
        return self.session_id or (self.session_context.session_id if self.session_context else None)

    @property
    def is_last(self) -> bool:
        """Whether the conversation ends with it."""
        return bool(self.session_context and self.session_context.session_final)


class OutputBlock(msgspec.Struct):
    """Progress of a reservation: one more block was generated."""

    decay_fraction: float | None = None


_selection_decoder = msgspec.json.Decoder(SelectionRequest)
_output_block_decoder = msgspec.json.Decoder(OutputBlock)
_integers_decoder = msgspec.json.Decoder(list[int])


def parse_selection(body: bytes) -> SelectionRequest:
    """Read a request body.

    Raises:
        RequestError: 400, it is not JSON or a field has the wrong type; `param` names the field.
    """
    request: SelectionRequest = _parse(_selection_decoder, body)
    return request


def parse_output_block(body: bytes) -> OutputBlock:
    """Read the body of `/output_block`; an empty one means no decay.

    Raises:
        RequestError: 400, as `parse_selection`, or the fraction is not within 0..1.
    """
    if not body.strip():
        return OutputBlock()
    progress: OutputBlock = _parse(_output_block_decoder, body)
    if progress.decay_fraction is not None and not 0 <= progress.decay_fraction <= 1:
        raise RequestError("decay_fraction must be 0..1", param="decay_fraction")
    return progress


class GivenHashes(NamedTuple):
    """Arrays of hashes that were read apart from the rest of a body."""

    sequences: bytes
    """64-bit integers in the machine's byte order."""
    blocks: int
    """How many block hashes came with them."""


def prompt_of(
    request: SelectionRequest, words: bytes | None = None, hashes: GivenHashes | None = None, *, block_size: int
) -> Prompt:
    """Return the request's prompt; `block_size` is the one that given hashes are for.

    `words` are its token ids, and `hashes` its hashes, where somebody has read them already.

    Raises:
        RequestError: 400, no prompt is given, or it is not what it must be.
    """
    salt = (request.cache_salt or "").encode()
    lora = request.lora_name or None
    mm = request.mm_routing_info
    infos = request.block_mm_infos
    if mm is not None:
        words, infos = token_words(bytes(mm.routing_token_ids)), mm.block_mm_infos
    elif words is None and is_given(request.token_ids):
        words = token_words(bytes(request.token_ids))
    if words is not None:
        return (
            _multimodal_prompt(words, infos, salt, lora, block_size) if infos else Prompt(words, salt=salt, lora=lora)
        )
    if request.sequence_hashes is None:
        raise RequestError(
            "a prompt is needed: token_ids, or block_hashes with sequence_hashes and isl_tokens", param="token_ids"
        )
    return _hashed_prompt(request, hashes or _given_hashes(request), salt, lora, block_size)


def token_words(raw: bytes) -> bytes:
    """Turn the JSON text of a list of token ids into little-endian 32-bit integers.

    The usual long text, nothing but digits between commas, is read by numpy without making an object of each id.
    """
    if len(raw) < _SHORT_BYTES:
        return _checked_words(raw)
    separators = raw.translate(None, _DIGITS)[1:-1]
    commas = separators.count(b",")
    if separators not in (b"," * commas, b", " * commas) or not b"0" <= raw[1:2] <= b"9":
        return _checked_words(raw)
    values = np.fromstring(raw[1:-1], dtype=np.int64, sep=",")
    if values.max() > TOKEN_ID_MAX:
        raise RequestError(f"token_ids must be 0..{TOKEN_ID_MAX}", param="token_ids")
    words: bytes = values.astype("<u4").tobytes()
    return words


def is_given(raw: msgspec.Raw) -> bool:
    """Whether a field is there; null is not, because some clients write every field that they know."""
    return bytes(memoryview(raw)[:4]) not in (b"", b"null")


def _parse(decoder: "msgspec.json.Decoder[Any]", body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text = str(error)
        path = re.search(r"at `\$\.([A-Za-z_]+)", text)
        raise RequestError(text, code="invalid_field", param=path[1] if path else None) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not body:
            raise RequestError("the body is empty; it must be a JSON object", code="invalid_json") from None
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply", code="invalid_json") from None


def _checked_words(raw: bytes) -> bytes:
    if not raw:
        raise RequestError("token_ids is needed", param="token_ids")
    try:
        return token_bytes(_integers_decoder.decode(raw))
    except (msgspec.DecodeError, ValueError):
        raise RequestError(f"token_ids must be a list of integers 0..{TOKEN_ID_MAX}", param="token_ids") from None


def _hashed_prompt(
    request: SelectionRequest, hashes: GivenHashes, salt: bytes, lora: str | None, block_size: int
) -> Prompt:
    count, tokens = len(hashes.sequences) // 8, request.isl_tokens
    if hashes.blocks != count:
        raise RequestError(
            f"block_hashes ({hashes.blocks}) and sequence_hashes ({count}) must be equally long",
            param="sequence_hashes",
        )
    if tokens is None or tokens <= 0:
        raise RequestError("isl_tokens must be at least 1 where hashes are given", param="isl_tokens")
    try:
        return Prompt.from_hashes(hashes.sequences, block_size=block_size, tokens=tokens, salt=salt, lora=lora)
    except ValueError as error:
        raise RequestError(str(error), param="isl_tokens") from None


def _given_hashes(request: SelectionRequest) -> GivenHashes:
    hashes = request.sequence_hashes or []
    blocks = _length(bytes(request.block_hashes)) if is_given(request.block_hashes) else len(hashes)
    try:
        return GivenHashes(_unsigned(hashes).tobytes(), blocks)
    except OverflowError:
        raise RequestError("sequence_hashes must be 64-bit integers", param="sequence_hashes") from None


def _length(raw: bytes) -> int:
    """How many items the JSON text of a list of numbers has; the JSON reader has found it well-formed."""
    if not raw.startswith(b"["):
        raise RequestError("block_hashes must be a list of integers", param="block_hashes")
    return raw.count(b",") + 1 if len(raw) > 2 and raw[1:-1].strip() else 0


def _unsigned(hashes: list[int]) -> HashArray:
    """Hashes as we keep them; Dynamo's clients write them signed, others unsigned."""
    try:
        return np.frombuffer(array("q", hashes), np.uint64)
    except OverflowError:
        if min(hashes) < -(2**63) or max(hashes) > _MASK:
            raise
        return np.frombuffer(array("Q", [each & _MASK for each in hashes]), np.uint64)


def _multimodal_prompt(
    words: bytes, infos: list[BlockMultimodal | None], salt: bytes, lora: str | None, block_size: int
) -> Prompt:
    keys = [None if info is None else [each.mm_hash & _MASK for each in info.mm_objects] for info in infos]
    hashes = sequence_hashes(words, block_size, salt=salt, lora=lora, block_keys=keys)
    return Prompt.from_hashes(hashes, block_size=block_size, tokens=len(words) // 4, salt=salt, lora=lora)
