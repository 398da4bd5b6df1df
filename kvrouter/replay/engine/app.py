"""The engine's routes: reads requests, runs them as jobs on a rank, writes answers."""

import secrets
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from kvrouter.errors import OverloadedError, RequestError
from kvrouter.replay.engine.answers import (
    Answer,
    ChatAnswer,
    CompletionAnswer,
    ResponseAnswer,
    embeddings,
)
from kvrouter.replay.engine.faults import KINDS, Faults
from kvrouter.replay.engine.http import Exchange
from kvrouter.replay.engine.metrics import EngineMetrics
from kvrouter.replay.engine.options import EngineOptions
from kvrouter.replay.engine.rank import Rank
from kvrouter.replay.engine.running import RunningWork
from kvrouter.replay.engine.tokenizer import Tokenizer
from kvrouter.replay.engine.transfer import Transfers
from kvrouter.replay.engine.work import Work, WorkReader

__all__ = ["App"]

Route = Callable[[Exchange], Awaitable[None]]


class App:
    """Answers every request of one engine."""

    def __init__(self, options: EngineOptions, ranks: Sequence[Rank], faults: Faults, transfers: Transfers) -> None:
        self._options, self._ranks, self._faults, self._transfers = options, ranks, faults, transfers
        self._tokenizer = Tokenizer()
        self._reader = WorkReader(options, self._tokenizer)
        self._metrics = EngineMetrics(options)
        self._started = int(time.time())
        self._routes: dict[tuple[str, str], Route] = {
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/responses"): self._responses,
            ("POST", "/v1/embeddings"): self._embeddings,
            ("GET", "/v1/models"): self._models,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/metrics"): self._show_metrics,
            ("POST", "/reset_prefix_cache"): self._reset_prefix_cache,
            ("GET", "/transfers"): self._show_transfers,
            ("GET", "/fault"): self._show_faults,
            ("POST", "/fault"): self._inject_fault,
        }

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request; every refusal has OpenAI's shape."""
        try:
            if exchange.path.startswith("/v1/") or exchange.path.endswith("tokenize"):
                if await self._faults.answer(exchange):
                    return
                self._authorize(exchange)
            await self._route(exchange)(exchange)
        except RequestError as error:
            await exchange.reply(error.status, _refusal(error.message, error.kind, error.status, error.param))
        except OverloadedError as error:
            await exchange.reply(
                503, _refusal(error.reason, "ServiceUnavailableError", 503), headers="retry-after: 1\r\n"
            )

    def _route(self, exchange: Exchange) -> Route:
        method = "GET" if exchange.method == "HEAD" else exchange.method
        route = self._routes.get((method, exchange.path))
        if route is not None:
            return route
        allowed = [known for known, path in self._routes if path == exchange.path]
        if allowed:
            raise RequestError(
                f"{exchange.path} takes {' or '.join(allowed)}", status=405, kind="MethodNotAllowedError"
            )
        raise RequestError(f"there is no {exchange.path} here", status=404, kind="NotFoundError")

    def _authorize(self, exchange: Exchange) -> None:
        key = self._options.api_key
        if key is None:
            return
        given = exchange.headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise RequestError("this engine wants its API key", status=401, kind="AuthenticationError")

    async def _completions(self, exchange: Exchange) -> None:
        body = _json(exchange)
        work = self._reader.completion(body)
        answer = CompletionAnswer(secrets.token_hex(12), work.model, return_token_ids=work.return_token_ids)
        await self._generate(exchange, body, work, answer)

    async def _chat(self, exchange: Exchange) -> None:
        body = _json(exchange)
        work = self._reader.chat(body)
        answer = ChatAnswer(secrets.token_hex(12), work.model, return_token_ids=work.return_token_ids)
        await self._generate(exchange, body, work, answer)

    async def _responses(self, exchange: Exchange) -> None:
        body = _json(exchange)
        work = self._reader.response(body)
        await self._generate(exchange, body, work, ResponseAnswer(secrets.token_hex(12), work.model))

    async def _embeddings(self, exchange: Exchange) -> None:
        body = _json(exchange)
        work = self._reader.embedding(body)
        with self._run(exchange, body, work) as running:
            async for _event in running.events():
                pass
            prompts = [prompt.tokens for prompt in work.prompts]
            await exchange.reply(200, embeddings(work.model, prompts, running.usage(), encoded=work.base64))

    async def _generate(self, exchange: Exchange, body: dict[str, Any], work: Work, answer: Answer) -> None:
        work = self._transfers.limited(work)
        transferred = await self._transfers.fetch(body, work)
        with self._run(exchange, body, work, transferred=transferred) as running:
            if work.stream:
                await self._stream(exchange, body, work, answer, running)
            else:
                await self._whole(exchange, body, work, answer, running)

    async def _stream(
        self, exchange: Exchange, body: dict[str, Any], work: Work, answer: Answer, running: RunningWork
    ) -> None:
        await exchange.start_stream()
        opening = answer.begin()
        if opening:
            await exchange.write(opening)
        async for index, token, reason in running.events():
            await exchange.write(answer.token(index, self._tokenizer.decode((token,)), token, reason))
            self._faults.chunk_sent(exchange)
        await self._transfers.prefilled(body, work, running.rank, secrets.token_hex(12))
        with_usage = work.include_usage or isinstance(answer, ResponseAnswer)
        await exchange.write(answer.end(running.usage() if with_usage else None))
        await exchange.end_stream()

    async def _whole(
        self, exchange: Exchange, body: dict[str, Any], work: Work, answer: Answer, running: RunningWork
    ) -> None:
        outputs = [array("I") for _ in work.prompts]
        async for index, token, _reason in running.events():
            outputs[index].append(token)
        choices = [
            (self._tokenizer.decode(tokens), tokens, prompt.finish_reason)
            for tokens, prompt in zip(outputs, work.prompts, strict=True)
        ]
        transfer = await self._transfers.prefilled(body, work, running.rank, secrets.token_hex(12))
        await exchange.reply(200, {**answer.whole(choices, running.usage()), **transfer})

    def _run(self, exchange: Exchange, body: dict[str, Any], work: Work, *, transferred: int = 0) -> RunningWork:
        rank = self._rank(exchange, body)
        if len(rank.scheduler.waiting) >= self._options.waiting_max:
            raise OverloadedError("too many requests wait already")
        return RunningWork(work, rank, self._metrics, self._tokenizer.words, transferred=transferred)

    def _rank(self, exchange: Exchange, body: dict[str, Any]) -> Rank:
        """Return the rank that the client asks for, else the one with the fewest requests, as vLLM's balancer does."""
        if self._options.dialect == "sglang":
            number = self._transfers.rank_asked(body)
            return self._ranks[number] if number is not None else self._least_busy()
        asked = exchange.headers.get("x-data-parallel-rank")
        if asked is None:
            return self._least_busy()
        if not asked.isdecimal() or int(asked) >= len(self._ranks):
            raise RequestError(
                f"data-parallel rank {asked!r} is not one of {len(self._ranks)}", param="data_parallel_rank"
            )
        return self._ranks[int(asked)]

    def _least_busy(self) -> Rank:
        return min(self._ranks, key=lambda rank: len(rank.scheduler.waiting) * 4 + len(rank.scheduler.running))

    async def _models(self, exchange: Exchange) -> None:
        base = self._options.model
        cards = [self._card(base, None, self._options.tokens_max)]
        cards += [self._card(adapter, base, None) for adapter in self._options.adapters]
        await exchange.reply(200, {"object": "list", "data": cards})

    def _card(self, name: str, parent: str | None, tokens_max: int | None) -> dict[str, Any]:
        owner = self._options.dialect
        card = {"id": name, "object": "model", "created": self._started, "owned_by": owner, "root": name}
        return {**card, "parent": parent, "max_model_len": tokens_max, "permission": []}

    async def _tokenize(self, exchange: Exchange) -> None:
        body = _json(exchange)
        tokens = self._reader.tokenize(body)
        texts = [self._tokenizer.decode((token,)) for token in tokens] if body.get("return_token_strs") else None
        longest = self._options.tokens_max
        await exchange.reply(
            200, {"count": len(tokens), "max_model_len": longest, "tokens": tokens.tolist(), "token_strs": texts}
        )

    async def _detokenize(self, exchange: Exchange) -> None:
        tokens = _json(exchange).get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) and token >= 0 for token in tokens):
            raise RequestError("tokens must be a list of token ids", param="tokens")
        await exchange.reply(200, {"prompt": self._tokenizer.decode(tokens)})

    async def _health(self, exchange: Exchange) -> None:
        await exchange.reply(503 if self._faults.unhealthy else 200)

    async def _version(self, exchange: Exchange) -> None:
        await exchange.reply(200, {"version": "kvrouter-simulated-engine"})

    async def _show_metrics(self, exchange: Exchange) -> None:
        await exchange.reply(
            200, self._metrics.render(self._ranks), content_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def _reset_prefix_cache(self, exchange: Exchange) -> None:
        cleared = [rank.clear_cache() for rank in self._ranks]
        await exchange.reply(200 if all(cleared) else 503, {"success": all(cleared), "ranks": cleared})

    async def _show_transfers(self, exchange: Exchange) -> None:
        await exchange.reply(200, self._transfers.report())

    async def _show_faults(self, exchange: Exchange) -> None:
        await exchange.reply(200, {"kinds": KINDS})

    async def _inject_fault(self, exchange: Exchange) -> None:
        self._faults.inject(_json(exchange))
        await exchange.reply(200, {"accepted": True})


def _json(exchange: Exchange) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(exchange.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body


def _refusal(message: str, kind: str, status: int, param: str | None = None) -> dict[str, Any]:
    names = {"invalid_request_error": "BadRequestError"}
    return {"error": {"message": message, "type": names.get(kind, kind), "param": param, "code": status}}
