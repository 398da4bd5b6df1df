"""Chat messages as a client sends them, made into what a chat template is given.

The rules are vLLM's (its chat parsing, 0.9 and later), because a template sees what they leave: contents become text or
lists of parts, tool call arguments become objects, `reasoning_content` has two names, a `developer` becomes a `system`
where the template knows no developer. SGLang differs in details (it gives templates tools without their wrapper in some
versions); then fewer blocks are found than there are, and nothing worse. Nothing is rendered here.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

__all__ = [
    "Message",
    "UnreadableConversationError",
    "conversation",
    "responses_messages",
    "responses_tools",
    "tool_definitions",
]

Message: TypeAlias = dict[str, Any]

_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_MEDIA_PARTS = {
    "image": ("image", "image_url", "input_image", "image_embeds", "image_pil"),
    "video": ("video", "video_url", "video_embeds"),
    "audio": ("audio", "audio_url", "input_audio", "audio_embeds"),
}
_MEDIA = {name: modality for modality, names in _MEDIA_PARTS.items() for name in names}


class UnreadableConversationError(Exception):
    """Messages of a form that we do not know; `reason` is a label for a counter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def conversation(given: object, *, as_parts: bool, knows_developer: bool) -> tuple[list[Message], int]:
    """Return the messages for a template, and how many media items they mention.

    Args:
        given: the decoded `messages`.
        as_parts: the template goes through the parts of a content; otherwise it wants text.
        knows_developer: the template has a `developer` role.

    Raises:
        UnreadableConversationError: this is not a list of messages.
    """
    if not isinstance(given, list):
        raise UnreadableConversationError("malformed_messages")
    media = 0
    messages = []
    for message in given:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UnreadableConversationError("malformed_messages")
        rendered, found = _message(message, as_parts=as_parts)
        messages.append(rendered)
        media += found
    if not knows_developer and any(message["role"] == "developer" for message in messages):
        messages = _one_system_message(messages)
    return messages, media


def tool_definitions(given: object) -> list[Message] | None:
    """Return `tools` with exactly the fields that vLLM hands on, in its order."""
    if given is None:
        return None
    if not isinstance(given, list):
        raise UnreadableConversationError("malformed_tools")
    tools = []
    for tool in given:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UnreadableConversationError("malformed_tools")
        named = {name: function.get(name) for name in ("name", "description", "parameters")}
        if function.get("strict") is not None:
            named["strict"] = function["strict"]
        tools.append({"type": "function", "function": named})
    return tools or None


def responses_tools(given: object) -> list[Message] | None:
    """Return the `tools` of `/v1/responses` as a chat has them."""
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise UnreadableConversationError("malformed_tools")
    return [{"type": "function", "function": tool} for tool in given] or None


def responses_messages(given: object, instructions: str | None) -> list[Message]:
    """Return the `input` of `/v1/responses` as chat messages.

    Raises:
        UnreadableConversationError: an item has no counterpart in a chat.
    """
    messages: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list):
        raise UnreadableConversationError("malformed_messages")
    return messages + [_responses_item(item) for item in given]


def _responses_item(item: object) -> Message:
    if isinstance(item, dict):
        kind = item.get("type", "message")
        if kind == "message":
            return item
        if kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            return {"role": "assistant", "tool_calls": [call]}
        if kind == "function_call_output":
            return {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}
    raise UnreadableConversationError("responses_item")


def _message(message: Message, *, as_parts: bool) -> tuple[Message, int]:
    role, content = message["role"], message.get("content")
    if len(message) == 2 and isinstance(content, str) and not as_parts and role != "developer":
        return message, 0  # nothing to change, and templates cannot change it either
    media = 0
    if isinstance(content, str):
        # The common case by far, and the same in both forms but for its wrapping.
        shown: Any = [{"type": "text", "text": content}] if as_parts and role != "tool" else content
    else:
        parts, media = _parts(content)
        shown = parts if as_parts and (role != "tool" or media) else "\n".join(_texts(parts))
    result: Message = {"role": role, "content": shown}
    if role == "assistant":
        _add_assistant_fields(result, message)
    elif role == "tool" and "tool_call_id" in message:
        result["tool_call_id"] = message["tool_call_id"]
    elif role == "developer":
        result["tools"] = message.get("tools")
    if isinstance(message.get("name"), str):
        result["name"] = message["name"]
    return result, media


def _parts(content: object) -> tuple[list[Message], int]:
    if content is None:
        return [], 0
    if not isinstance(content, list):
        raise UnreadableConversationError("malformed_messages")
    parts: list[Message] = []
    media = 0
    for part in content:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
            continue
        kind = _part_kind(part)
        if kind in _MEDIA:
            parts.append({"type": _MEDIA[kind]})
            media += 1
            continue
        text = part.get(_TEXT_PARTS[kind])
        if isinstance(text, str):
            parts.append({"type": "text", "text": text})
    return parts, media


def _part_kind(part: object) -> str:
    """Say what a content part is; some clients leave the type out and only name the media."""
    if isinstance(part, dict):
        kind = part.get("type")
        if isinstance(kind, str) and (kind in _TEXT_PARTS or kind in _MEDIA):
            return kind
        if kind is None:
            for name in part:
                if name in _MEDIA:
                    return str(name)
    raise UnreadableConversationError("content_part")


def _texts(parts: Sequence[Message]) -> list[str]:
    return [part["text"] for part in parts if "text" in part]


def _add_assistant_fields(result: Message, message: Message) -> None:
    reasoning = message.get("reasoning")
    if reasoning is None:
        reasoning = message.get("reasoning_content")
    if reasoning is not None:
        result["reasoning"] = result["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise UnreadableConversationError("malformed_messages")
        result["tool_calls"] = [_tool_call(call) for call in calls]


def _tool_call(call: object) -> Message:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise UnreadableConversationError("malformed_messages")
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"))}}


def _arguments(given: object) -> dict[str, Any]:
    """Return the arguments of a call as templates want them: an object, also where a model wrote nonsense."""
    if isinstance(given, str) and given:
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return {}
    return given if isinstance(given, dict) else {}


def _one_system_message(messages: list[Message]) -> list[Message]:
    """Make developers systems, and several systems one at the front."""
    renamed = [
        {name: value for name, value in {**message, "role": "system"}.items() if name != "tools"}
        if message["role"] == "developer"
        else message
        for message in messages
    ]
    systems = [message for message in renamed if message["role"] == "system"]
    if len(systems) == 1 and renamed[0] is systems[0]:
        return renamed
    texts = []
    for message in systems:
        content = message["content"]
        texts.append(content if isinstance(content, str) else "\n".join(_texts(content)))
    merged = {"role": "system", "content": "\n\n".join(filter(None, texts))}
    return [merged, *(message for message in renamed if message["role"] != "system")]
