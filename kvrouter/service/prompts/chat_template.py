"""A model's chat template: messages to the text that the engine will tokenise.

Templates come from the model's own folder and are written for Hugging Face's renderer, so this environment has that
one's names, filters, tags and whitespace rules. It is a sandbox that cannot change what it is given. A template in a
request is never rendered: only the operator's files are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvrouter.errors import KvrouterError
from kvrouter.service.prompts.conversation import Message

__all__ = ["ChatTemplate", "ChatTemplateError"]

_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplateError(KvrouterError):
    """A template cannot be compiled, or refuses a conversation."""


class ChatTemplate:
    """One compiled template, and what can be known of it without rendering."""

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        environment = _environment(now)
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ChatTemplateError(f"chat template: {error}") from None
        self._special_tokens = dict(special_tokens or {})
        self.source = source
        self.wants_parts = _goes_through_contents(tree)
        """Contents are given as lists of parts; otherwise as text."""
        self.knows_developer = "developer" in source
        self.depends_on_time = "strftime_now" in source
        """The same conversation is another text at another time."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        documents: object = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Render a conversation; `options` are what vLLM calls `chat_template_kwargs`.

        Raises:
            ChatTemplateError: the template refuses the conversation, or fails on it.
        """
        if continue_final_message:
            messages = _with_continue_tag(messages)
        names: dict[str, Any] = {
            **self._special_tokens,
            **(options or {}),
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        try:
            text = self._template.render(names)
        except Exception as error:  # noqa: BLE001 - a template is a foreign program and may raise anything
            raise ChatTemplateError(f"chat template: {type(error).__name__}: {error}") from None
        return _cut_at_continue_tag(text) if continue_final_message else text


class _GenerationTag(Extension):
    """`{% generation %}` marks what a model wrote, for training; here it only has to be understood."""

    tags = {"generation"}  # noqa: RUF012 - the declaration of the class above

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates call it so
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Jinja's own filter escapes for HTML, which would be other tokens."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _goes_through_contents(tree: nodes.Template) -> bool:
    """Whether some loop of the template goes through the parts of a message's content."""
    names = {"content"}  # the usual name of a macro's argument
    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node, names):
            names.add(assignment.target.name)
    return any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    while isinstance(node, (nodes.Filter, nodes.Test)) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in names


def _with_continue_tag(messages: Sequence[Message]) -> list[Message]:
    """Mark the end of the last message, so that whatever the template adds after it can be cut off."""
    *earlier, last = messages or [{}]
    content = last.get("content")
    if isinstance(content, str):
        return [*earlier, {**last, "content": content + _CONTINUE_TAG}]
    if isinstance(content, list):
        for at in reversed(range(len(content))):
            if "text" in content[at]:
                part = {**content[at], "text": content[at]["text"] + _CONTINUE_TAG}
                return [*earlier, {**last, "content": [*content[:at], part, *content[at + 1 :]]}]
    raise ChatTemplateError("chat template: the last message has no text to continue")


def _cut_at_continue_tag(text: str) -> str:
    at = text.rfind(_CONTINUE_TAG.strip())
    if at < 0:
        raise ChatTemplateError("chat template: the message to continue is not in the text")
    if text.startswith(_CONTINUE_TAG, at):
        return text[:at]
    return text[:at].rstrip()  # the template trims contents: so would it have trimmed this one
