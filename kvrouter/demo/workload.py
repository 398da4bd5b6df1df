"""What the demo asks: conversations, and why they are a fair question. Pure and seeded; nothing is sent here.

A conversation is one application's system prompt (shared by all its users), a first message with something to talk
about (a document, a stack trace, a file), and short follow-ups. Each turn sends the whole conversation again, as
the OpenAI API demands. That is what chat, retrieval and agent traffic look like, and what prefix caches are for.

Sizes are chosen so that the question is not decided by them:

- One engine's cache holds about a third of what is being talked about, all caches together hold half as much again
  as there is. With less, no policy could hit; with more, every engine would soon hold everything and none could miss.
- Under round robin the engines are busy for about half of the time: the comparison is not one of queues that grow
  without end, which would give any ratio one likes if only one waited longer.
- Turns are due at fixed times, whatever the answers take (an open loop), so that a slow fleet cannot slow down its
  own load. Only a turn whose predecessor is not answered yet has to wait: it needs the answer.

Two things are smaller than life, to fit into a minute, and in proportion: people think for longer than two seconds
between turns, and a real cache is larger; a real fleet has as many more conversations at a time.
"""

import random
from dataclasses import dataclass

__all__ = ["Session", "Turn", "Workload", "conversations"]

APPLICATIONS = 6
SESSIONS_PER_ENGINE_SECOND = 0.4
ARRIVALS_UNTIL = 0.6
"""Conversations begin in this part of the time, so that most of them come to their end."""
TOKEN_IDS = range(1000, 60_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One question: when it is due, what it adds, and how long the answer will be."""

    due_seconds: float
    added_tokens: tuple[int, ...]
    answer_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One conversation."""

    name: str
    system_tokens: tuple[int, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Conversations in order of arrival."""

    sessions: tuple[Session, ...]
    seconds: float

    @property
    def requests(self) -> int:
        """How many requests will be sent."""
        return sum(len(session.turns) for session in self.sessions)

    @property
    def distinct_tokens(self) -> int:
        """Tokens that a cache would need to hold everything: each application's prompt once, each session once."""
        systems = {session.system_tokens for session in self.sessions}
        own = (len(turn.added_tokens) + turn.answer_tokens for session in self.sessions for turn in session.turns)
        return sum(map(len, systems)) + sum(own)


def conversations(*, engines: int, seconds: float, seed: int, sessions: int | None = None) -> Workload:
    """Return the workload for a fleet of `engines`; equal arguments give equal workloads."""
    rng = random.Random(seed)
    count = sessions or max(2, round(SESSIONS_PER_ENGINE_SECOND * engines * seconds))
    systems = [_tokens(rng, rng.randint(600, 1200)) for _ in range(APPLICATIONS)]
    begins = sorted(rng.uniform(0, ARRIVALS_UNTIL * seconds) for _ in range(count))
    begins[0] = 0.0
    made = (_session(rng, number, rng.choice(systems), begin, seconds) for number, begin in enumerate(begins))
    return Workload(sessions=tuple(made), seconds=seconds)


def _session(rng: random.Random, number: int, system: tuple[int, ...], begin: float, seconds: float) -> Session:
    turns = [_turn(rng, begin, rng.randint(1200, 2800))]
    for _ in range(rng.randint(6, 10)):
        due = turns[-1].due_seconds + rng.uniform(1.0, 2.4)
        if due >= seconds:
            break
        turns.append(_turn(rng, due, rng.randint(40, 200)))
    return Session(name=f"session-{number}", system_tokens=system, turns=tuple(turns))


def _turn(rng: random.Random, due: float, tokens: int) -> Turn:
    return Turn(due_seconds=due, added_tokens=_tokens(rng, tokens), answer_tokens=rng.randint(8, 24))


def _tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.choices(TOKEN_IDS, k=count))
