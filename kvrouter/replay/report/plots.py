"""Which plots the report has, and what is on their axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from kvrouter.replay.curves import Curves
from kvrouter.replay.findings import CapacityPoint, Findings
from kvrouter.replay.measures import Goal
from kvrouter.replay.plan import PlanRow
from kvrouter.replay.report.lines import WIDTH, Chart, Series, line_chart
from kvrouter.replay.report.words import percent, round_percent, round_seconds, seconds

__all__ = ["capacity_charts", "over_time", "plan_chart", "ttft_distribution"]

_WIDE: Final = 2 * WIDTH + 14
_SHARES: Final = (0.0, 1.0)
_MINUTES_FROM: Final = 300.0
# The fastest few of thousands of requests would take half of a logarithmic axis.
_PERCENTILE_FROM: Final = 1


def ttft_distribution(curves: Mapping[str, Curves], colours: Mapping[str, int], goal: Goal) -> str:
    """Which share of the requests had their first token within a time."""
    return line_chart(
        Chart(
            title="Who waited how long",
            note="share of requests with a first token within a time; further left and higher is better",
            x_label="time to first token",
            y_label="requests",
            series=[
                Series(
                    name=policy,
                    colour=colours[policy],
                    points=[
                        (max(value, 1e-4), share / 100)
                        for share, value in each.ttft_percentiles
                        if share >= _PERCENTILE_FROM
                    ],
                )
                for policy, each in curves.items()
            ],
            x_words=seconds,
            y_words=round_percent,
            x_tick=round_seconds,
            y_tick=round_percent,
            x_log=True,
            y_bounds=_SHARES,
            x_marks=[(goal.ttft_seconds, f"goal {round_seconds(goal.ttft_seconds)}")],
            width=_WIDE,
        )
    )


def over_time(curves: Mapping[str, Curves], colours: Mapping[str, int]) -> Iterator[str]:
    """Hits, times to first token and arrivals in the course of the trace."""
    in_minutes = max(each.times[-1] for each in curves.values()) > _MINUTES_FROM
    unit, words = (60.0, _minutes) if in_minutes else (1.0, round_seconds)
    yield line_chart(
        Chart(
            title="Hits over time",
            note="share of arriving prompt tokens that were cached",
            x_label="time of arrival",
            y_label="prompt tokens",
            series=_timed(curves, colours, "hit_share", unit),
            x_words=words,
            y_words=percent,
            x_tick=words,
            y_tick=round_percent,
            y_bounds=(0.0, _most(curves, "hit_share")),
        )
    )
    yield line_chart(
        Chart(
            title="Time to first token over time",
            note="mean of the requests that arrived then",
            x_label="time of arrival",
            y_label="mean TTFT",
            series=_timed(curves, colours, "ttft_mean", unit),
            x_words=words,
            y_words=seconds,
            x_tick=words,
            y_tick=round_seconds,
            y_log=None,
        )
    )


def capacity_charts(
    capacity: Mapping[str, Sequence[CapacityPoint]], colours: Mapping[str, int], findings: Findings
) -> Iterator[str]:
    """Times and goodput against the rate of requests."""
    now = next(
        (point.requests_per_second for points in capacity.values() for point in points if point.scale == 1.0), None
    )
    marks = [] if now is None else [(now, "this trace")]
    yield line_chart(
        Chart(
            title="Goodput by rate",
            note=f"share of requests with a first token within {round_seconds(findings.goal.ttft_seconds)}",
            x_label="requests per second",
            y_label="requests",
            series=[
                Series(
                    name=policy,
                    colour=colours[policy],
                    points=[(point.requests_per_second, point.goodput.mean) for point in points],
                )
                for policy, points in capacity.items()
            ],
            x_words=_rate,
            y_words=percent,
            x_tick=_plain,
            y_tick=round_percent,
            y_bounds=_SHARES,
            x_marks=marks,
            y_marks=[(findings.goodput, f"goal {round_percent(findings.goodput)}")],
        )
    )
    yield line_chart(
        Chart(
            title="Time to first token by rate",
            note="mean over all requests",
            x_label="requests per second",
            y_label="mean TTFT",
            series=[
                Series(
                    name=policy,
                    colour=colours[policy],
                    points=[(point.requests_per_second, max(point.ttft_mean.mean, 1e-4)) for point in points],
                )
                for policy, points in capacity.items()
            ],
            x_words=_rate,
            y_words=seconds,
            x_tick=_plain,
            y_tick=round_seconds,
            y_log=None,
            x_marks=marks,
        )
    )


def plan_chart(rows: Sequence[PlanRow], colours: Mapping[str, int], findings: Findings) -> str:
    """Goodput by number of workers, as far as numbers were tried."""
    return line_chart(
        Chart(
            title="Goodput by number of workers",
            note="the counts that were tried on the way",
            x_label="workers",
            y_label="requests",
            series=[
                Series(
                    name=row.policy, colour=colours[row.policy], points=[(float(at), share) for at, share in row.tried]
                )
                for row in rows
            ],
            x_words=_plain,
            y_words=percent,
            x_tick=_plain,
            y_tick=round_percent,
            x_log=None,
            y_bounds=_SHARES,
            y_marks=[(findings.goodput, f"goal {round_percent(findings.goodput)}")],
            width=_WIDE,
        )
    )


def _timed(curves: Mapping[str, Curves], colours: Mapping[str, int], field: str, unit: float) -> list[Series]:
    return [
        Series(
            name=policy,
            colour=colours[policy],
            points=[(time / unit, _above(value)) for time, value in zip(each.times, getattr(each, field), strict=True)],
        )
        for policy, each in curves.items()
    ]


def _above(value: float | None) -> float | None:
    return None if value is None else max(value, 1e-4)


def _most(curves: Mapping[str, Curves], field: str) -> float:
    values: list[float] = [value for each in curves.values() for value in getattr(each, field) if value is not None]
    return min(1.0, max([0.05, *values]))


def _minutes(value: float) -> str:
    return f"{value:.3g} min"


def _rate(value: float) -> str:
    return f"{value:.3g} requests/s"


def _plain(value: float) -> str:
    return f"{value:g}"
