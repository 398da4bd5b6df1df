"""Turns a body into the prompt that routing compares with what workers hold; never fails a request.

Three modes, per model: `tokenizer` (its tokenizer.json and chat template, here), `worker` (the worker's own /tokenize)
and `byte-blocks` (no tokens known). Where a mode cannot serve one request, that request falls back to byte-blocks and
the reason is counted. Token ids are used as they are in every mode.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from kvrouter.blocks import Prompt
from kvrouter.errors import OverloadedError
from kvrouter.service.prompts.body import InferenceBody
from kvrouter.service.prompts.byte_blocks import byte_prompt
from kvrouter.service.prompts.chat_template import ChatTemplateError
from kvrouter.service.prompts.conversation import UnreadableConversationError
from kvrouter.service.prompts.encode_thread import EncodeThread
from kvrouter.service.prompts.local_tokens import LocalTokens, TextLimits
from kvrouter.service.prompts.model_files import load_model_files
from kvrouter.service.prompts.prefix_cache import CachedPrompt, PrefixCache, PrefixNode
from kvrouter.service.prompts.repeats import PromptTokens, RepeatedPrompts, deciding_bytes
from kvrouter.service.prompts.text_tokenizer import TokenizerError
from kvrouter.service.prompts.worker_tokenizer import (
    AskWorker,
    WorkerLimits,
    WorkerTokenizeError,
    WorkerTokenizer,
    tokenize_request,
)

__all__ = ["PromptMode", "PromptResolver", "PromptStatistics"]

PromptMode: TypeAlias = Literal["tokenizer", "worker", "byte-blocks"]

_TEXT_LIMITS, _WORKER_LIMITS = TextLimits(), WorkerLimits()

_DESCRIPTIONS: dict[PromptMode, str] = {
    "tokenizer": "tokenizer: prompts are tokenised here",
    "worker": "worker: prompts are tokenised by the worker's /tokenize; byte-blocks where it has none",
    "byte-blocks": "byte-blocks: no tokenizer, so only what this router sent counts as cached, not workers' events",
}


class PromptStatistics:
    """Plain counters; a collector reads them."""

    __slots__ = ("batches", "byte_blocks", "fallbacks", "media", "token_ids", "tokenizer", "worker")

    def __init__(self) -> None:
        self.token_ids = self.tokenizer = self.worker = self.byte_blocks = 0
        """Prompts by how they were resolved; byte_blocks includes the fallbacks."""
        self.media = 0
        """Prompts with images and the like: what follows the first one is not what the engine sees."""
        self.batches = 0
        """Bodies with several prompts, of which the first one was routed by."""
        self.fallbacks: dict[str, int] = {}
        """Prompts that their model's mode could not serve, by reason."""


