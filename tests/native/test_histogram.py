"""The native core trusts nobody about what the bounds of a histogram are."""

from typing import Any

import pytest

from kvrouter import native_core

native: Any = native_core.native  # what is given here is wrong on purpose


@pytest.mark.parametrize("bounds", [[1.0], (1.0,) * 33, ("a",), 5])
def test_the_core_refuses_what_are_no_bounds(bounds: object) -> None:
    """They are a short tuple of numbers."""
    with pytest.raises(TypeError):
        native.Histogram(bounds)


def test_the_core_refuses_what_is_no_value() -> None:
    """And counts nothing then."""
    histogram = native.Histogram((1.0,))

    with pytest.raises(TypeError):
        histogram.observe("much")
    assert (histogram.counts, histogram.total) == ([0, 0], 0.0)
