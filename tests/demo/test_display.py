"""What a person sees, where there is a terminal and where there is none."""

import io

import pytest
from rich.console import Console

from kvrouter.demo.display import Display
from kvrouter.demo.workload import conversations
from tests.demo.test_measures import measured


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_fits_into_eighty_columns(terminal: bool) -> None:
    """One line for each policy, never cut off, ending with its figures."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, color_system=None, width=80)
    workload = conversations(engines=2, seconds=5, seed=1)

    with Display(console) as display:
        display.introduce(workload, engines=2, cached_tokens=8192)
        with display.line("least-loaded", 1000) as show:
            show(measured(12.5, cached=50))

    assert "50% cached, first token 12500 ms" in text.getvalue()
    assert "…" not in text.getvalue()
    assert "least-loaded" in text.getvalue()
