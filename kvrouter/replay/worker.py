"""One simulated worker: continuous batching with chunked prefill, as `kvrouter.replay.engine.scheduler` has it.

That one takes every step; this one takes many at once. While a batch only decodes, nothing changes between two steps
but the length of each context, so all steps up to the next change are one span: until a request ends, needs or fills
a block, or arrives. Decisions, cache contents and times are those of the engine that takes every step; a test compares
the two. Pure: no clock, no router.

Whoever drives it calls `begin`, which returns how long the span takes, and `finish` when it is over; `interrupt` ends
a span early, at the end of the step that runs when a request arrives.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

from kvrouter.events import Event
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.worker_cache import WorkerCache

__all__ = ["Running", "Worker"]

_ENDS: Final = 0
_FILLS: Final = 1
_pack_own_key = Struct("<QQ").pack


class Running:
    """One request on a worker, from its arrival there to its end.

    `keys` are those of its blocks as far as they are known; others get keys that no other request has. `number` is
    the caller's; those keys are made of it.
    """

    __slots__ = (
        "answered", "blocks", "cached_tokens", "computed", "joined", "keys", "labelled", "number", "output_tokens",
        "preemptions", "prompt_tokens", "serial",
    )  # fmt: skip

    def __init__(self, number: int, keys: list[int], *, prompt_tokens: int, output_tokens: int) -> None:
        self.number = number
        self.keys = keys
        self.prompt_tokens, self.output_tokens = prompt_tokens, output_tokens
        self.blocks: list[int] = []
        self.computed = self.labelled = 0
        self.answered = 0
        """Output tokens, without those of the decode steps since `joined`."""
        self.joined = 0
        """The worker's number of steps when the request began to decode."""
        self.serial = 0
        """Its place among the running ones; a new one after each preemption."""
        self.cached_tokens: int | None = None
        """Prompt tokens that were found cached on first admission; None while it waits."""
        self.preemptions = 0


