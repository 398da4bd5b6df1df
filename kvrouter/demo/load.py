"""Sends a workload: every conversation in a task of its own, each turn when it is due and its predecessor answered."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from kvrouter.demo.client import Answer
from kvrouter.demo.workload import Session, Workload

__all__ = ["Completes", "send"]


class Completes(Protocol):
    """Answers prompts of token ids, as `StreamingClient` does."""

    async def complete(self, prompt: list[int], *, model: str, answer_tokens: int, session: str) -> Answer:
        """Return the answer to one prompt."""
        ...


async def send(workload: Workload, client: Completes, *, model: str, answered: Callable[[Answer], None]) -> float:
    """Send everything, call `answered` for each answer, and return the seconds it took.

    The first failure ends the whole: a comparison with holes is none.

    Raises:
        AnswerError: a request failed.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.TaskGroup() as tasks:
            for session in workload.sessions:
                tasks.create_task(_converse(session, client, model, began, answered), name=session.name)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return loop.time() - began


async def _converse(
    session: Session, client: Completes, model: str, began: float, answered: Callable[[Answer], None]
) -> None:
    loop = asyncio.get_running_loop()
    prompt = list(session.system_tokens)
    for turn in session.turns:
        await asyncio.sleep(max(0.0, began + turn.due_seconds - loop.time()))
        prompt += turn.added_tokens
        answer = await client.complete(prompt, model=model, answer_tokens=turn.answer_tokens, session=session.name)
        answered(answer)
        prompt += answer.tokens
