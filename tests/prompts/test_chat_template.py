"""Chat templates are rendered as the engine renders them, in a sandbox, with every name that they expect."""

from datetime import UTC, datetime
from typing import Any

import pytest

from kvrouter.service.prompts.chat_template import ChatTemplate, ChatTemplateError
from tests.prompts.models import CHATML

_USER = [{"role": "user", "content": "hi"}]


def _render(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    return ChatTemplate(source, special_tokens={"bos_token": "<s>", "eos_token": "</s>"}).render(
        _USER if messages is None else messages, **options
    )


def test_a_conversation_is_rendered() -> None:
    """With and without the beginning of an answer."""
    assert _render(CHATML) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert _render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_blocks_leave_no_white_space() -> None:
    """Templates are written for an environment that trims blocks."""
    assert (
        _render("{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n")
        == "hi\n"
    )


def test_special_tokens_are_names() -> None:
    """Many templates write bos themselves."""
    assert _render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}") == "<s>hi</s>"


def test_json_is_not_escaped_for_html() -> None:
    """Other characters would be other tokens."""
    tools = [{"name": "é<&>", "p": {"b": 1, "a": [1.5, None, True]}}]

    assert _render("{{ tools | tojson }}", tools=tools) == ('[{"name": "é<&>", "p": {"b": 1, "a": [1.5, null, true]}}]')
    assert _render("{{ tools[0].p | tojson(indent=2) }}", tools=tools).startswith('{\n  "b": 1,')


def test_loops_can_be_left() -> None:
    """`break` and `continue` are there."""
    source = (
        "{% for n in [1, 2, 3, 4] %}{% if n == 2 %}{% continue %}{% endif %}"
        "{% if n == 4 %}{% break %}{% endif %}{{ n }}{% endfor %}"
    )

    assert _render(source) == "13"


def test_generation_blocks_are_understood() -> None:
    """They mark what a model wrote; the text is that of their contents."""
    assert _render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "ahib"


def test_the_date_is_the_one_that_is_given() -> None:
    """Time is an argument; templates that ask for it say so."""
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2026, 3, 4, tzinfo=UTC))

    assert template.render(_USER) == "04 Mar 2026"
    assert template.depends_on_time
    assert not ChatTemplate(CHATML).depends_on_time


def test_options_and_documents_reach_the_template() -> None:
    """What vLLM calls chat_template_kwargs; they never replace the conversation itself."""
    source = "{{ enable_thinking }}{{ documents[0].text }}{{ messages | length }}"

    assert _render(source, options={"enable_thinking": False, "messages": []}, documents=[{"text": "d"}]) == "Falsed1"


def test_names_that_are_not_given_are_undefined_or_none() -> None:
    """As templates test for them."""
    assert _render("{{ tools is none }}{{ documents is none }}{{ xyz is defined }}") == "TrueTrueFalse"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.nothing.here }}",
        "{{ messages[9].content }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for n in range(10000000) %}{% endfor %}",
    ],
)
def test_a_template_that_fails_is_one_error(source: str) -> None:
    """Whatever it does: refuse, fail, change its arguments, climb out, or run for ever."""
    with pytest.raises(ChatTemplateError, match="chat template"):
        _render(source)


def test_what_the_template_says_is_in_the_error() -> None:
    """So that an operator can see which conversations it refuses."""
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        _render("{{ raise_exception('roles must alternate') }}")


def test_a_damaged_template_is_found_at_once() -> None:
    """Not with the first request."""
    with pytest.raises(ChatTemplateError):
        ChatTemplate("{% for %}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("The answer", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nThe answer"),
        ("ends with space ", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nends with space "),
        ("", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_the_last_message_can_be_left_open(content: str, expected: str) -> None:
    """The model goes on with it: nothing that the template adds after it remains."""
    messages = [*_USER, {"role": "assistant", "content": content}]

    assert _render(CHATML, messages, add_generation_prompt=False, continue_final_message=True) == expected


def test_a_trimming_template_trims_an_open_message_too() -> None:
    """What the template would have cut off does not come back."""
    source = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    messages = [{"role": "assistant", "content": "x  "}]

    assert _render(source, messages, add_generation_prompt=False, continue_final_message=True) == "[x"


def test_an_open_message_of_parts_ends_with_its_last_text() -> None:
    """Contents may be lists."""
    source = "{% for m in messages %}[{% for p in m.content %}{{ p.text }}{% endfor %}]{% endfor %}"
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image"}]

    assert _render(source, [{"role": "user", "content": content}], continue_final_message=True) == "[ab"


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user", "content": None}], [{"role": "user", "content": [{"type": "image"}]}]]
)
def test_nothing_to_continue_is_an_error(messages: list[dict[str, Any]]) -> None:
    """There has to be a text."""
    with pytest.raises(ChatTemplateError):
        _render(CHATML, messages, continue_final_message=True)


def test_an_open_message_that_the_template_leaves_out_is_an_error() -> None:
    """It would go on with something else."""
    with pytest.raises(ChatTemplateError, match="not in the text"):
        _render("nothing", continue_final_message=True)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (CHATML, False),
        ("{% for m in messages %}{% for p in m['content'] %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% set c = m.content %}{% for p in c | list %}{{ p }}{% endfor %}{% endfor %}", True),
        ("{% macro show(content) %}{% for p in content %}{{ p }}{% endfor %}{% endmacro %}", True),
        ("{% for m in messages %}{% for p in m.content[1:] %}{{ p }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for t in m.tool_calls %}{{ t }}{% endfor %}{{ m.content }}{% endfor %}", False),
    ],
)
def test_how_a_template_wants_contents_is_seen_from_its_loops(source: str, *, parts: bool) -> None:
    """It goes through parts, or writes a text."""
    assert ChatTemplate(source).wants_parts is parts
