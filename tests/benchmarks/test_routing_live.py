"""What the comparison of simulated and real runs sends and says."""

from __future__ import annotations

from benchmarks.report import Report
from benchmarks.routing_live import Seen, add_rows, chats, prompt_tokens, simulated_run
from kvrouter.demo.fleet import BLOCK_SIZE


def seen(hit_share: float, ttft: float) -> Seen:
    """What a policy reached."""
    return Seen(hit_share=hit_share, ttft_mean=ttft, ttft_p90=2 * ttft, ttft_p99=3 * ttft)


def test_equal_beginnings_are_equal_tokens() -> None:
    """As many tokens as the trace says, the same ones as far as the turn before goes."""
    turns = chats(80, 1).turns
    follower = next(turn for turn in turns if turn.follows is not None)
    before = turns[follower.follows or 0]
    shared = before.input_tokens // BLOCK_SIZE * BLOCK_SIZE

    first, second = prompt_tokens(before, 1), prompt_tokens(follower, 2)

    assert (len(first), len(second)) == (before.input_tokens, follower.input_tokens)
    assert first[:shared] == second[:shared]


def test_answers_are_no_part_of_what_is_known() -> None:
    """An engine writes its own."""
    assert all(len(turn.keys) == turn.input_tokens // BLOCK_SIZE for turn in chats(40, 1).turns)


def test_the_same_chats_are_simulated() -> None:
    """Sticky sessions hit most of what there is."""
    trace = chats(60, 1)

    assert simulated_run(trace, "sticky", 0).hit_share > simulated_run(trace, "round-robin", 0).hit_share


def test_what_other_orders_of_arrival_would_give_is_chance() -> None:
    """One real run is one of them: it need not be their mean."""
    report = Report("routing_live")

    add_rows(report, {"a": [seen(0.40, 1.0), seen(0.50, 1.0)]}, {"a": seen(0.49, 1.0)})

    rows = {str(row["name"]): row["ours"] for row in report.rows}
    assert rows["hit-share-largest-difference"] == 4.0
    assert rows["hit-share-beyond-chance"] == 0.0


def test_agreement_is_summed_up() -> None:
    """The largest difference, and the pairs that are ranked alike of those that differ."""
    report = Report("routing_live")
    simulated = {"a": [seen(0.80, 1.0), seen(0.84, 1.0)], "b": [seen(0.40, 2.0)] * 2, "c": [seen(0.40, 2.1)] * 2}

    add_rows(report, simulated, {"a": seen(0.80, 1.1), "b": seen(0.35, 3.0), "c": seen(0.40, 2.9)})

    rows = {str(row["name"]): row for row in report.rows}
    assert rows["a-hit-share"]["ours"] == 0.82
    assert rows["a-hit-share"]["simulated_to"] == 0.84
    assert rows["hit-share-largest-difference"]["ours"] == 5.0
    assert rows["hit-share-beyond-chance"]["ours"] == 5.0
    assert (rows["pairs-ranked-alike"]["ours"], rows["pairs-ranked-alike"]["reason"]) == (
        2,
        "of 2 that really differ in mean TTFT",
    )
