"""Messages become what templates are given, by vLLM's rules."""

from typing import Any

import pytest

from kvrouter.service.prompts.conversation import (
    UnreadableConversationError,
    conversation,
    responses_messages,
    responses_tools,
    tool_definitions,
)


def _one(message: dict[str, Any], *, as_parts: bool = False) -> dict[str, Any]:
    (result,), _ = conversation([message], as_parts=as_parts, knows_developer=True)
    return result


def test_text_stays_text_or_becomes_a_part() -> None:
    """As the template wants it."""
    message = {"role": "user", "content": "hi"}

    assert _one(message) == {"role": "user", "content": "hi"}
    assert _one(message, as_parts=True) == {"role": "user", "content": [{"type": "text", "text": "hi"}]}


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        ["a", "b"],
        [{"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "b"}],
        [{"type": "text", "text": "a"}, {"type": "text", "text": None}, {"type": "output_text", "text": "b"}],
    ],
)
def test_text_parts_are_joined_by_lines_or_kept(content: list[Any]) -> None:
    """All kinds of text are text."""
    message = {"role": "user", "content": content}

    assert _one(message)["content"] == "a\nb"
    assert _one(message, as_parts=True)["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("part", "modality"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "image"),
        ({"type": "input_image", "image_url": "http://x/y.png"}, "image"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "audio"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "video"),
        ({"image_url": "x"}, "image"),
    ],
)
def test_media_are_mentioned_and_counted(part: dict[str, Any], modality: str) -> None:
    """A template sees their kind only, a text template nothing of them."""
    given = [{"role": "user", "content": [{"type": "text", "text": "look"}, part]}]

    parts, media = conversation(given, as_parts=True, knows_developer=True)
    text, same = conversation(given, as_parts=False, knows_developer=True)

    assert parts[0]["content"] == [{"type": "text", "text": "look"}, {"type": modality}]
    assert text[0]["content"] == "look"
    assert media == same == 1


