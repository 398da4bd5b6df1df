"""The `tokenizer` mode: a conversation or a text becomes tokens here, and only what is new of it is tokenised.

Short new text is tokenised at once, longer text in the thread that exists for it. What a piece became is remembered in
the prefix cache; what is not cut into pieces is remembered by its tokens, so that at least its hashes are shared.
"""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import NamedTuple

from kvrouter.service.prompts.body import ChatFields, InferenceBody, ResponsesFields
from kvrouter.service.prompts.chat_template import ChatTemplate
from kvrouter.service.prompts.conversation import (
    UnreadableConversationError,
    conversation,
    responses_messages,
    responses_tools,
    tool_definitions,
)
from kvrouter.service.prompts.encode_thread import EncodeThread
from kvrouter.service.prompts.model_files import ModelFiles
from kvrouter.service.prompts.prefix_cache import PrefixCache, PrefixNode
from kvrouter.service.prompts.repeats import PromptTokens
from kvrouter.service.prompts.text_tokenizer import TextTokenizer, TokenizerError
from kvrouter.service.prompts.worker_tokenizer import decoded, template_options

__all__ = ["LocalTokens", "PromptText", "TextLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLimits:
    """Bounds on what is tokenised here."""

    inline_characters_max: int = 2048
    """Longer new text is tokenised in the thread, not on the event loop."""
    new_characters_max: int = 1024 * 1024
    """Longer new text is not tokenised: it would hold up everyone else's."""
    messages_bytes_max: int = 16 * 1024 * 1024
    """Longer conversations are not rendered."""
    jobs_max: int = 256
    """Texts that may wait for the thread."""


class PromptText(NamedTuple):
    """What the engine will tokenise, and how."""

    text: str
    add_special_tokens: bool
    media: int
    """Images and the like, for which the engine puts in tokens that are not known here."""


class LocalTokens:
    """One model's prompts, tokenised here."""

    def __init__(
        self, files: ModelFiles, cache: PrefixCache, thread: EncodeThread, limits: TextLimits = TextLimits()
    ) -> None:
        self._files, self._cache, self._thread, self._limits = files, cache, thread, limits
        self._words_root = cache.root()
        before, self._after = files.tokenizer.around or (b"", b"")
        self._plain_root, self._special_root = cache.root(), cache.root(before)

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer."""
        return self._files.tokenizer

    def depends_on_time(self, body: InferenceBody) -> bool:
        """Whether the same body may be another text later."""
        if body.chat is None:
            return False
        template = self._files.template_for(memoryview(body.chat.tools).nbytes)
        return template is not None and template.depends_on_time

    def text(self, body: InferenceBody) -> PromptText:
        """Return the text that `body` asks about.

        Raises:
            UnreadableConversationError: the messages are of a form that we do not know.
            ChatTemplateError: the template refuses them.
        """
        chat = body.chat
        if chat is None:
            return PromptText(body.text, body.add_special_tokens is not False, 0)
        raw = chat.messages if isinstance(chat, ChatFields) else chat.input
        if memoryview(raw).nbytes > self._limits.messages_bytes_max:
            raise UnreadableConversationError("too_long")
        return self._chat_text(chat) if isinstance(chat, ChatFields) else self._responses_text(chat)

    def tokens(self, prompt: PromptText) -> PromptTokens | Awaitable[PromptTokens]:
        """Return the tokens of a text; what must be awaited is tokenised in the thread.

        Raises:
            UnreadableConversationError: there is too much new text.
            TokenizerError: the tokenizer fails on it (also when awaited).
            OverloadedError: too much waits for the thread (when awaited).
        """
        tokenizer, special = self._files.tokenizer, prompt.add_special_tokens
        _check_text(prompt.text)
        if special and tokenizer.around is None:
            return self._whole(prompt.text)
        pieces = tokenizer.pieces(prompt.text)
        nodes = self._known(pieces, special=special)
        known = len(nodes) - special
        missing = pieces[known:]
        if not missing:
            return PromptTokens(nodes, self._after if special else b"")
        characters = sum(map(len, missing))
        if characters > self._limits.new_characters_max:
            raise UnreadableConversationError("too_long")
        if characters > self._limits.inline_characters_max:
            return self._later(pieces, [node.words for node in nodes[special:]], missing, special=special)
        return self._learn(pieces, known, nodes, list(map(tokenizer.encode, missing)), special=special)

    async def _whole(self, text: str) -> PromptTokens:
        """For tokenizers that add tokens depending on the text: it can only be tokenised whole."""
        words = await self._thread.encode(self.tokenizer, [text], add_special_tokens=True)
        return PromptTokens(*self._cache.walk_words(self._words_root, words[0]))

    async def _later(self, pieces: list[str], known: list[bytes], missing: list[str], *, special: bool) -> PromptTokens:
        words = await self._thread.encode(self._files.tokenizer, missing)
        # Others may have added or displaced nodes meanwhile: walk again.
        nodes = self._known(pieces, special=special)
        found = len(nodes) - special
        return self._learn(pieces, found, nodes, [*known, *words][found:], special=special)

    def _known(self, pieces: list[str], *, special: bool) -> list[PrefixNode]:
        """Return the remembered nodes that `pieces` begin with, after the root if it has tokens."""
        parent = self._special_root if special else self._plain_root
        nodes = [parent] if special else []
        self._cache.begin()
        if self.tokenizer.anchor is not None:
            find = self._cache.find
            for piece in pieces:
                node = find(parent, piece.encode())
                if node is None:
                    break
                nodes.append(node)
                parent = node
        return nodes

    def _learn(
        self, pieces: list[str], known: int, nodes: list[PrefixNode], words: list[bytes], *, special: bool
    ) -> PromptTokens:
        """Remember the words of `pieces` from number `known` on."""
        after = self._after if special else b""
        if self.tokenizer.anchor is None:
            before = nodes[0].words if special else b""
            return PromptTokens(*self._cache.walk_words(self._words_root, before + b"".join(words) + after))
        parent = nodes[-1] if nodes else self._plain_root
        for at, each in enumerate(words):
            node = self._cache.add(parent, pieces[known + at].encode(), each)
            if node is None:
                return PromptTokens(nodes, b"".join(words[at:]) + after)
            nodes.append(node)
            parent = node
        return PromptTokens(nodes, after)

    def _chat_text(self, chat: ChatFields) -> PromptText:
        if chat.chat_template is not None:
            raise UnreadableConversationError("request_template")
        tools = tool_definitions(decoded(chat.tools))
        template = self._template(tools)
        messages, media = conversation(
            decoded(chat.messages), as_parts=template.wants_parts, knows_developer=template.knows_developer
        )
        options = template_options(chat)
        text = template.render(
            messages,
            tools=tools,
            documents=options.pop("documents", None),
            add_generation_prompt=chat.add_generation_prompt is not False and not chat.continue_final_message,
            continue_final_message=bool(chat.continue_final_message),
            options=options,
        )
        return PromptText(text, chat.add_special_tokens is True, media)

    def _responses_text(self, chat: ResponsesFields) -> PromptText:
        if chat.previous_response_id is not None:
            raise UnreadableConversationError("previous_response")
        tools = responses_tools(decoded(chat.tools))
        template = self._template(tools)
        messages, media = conversation(
            responses_messages(decoded(chat.input), chat.instructions),
            as_parts=template.wants_parts,
            knows_developer=template.knows_developer,
        )
        return PromptText(template.render(messages, tools=tools), False, media)  # noqa: FBT003 - a named field

    def _template(self, tools: object) -> ChatTemplate:
        template = self._files.template_for(tools)
        if template is None:
            raise UnreadableConversationError("no_template")
        return template


def _check_text(text: str) -> None:
    """Refuse half characters: JSON within JSON, such as the arguments of a tool call, can smuggle them in."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(str(error)) from None