class PromptResolver:
    """Resolves bodies to prompts. Lives on one event loop; `cache` is shared with the `RequestReader`."""

    def __init__(
        self,
        cache: PrefixCache,
        *,
        ask_worker: AskWorker | None = None,
        text_limits: TextLimits = _TEXT_LIMITS,
        worker_limits: WorkerLimits = _WORKER_LIMITS,
        repeats_max: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.statistics = PromptStatistics()
        self._cache, self._ask_worker, self._clock = cache, ask_worker, clock
        self._text_limits, self._worker_limits = text_limits, worker_limits
        self._bytes_root, self._worker_root = cache.root(), cache.root()
        self._thread = EncodeThread(jobs_max=text_limits.jobs_max)
        self._local: dict[str, LocalTokens] = {}
        self._workers: dict[str | None, WorkerTokenizer] = {}
        self._adapters: dict[str, str] = {}
        self._repeats = RepeatedPrompts(cache, entries_max=repeats_max)

    def close(self) -> None:
        """Stop the thread."""
        self._thread.close()

    @property
    def waiting(self) -> int:
        """Texts that wait for the tokenizer thread."""
        return self._thread.waiting

    def add_model(self, model: str, *, tokenizer: Path, chat_template: Path | None = None) -> None:
        """Tokenise the prompts of `model` here.

        Raises:
            SettingsError: a file is missing or damaged.
        """
        files = load_model_files(tokenizer, chat_template=chat_template)
        self._local[model] = LocalTokens(files, self._cache, self._thread, self._text_limits)

    def set_adapters(self, adapters: Mapping[str, str]) -> None:
        """Say which model names are LoRA adapters, and of which model: they share its tokenizer, not its blocks."""
        self._adapters = dict(adapters)

    def mode(self, model: str | None) -> PromptMode:
        """Return how prompts of `model` become tokens."""
        base = self._adapters.get(model, model) if model is not None else None
        if self._local_tokens(base) is not None:
            return "tokenizer"
        return "byte-blocks" if self._ask_worker is None else "worker"

    def describe(self, model: str | None) -> str:
        """Return the mode of `model` in a sentence, for /readyz and the log."""
        return _DESCRIPTIONS[self.mode(model)]

    def counts(self) -> dict[str, int]:
        """Return every counter by name, for metrics; reasons of fallbacks are `fallback_REASON`."""
        statistics, cache = self.statistics, self._cache
        names = [name for name in PromptStatistics.__slots__ if name != "fallbacks"]
        counts = {name: getattr(statistics, name) for name in names}
        counts |= {f"fallback_{reason}": number for reason, number in statistics.fallbacks.items()}
        return counts | {"repeats": self._repeats.hits, "prefix_hits": cache.hits, "prefix_misses": cache.misses}

    def resolve(self, body: InferenceBody, *, model_profile: str | None) -> Prompt | Awaitable[Prompt] | None:
        """Return the prompt, or what to await for it; None where the body has none.

        `model_profile` is the model whose tokenizer is meant: the one that the body names, or the service's default.
        """
        if body.is_usual and not self._adapters:
            self.statistics.token_ids += 1
            return Prompt(body.words)  # nothing to look up: the most frequent case should cost least
        if body.batch > 1:
            self.statistics.batches += 1
        if body.kind == "none":
            return None
        base = self._adapters.get(model_profile, model_profile) if model_profile is not None else None
        salt = body.cache_salt.encode() if body.cache_salt else b""
        asked = _Asked(body, model_profile, salt, None if base == model_profile else model_profile)
        if body.kind == "token_ids":
            self.statistics.token_ids += 1
            return self._prompt(asked, body.nodes, body.words)
        local = self._local_tokens(base)
        if local is not None:
            return self._tokenized(local, asked)
        return self._bytes(asked) if self._ask_worker is None else self._from_worker(asked)

    # -- tokenizer -----------------------------------------------------------------------------------------------------

    def _tokenized(self, local: LocalTokens, asked: "_Asked") -> Prompt | Awaitable[Prompt]:
        key = None
        if not local.depends_on_time(asked.body):
            key = self._repeats.digest(deciding_bytes(asked.body, local))
            repeated = self._repeats.get(key)
            if repeated is not None:
                self.statistics.tokenizer += 1
                return self._prompt(asked, *repeated)
        try:
            text = local.text(asked.body)
            found = local.tokens(text)
        except (ChatTemplateError, UnreadableConversationError, TokenizerError) as error:
            return self._fall_back(_reason(error), asked)
        self.statistics.media += text.media > 0
        if isinstance(found, PromptTokens):
            return self._use_tokens(found, key, asked)
        return self._tokenized_later(found, key, asked)

    async def _tokenized_later(self, found: Awaitable[PromptTokens], key: int | None, asked: "_Asked") -> Prompt:
        try:
            tokens = await found
        except (TokenizerError, OverloadedError) as error:
            return self._fall_back(_reason(error), asked)
        return self._use_tokens(tokens, key, asked)

    def _use_tokens(self, tokens: PromptTokens, key: int | None, asked: "_Asked") -> Prompt:
        if key is not None:
            self._repeats.put(key, tokens)
        self.statistics.tokenizer += 1
        return self._prompt(asked, *tokens)

    # -- worker --------------------------------------------------------------------------------------------------------

    def _from_worker(self, asked: "_Asked") -> Prompt | Awaitable[Prompt]:
        try:
            request = tokenize_request(asked.model, asked.body)
        except UnreadableConversationError as error:
            return self._fall_back(error.reason, asked)
        key = self._repeats.digest(request)
        repeated = self._repeats.get(key)
        if repeated is not None:
            self.statistics.worker += 1
            return self._prompt(asked, *repeated)
        worker = self._worker_tokenizer(asked.model)
        if worker is None:
            return self._fall_back("worker_models", asked)
        refusal = worker.refusal
        return self._ask(worker, request, key, asked) if refusal is None else self._fall_back(refusal, asked)

    async def _ask(self, worker: WorkerTokenizer, request: bytes, key: int, asked: "_Asked") -> Prompt:
        try:
            words = await worker.tokenize(request)
        except WorkerTokenizeError as error:
            return self._fall_back(error.reason, asked)
        tokens = PromptTokens(*self._cache.walk_words(self._worker_root, words))
        self._repeats.put(key, tokens)
        self.statistics.worker += 1
        return self._prompt(asked, *tokens)

    def _worker_tokenizer(self, model: str | None) -> WorkerTokenizer | None:
        worker = self._workers.get(model)
        if worker is None and self._ask_worker is not None:
            limits = self._worker_limits
            if len(self._workers) >= limits.models_max:
                # Names come from clients: whoever waits for nothing makes room for the next one.
                idle = [name for name, each in self._workers.items() if not each.running]
                if not idle:
                    return None
                del self._workers[idle[0]]
            worker = WorkerTokenizer(model, self._ask_worker, limits, clock=self._clock)
            self._workers[model] = worker
        return worker

    # -- all modes -----------------------------------------------------------------------------------------------------

    def _fall_back(self, reason: str, asked: "_Asked") -> Prompt:
        fallbacks = self.statistics.fallbacks
        fallbacks[reason] = fallbacks.get(reason, 0) + 1
        return self._bytes(asked)

    def _bytes(self, asked: "_Asked") -> Prompt:
        self.statistics.byte_blocks += 1
        return byte_prompt(self._cache, self._bytes_root, asked.body, asked.salt, asked.lora)

    def _prompt(self, asked: "_Asked", nodes: Sequence[PrefixNode], tail: bytes) -> Prompt:
        prompt = CachedPrompt(self._cache, nodes, tail, salt=asked.salt, lora=asked.lora)
        most = asked.body.truncate_prompt_tokens
        if most is not None and prompt.tokens > most:
            # vLLM keeps the end of a prompt that it truncates.
            return Prompt(prompt.token_ids[-4 * most :], salt=asked.salt, lora=asked.lora)
        return prompt

    def _local_tokens(self, model: str | None) -> LocalTokens | None:
        if model is None:
            return next(iter(self._local.values())) if len(self._local) == 1 else None
        return self._local.get(model)


class _Asked(msgspec.Struct, eq=False, frozen=True, gc=False):
    """One request on its way to a prompt."""

    body: InferenceBody
    model: str | None
    salt: bytes
    lora: str | None


def _reason(error: Exception) -> str:
    match error:
        case UnreadableConversationError():
            return error.reason
        case ChatTemplateError():
            return "template_error"
        case OverloadedError():
            return "thread_busy"
        case _:
            return "tokenizer_error"
