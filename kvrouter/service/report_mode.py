"""Takes one argument out of requests that would make an engine repeat what it has already told.

vLLM (0.26 and later) announces all blocks that a request reuses again, without any new copy, if the request asks for it
with `"vllm_xargs": {"kv_cache_report_mode": "full"}`. Our events come from the engine's own stream, so this only costs
its scheduler time and makes copies harder to count (docs/events.md); everything else of a request stays as it is.
"""

from typing import Any, Final

import msgspec

__all__ = ["without_report_mode"]

_ARGUMENT: Final = b"kv_cache_report_mode"

_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARGUMENTS: Final = msgspec.json.Decoder(dict[str, Any])


def without_report_mode(body: bytes) -> bytes:
    """Return a JSON request body without the argument; one that does not have it, or cannot be read, as it is."""
    if _ARGUMENT not in body:
        return body
    try:
        fields = _FIELDS.decode(body)
        arguments = _ARGUMENTS.decode(fields["vllm_xargs"])
        del arguments[_ARGUMENT.decode()]
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError, RecursionError):
        return body
    if arguments:
        fields["vllm_xargs"] = msgspec.Raw(msgspec.json.encode(arguments))
    else:
        del fields["vllm_xargs"]
    return msgspec.json.encode(fields)