def test_no_content_is_empty_content() -> None:
    """Templates need not test for None."""
    assert _one({"role": "assistant", "content": None})["content"] == ""
    assert _one({"role": "assistant"}, as_parts=True)["content"] == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"city": "Köln"}', {"city": "Köln"}),
        ({"city": "Köln"}, {"city": "Köln"}),
        ("", {}),
        (None, {}),
        ("not json", {}),
        ("[1]", {}),
        ("[" * 100_000, {}),
    ],
)
def test_arguments_of_calls_are_objects(arguments: Any, expected: dict[str, Any]) -> None:
    """Clients send them as JSON text; a model's nonsense becomes an empty object."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}

    result = _one(message)

    assert result["tool_calls"] == [{"id": "c", "type": "function", "function": {"name": "f", "arguments": expected}}]
    assert call["function"]["arguments"] == arguments  # type: ignore[index]


def test_empty_tool_calls_are_left_out() -> None:
    """Templates branch on their presence."""
    assert "tool_calls" not in _one({"role": "assistant", "content": "x", "tool_calls": []})
    assert "tool_calls" not in _one({"role": "assistant", "content": "x", "tool_calls": None})


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_has_two_names(name: str) -> None:
    """Templates use either."""
    result = _one({"role": "assistant", "content": "x", name: "because"})

    assert result["reasoning"] == result["reasoning_content"] == "because"


def test_results_of_tools_are_text_with_their_id() -> None:
    """Most templates want text there, even those that go through parts elsewhere."""
    message = {
        "role": "tool",
        "tool_call_id": "c",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    }

    for as_parts in (False, True):
        assert _one(message, as_parts=as_parts) == {"role": "tool", "content": "a\nb", "tool_call_id": "c"}


def test_names_are_kept_and_other_fields_are_not() -> None:
    """A template sees what vLLM lets it see."""
    message = {"role": "user", "name": "Ann", "content": "x", "cache_control": {"type": "ephemeral"}}

    assert _one(message) == {"role": "user", "content": "x", "name": "Ann"}


def test_developers_are_systems_where_the_template_knows_none() -> None:
    """And all systems are one, at the front."""
    given = [
        {"role": "system", "content": "one"},
        {"role": "user", "content": "hi"},
        {"role": "developer", "content": [{"type": "text", "text": "two"}], "tools": [1]},
    ]

    merged, _ = conversation(given, as_parts=False, knows_developer=False)
    as_parts, _ = conversation(given, as_parts=True, knows_developer=False)
    kept, _ = conversation(given, as_parts=False, knows_developer=True)

    assert merged == [{"role": "system", "content": "one\n\ntwo"}, {"role": "user", "content": "hi"}]
    assert as_parts[0] == {"role": "system", "content": "one\n\ntwo"}
    assert kept[2]["role"] == "developer"


def test_a_developer_at_the_front_is_simply_a_system() -> None:
    """Nothing has to be merged."""
    given = [{"role": "developer", "content": "x"}, {"role": "user", "content": "hi"}]

    assert conversation(given, as_parts=False, knows_developer=False)[0][0] == {"role": "system", "content": "x"}


@pytest.mark.parametrize(
    "given",
    [
        None,
        "hi",
        [7],
        [{"content": "no role"}],
        [{"role": 7, "content": "x"}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": [7]}],
        [{"role": "user", "content": [{"type": "hologram"}]}],
        [{"role": "user", "content": [{"type": ["text"]}]}],
        [{"role": "user", "content": [{}]}],
        [{"role": "assistant", "tool_calls": {"a": 1}}],
        [{"role": "assistant", "tool_calls": [7]}],
        [{"role": "assistant", "tool_calls": [{"function": 7}]}],
    ],
)
def test_what_is_no_conversation_is_one_error(given: Any) -> None:
    """The engine will refuse it; here it only has no tokens."""
    with pytest.raises(UnreadableConversationError):
        conversation(given, as_parts=True, knows_developer=True)


def test_tools_have_the_fields_that_engines_hand_on() -> None:
    """Missing ones are there as None, unknown ones are not."""
    tool = {"type": "function", "function": {"parameters": {"type": "object"}, "name": "f", "x": 1}, "y": 2}

    assert tool_definitions([tool]) == [
        {"type": "function", "function": {"name": "f", "description": None, "parameters": {"type": "object"}}}
    ]
    assert list(tool_definitions([tool])[0]["function"]) == ["name", "description", "parameters"]  # type: ignore[index]
    assert tool_definitions(None) is None
    assert tool_definitions([]) is None


@pytest.mark.parametrize("tools", [7, [7], [{}], [{"function": {"name": 7}}]])
def test_what_are_no_tools_is_one_error(tools: Any) -> None:
    """As for messages."""
    with pytest.raises(UnreadableConversationError):
        tool_definitions(tools)


def test_input_of_responses_is_a_conversation() -> None:
    """Text, messages, calls and their results."""
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "rain"},
        {"type": "message", "role": "assistant", "content": "It rains."},
    ]

    messages = responses_messages(items, "be brief")

    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert messages[3] == {"role": "tool", "content": "rain", "tool_call_id": "c"}
    assert responses_messages("hi", None) == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("given", [7, [7], [{"type": "computer_call"}]])
def test_items_without_a_counterpart_are_one_error(given: Any) -> None:
    """Not everything is a chat."""
    with pytest.raises(UnreadableConversationError):
        responses_messages(given, None)


def test_tools_of_responses_are_wrapped_for_a_chat() -> None:
    """They come flat."""
    assert responses_tools([{"type": "function", "name": "f"}]) == [
        {"type": "function", "function": {"type": "function", "name": "f"}}
    ]
    assert responses_tools(None) is None
    for wrong in (7, [7], True):
        with pytest.raises(UnreadableConversationError):
            responses_tools(wrong)
