"""What a person sees: progress while the requests run, a table at the end, and commands to try."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvrouter.demo.fleet import MODEL, Fleet
from kvrouter.demo.measures import Measures
from kvrouter.demo.workload import Workload

__all__ = ["Display", "comparison_table", "suggestions"]


class Display:
    """Live progress on standard error, one line for each policy; plain text where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=5,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def introduce(self, workload: Workload, *, engines: int, cached_tokens: int) -> None:
        """Say what is about to happen."""
        self._console.print(
            f"{workload.requests} requests of {len(workload.sessions)} conversations about "
            f"{workload.distinct_tokens:,} distinct tokens; {engines} engines with room for {cached_tokens:,} each.",
            soft_wrap=True,
        )

    def started(self, policy: str, fleet: Fleet) -> None:
        """Say where everything is, for whoever wants to look while it runs."""
        engines = " ".join(engine["url"] for engine in fleet.engines)
        self._console.print(f"{policy}: router {fleet.url} engines {engines}", soft_wrap=True, highlight=False)

    @contextmanager
    def line(self, policy: str, requests: int) -> Iterator[Callable[[Measures], None]]:
        """Add a line for one policy; call what it gives with the figures so far."""
        task = self._progress.add_task(policy, total=requests, figures="")
        latest: list[Measures] = []

        def show(measures: Measures) -> None:
            latest[:] = [measures]
            self._progress.update(task, completed=measures.requests, figures=_figures(measures))

        yield show
        self._progress.stop_task(task)
        if latest and not self._console.is_terminal:
            self._console.print(f"{policy}: {latest[0].requests} requests, {_figures(latest[0])}", soft_wrap=True)


def comparison_table(first: Measures, second: Measures, *, policy: str) -> Table:
    """Return the table that the demo ends with; ratios above 1 mean that `policy` is better."""
    table = Table(title="the same requests, first round robin, then " + policy)
    for heading in ("", "round-robin", policy, "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row(
        "prompt tokens found in cache",
        f"{first.cached_token_share:.1%}",
        f"{second.cached_token_share:.1%}",
        _times(second.cached_token_share, first.cached_token_share),
    )
    for name, before, after in (
        ("time to first token, mean", first.ttft_mean_seconds, second.ttft_mean_seconds),
        ("time to first token, p50", first.ttft_seconds(0.5), second.ttft_seconds(0.5)),
        ("time to first token, p99", first.ttft_seconds(0.99), second.ttft_seconds(0.99)),
    ):
        table.add_row(name, _milliseconds(before), _milliseconds(after), _times(before, after))
    table.add_row(
        "requests per second",
        f"{first.requests_per_second:.1f}",
        f"{second.requests_per_second:.1f}",
        _times(second.requests_per_second, first.requests_per_second),
    )
    return table


def suggestions(fleet: Fleet) -> str:
    """Return commands that show what the running fleet can do."""
    url, engine = fleet.url, fleet.engines[0]["url"]
    tokens = list(range(33))
    text = "What is a prefix cache good for? " + "Please explain it to me at length. " * 8
    completion = f'{{"model": "{MODEL}", "prompt": "{text}", "max_tokens": 16}}'
    chat = f'{{"model": "{MODEL}", "stream": true, "messages": [{{"role": "user", "content": "hello"}}]}}'
    by_token = f'{{"model": "{MODEL}", "prompt": {tokens}, "max_tokens": 1}}'
    overlap = f'{{"model_name": "{MODEL}", "token_ids": {tokens}}}'
    return f"""\
The fleet is still running; Ctrl-C stops it. Try:

  # a completion, twice: the headers say which engine answered, and how much of the prompt was cached there
  curl -i {url}/v1/completions -d '{completion}'

  # chat, streamed
  curl -N {url}/v1/chat/completions -d '{chat}'

  # cache a prompt of token ids somewhere, then ask which engine holds how much of it
  curl {url}/v1/completions -d '{by_token}'
  curl {url}/overlap_scores -d '{overlap}'

  # what the router hears from each engine
  curl {url}/sources

  # workers, readiness, metrics; the last decisions and their reasons
  curl {url}/workers
  curl {url}/readyz
  curl {url}/metrics
  curl {url}/decisions

  # break an engine and look again: an empty cache in place, or the end of the process
  curl {engine}/fault -d '{{"kind": "restart_cache"}}'
  curl {engine}/fault -d '{{"kind": "die"}}'
"""


def _figures(measures: Measures) -> str:
    """Say it in little enough for a line of 80 columns."""
    return f"{measures.cached_token_share:.0%} cached, first token {_milliseconds(measures.ttft_mean_seconds)}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _times(better: float, worse: float) -> str:
    return f"{better / worse:.1f} x" if worse else "-"
