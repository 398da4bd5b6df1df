"""The demo's workload: repeatable, shared at the front, due at fixed times, and the question it is meant to be."""

from itertools import pairwise

from kvrouter.demo.story import FLEET_ROOM
from kvrouter.demo.workload import APPLICATIONS, conversations


def test_equal_arguments_give_equal_workloads() -> None:
    """Both policies get the same requests; another seed gives others."""
    one = conversations(engines=4, seconds=18, seed=1)

    assert one == conversations(engines=4, seconds=18, seed=1)
    assert one != conversations(engines=4, seconds=18, seed=2)


def test_conversations_share_system_prompts_and_nothing_else() -> None:
    """A few applications, many users, each with something of their own to talk about."""
    workload = conversations(engines=4, seconds=18, seed=1)

    systems = {session.system_tokens for session in workload.sessions}
    first_messages = {session.turns[0].added_tokens for session in workload.sessions}
    assert 1 < len(systems) <= APPLICATIONS
    assert len(first_messages) == len(workload.sessions)


def test_turns_are_due_in_order_and_within_the_time() -> None:
    """And the first one at once."""
    workload = conversations(engines=2, seconds=10, seed=3)

    for session in workload.sessions:
        dues = [turn.due_seconds for turn in session.turns]
        assert all(before < after for before, after in pairwise(dues))
        assert 0 <= dues[0] <= dues[-1] < 10
    assert workload.sessions[0].turns[0].due_seconds == 0


def test_one_engine_cannot_hold_what_the_fleet_can() -> None:
    """That is what makes it a question of routing, and not of memory."""
    workload = conversations(engines=4, seconds=18, seed=1)

    fleet = FLEET_ROOM * workload.distinct_tokens
    assert fleet / 4 < 0.5 * workload.distinct_tokens < workload.distinct_tokens < fleet


def test_the_load_grows_with_the_fleet_and_the_time() -> None:
    """Unless the number of conversations is given."""
    small, large = conversations(engines=2, seconds=10, seed=1), conversations(engines=4, seconds=20, seed=1)
    given = conversations(engines=4, seconds=20, seed=1, sessions=3)

    assert len(large.sessions) == 4 * len(small.sessions)
    assert len(given.sessions) == 3
    assert given.requests == sum(len(session.turns) for session in given.sessions)