class Worker:
    """Requests in, first tokens and ends out."""

    __slots__ = (
        "_boundaries", "_context_tokens", "_decoding", "_interruptible", "_partial", "_rates", "_resumed",
        "_serials", "_span_prefill_seconds", "_span_steps", "_started", "busy_seconds", "cache", "first_tokens",
        "preemptions", "prefill_seconds", "prefilled_tokens", "steps", "waiting",
    )  # fmt: skip

    def __init__(self, rates: EngineRates, *, block_tokens: int) -> None:
        if rates.running_max >= rates.step_tokens_max:
            raise ValueError(f"running_max is {rates.running_max}; it must be below step_tokens_max")
        self.cache = WorkerCache(blocks=max(1, rates.cache_tokens // block_tokens), block_tokens=block_tokens)
        self.waiting: deque[Running] = deque()
        self.first_tokens: list[Running] = []
        """Those whose first token came with the last `finish`."""
        self.steps = self.preemptions = self.prefilled_tokens = 0
        self.busy_seconds = self.prefill_seconds = 0.0
        self._rates = rates
        # By serial, which is the order in which they began to run.
        self._decoding: dict[int, Running] = {}
        self._context_tokens = 0
        # The one whose prompt is computed in chunks; always the last that began to run.
        self._partial: Running | None = None
        # Those whose prompt is complete with this step.
        self._started: list[Running] = []
        # Steps after which something happens to a decoding request: (number of the step, what, serial).
        self._boundaries: list[tuple[int, int, int]] = []
        self._serials = self._span_steps = self._resumed = 0
        self._span_prefill_seconds = 0.0
        self._interruptible = False

    @property
    def running(self) -> int:
        """Requests that run, decoding or in prefill."""
        return len(self._decoding) + len(self._started) + (self._partial is not None)

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a request can ever run here: all its tokens must fit into the empty cache."""
        return self.cache.blocks_for(prompt_tokens + output_tokens) <= self.cache.pool.blocks

    def submit(self, request: Running) -> None:
        """Queue a request, which must fit."""
        self.waiting.append(request)

    def lose_all(self) -> list[Running]:
        """Restart with an empty cache; returns the requests that are lost."""
        lost = [*self._decoding.values(), *([self._partial] if self._partial else []), *self._started, *self.waiting]
        self._decoding.clear()
        self._boundaries.clear()
        self._started.clear()
        self.waiting.clear()
        self._partial, self._context_tokens, self._span_steps = None, 0, 0
        self.cache.clear()
        return lost

    def take_events(self) -> list[Event]:
        """Return what happened to the cache since the last call."""
        return self.cache.take_events()

    # -- one span ------------------------------------------------------------------------------------------------------

    def begin(self) -> float | None:
        """Decide what comes next; returns how long it takes, None if there is nothing to do.

        A span in which a prompt is computed is one step.
        """
        self._span_prefill_seconds, self._resumed = 0.0, 0
        preempted = self._cross_boundaries()
        decoding = len(self._decoding)
        budget = self._rates.step_tokens_max - decoding
        if self._partial is not None:
            taken = self._compute(self._partial, budget)
            budget -= taken
            preempted = preempted or not taken
        if not preempted:
            self._admit(budget)
        self._interruptible = not self.waiting
        if self._started or self._partial is not None:
            self._span_steps = 1
            return self._rates.step(self._span_prefill_seconds, decoding + self._resumed, self._context_tokens)
        if not decoding:
            return None
        self._span_steps = self._boundaries[0][0] - self.steps
        return self._rates.steps(self._span_steps, decoding, self._context_tokens)

    def interrupt(self, elapsed: float) -> float | None:
        """End the span with the step that runs `elapsed` seconds after its begin.

        Returns the new length of the span, None if it stays as it is: who waits already is waited for.
        """
        if self._span_steps < 2 or not self._interruptible:
            return None
        decoding, context = len(self._decoding), self._context_tokens
        steps = self._rates.steps_within(elapsed, decoding, context)
        if steps >= self._span_steps:
            return None
        self._span_steps = steps
        return self._rates.steps(steps, decoding, context)

    def finish(self, seconds: float) -> list[Running]:
        """End the span, which took so long; returns the requests that ended with it, and sets `first_tokens`."""
        self.steps += self._span_steps
        self.busy_seconds += seconds
        self.prefill_seconds += self._span_prefill_seconds
        self._context_tokens += self._span_steps * len(self._decoding)
        ended = self._end_due()
        self.first_tokens = []
        for request in self._started:
            if not request.answered:
                self.first_tokens.append(request)
            request.answered = min(request.answered + 1, request.output_tokens)
            if request.answered == request.output_tokens:
                self.cache.pool.release(request.blocks)
                ended.append(request)
            else:
                self._join(request)
        self._started.clear()
        return ended

    # -- decoding ------------------------------------------------------------------------------------------------------

    def _join(self, request: Running) -> None:
        """Let a request whose prompt is computed decode from now on."""
        request.joined = self.steps
        self._decoding[request.serial] = request
        context = request.prompt_tokens + request.answered - 1
        self._context_tokens += context
        heappush(self._boundaries, (self._end_of(request), _ENDS, request.serial))
        self._note_fill(request, self.steps, context)

    def _end_of(self, request: Running) -> int:
        return request.joined + request.output_tokens - request.answered

    def _note_fill(self, request: Running, step: int, context: int) -> None:
        """Note the next step that needs a block for the request or fills one; it has `context` tokens after `step`."""
        size = self.cache.block_tokens
        filled = context % size
        due = step if filled in (0, size - 1) else step + size - 1 - filled
        if due < self._end_of(request):
            heappush(self._boundaries, (due, _FILLS, request.serial))

    def _end_due(self) -> list[Running]:
        boundaries, steps, ended = self._boundaries, self.steps, []
        while boundaries and boundaries[0][0] <= steps and boundaries[0][1] == _ENDS:
            request = self._decoding.pop(heappop(boundaries)[2], None)
            if request is not None:
                self._context_tokens -= request.prompt_tokens + request.output_tokens - 1
                request.answered = request.output_tokens
                self.cache.pool.release(request.blocks)
                ended.append(request)
        return ended

    def _cross_boundaries(self) -> bool:
        """Give blocks to those who need one for the next step, cache what it fills; tell whether one was preempted."""
        boundaries, preempted = self._boundaries, False
        while boundaries and boundaries[0][0] <= self.steps:
            _, what, serial = heappop(boundaries)
            request = self._decoding.get(serial)
            if request is None or what != _FILLS:
                continue
            context = request.prompt_tokens + request.answered + self.steps - request.joined - 1
            if context % self.cache.block_tokens == 0:
                while not self.cache.pool.free:
                    preempted = True
                    if self._preempt_last() is request:
                        break
                else:
                    request.blocks += self.cache.take(1)
            if serial in self._decoding:
                self._label(request, context + 1)
                self._note_fill(request, self.steps + 1, context + 1)
        return preempted

    def _preempt_last(self) -> Running:
        """Take the blocks of the request that began to run last; it is computed again later."""
        if self._partial is not None:
            last, self._partial = self._partial, None
        else:
            _, last = self._decoding.popitem()
            last.answered += self.steps - last.joined
            self._context_tokens -= last.prompt_tokens + last.answered - 1
        self.cache.pool.release(last.blocks)
        last.blocks, last.computed, last.labelled = [], 0, 0
        last.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(last)
        return last

    # -- prefill -------------------------------------------------------------------------------------------------------

    def _admit(self, budget: int) -> None:
        """Start those that wait, in order of arrival, while budget, places and blocks last."""
        cache, waiting = self.cache, self.waiting
        places = self._rates.running_max - self.running
        while waiting and budget > 0 and places > 0:
            request = waiting[0]
            total = request.prompt_tokens + request.answered
            hit = cache.hit(self._keys(request, total), total)
            cached = len(hit) * cache.block_tokens
            tokens = min(total - cached, budget)
            if not cache.fits(hit, cached + tokens):
                break
            if request.cached_tokens is None:
                request.cached_tokens = cached
            waiting.popleft()
            cache.pool.share(hit)
            request.blocks, request.labelled, request.computed = hit, len(hit), cached
            self._serials += 1
            request.serial = self._serials
            budget -= self._compute(request, tokens)
            places -= 1

    def _compute(self, request: Running, budget: int) -> int:
        """Compute the next chunk of a prompt; returns its tokens, 0 if there were no blocks and it was preempted."""
        cache = self.cache
        total = request.prompt_tokens + request.answered
        tokens = min(total - request.computed, budget)
        after = request.computed + tokens
        missing = cache.blocks_for(after) - len(request.blocks)
        if missing > cache.pool.free:
            self._partial = request
            self._preempt_last()
            return 0
        if missing > 0:
            request.blocks += cache.take(missing)
        if tokens == 1 and request.answered:
            self._resumed += 1  # all else of a preempted request was still cached: this is a decode step
        else:
            self._span_prefill_seconds += self._rates.prefill_seconds(tokens, request.computed)
        self.prefilled_tokens += tokens
        request.computed = after
        self._label(request, after)
        if after == total:
            self._partial = None
            self._started.append(request)
        else:
            self._partial = request
        return tokens

    def _label(self, request: Running, computed: int) -> None:
        """Cache the blocks that the first `computed` tokens fill and that are not cached yet."""
        first, full = request.labelled, computed // self.cache.block_tokens
        if full > first:
            keys = self._keys(request, computed)
            self.cache.label(request.blocks[first:full], keys[first:full])
            request.labelled = full

    def _keys(self, request: Running, tokens: int) -> list[int]:
        """Return keys for all full blocks of so many tokens; unknown ones are made up, each for one request only."""
        keys, full = request.keys, tokens // self.cache.block_tokens
        if len(keys) < full:
            own = [xxh3_64_intdigest(_pack_own_key(request.number, block)) for block in range(len(keys), full)]
            keys = request.keys = keys + own
        return keys
