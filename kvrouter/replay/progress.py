"""Progress on standard error while simulations run; nothing where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

__all__ = ["Progress"]


class Progress:
    """One bar for each part of the work."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._bars = Bars(
            TextColumn("[bold]{task.description:<10}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[runs]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=5,
            transient=True,
            disable=quiet or not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    @contextmanager
    def part(self, what: str, runs: int) -> Iterator[Callable[[Sequence[float]], None]]:
        """Show a bar; call what it gives with the share of each run that is done."""
        task = self._bars.add_task(what, total=runs, runs=f"0/{runs} runs")

        def tick(shares: Sequence[float]) -> None:
            done = sum(share >= 1.0 for share in shares)
            self._bars.update(task, completed=sum(shares), runs=f"{done}/{runs} runs")

        yield tick
        self._bars.update(task, completed=runs, runs=f"{runs}/{runs} runs")
