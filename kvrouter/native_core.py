"""Whether the native core is here, and the one place that decides it.

Everything in it has a reference implementation in Python with the same contract: callers ask `present` and take one or
the other. The environment variable `KVROUTER_PURE=1` keeps the core out; so does an installation that could not build
it, whose `absence` then says what to do.
"""

import os
from typing import TYPE_CHECKING, Literal

__all__ = ["PURE_VARIABLE", "absence", "implementation", "native", "present"]

PURE_VARIABLE = "KVROUTER_PURE"


def _forced_pure() -> bool:
    return os.environ.get(PURE_VARIABLE, "").strip().lower() in {"1", "true", "yes", "on"}


absence: str | None = None
"""Why the core is not in use, in a sentence; None: it is."""

if TYPE_CHECKING:
    from kvrouter import _native as native
elif _forced_pure():
    native, absence = None, f"{PURE_VARIABLE} asks for the reference implementation"
else:
    try:
        from kvrouter import _native as native
    except ImportError as error:
        native, absence = (
            None,
            f"the native core is not installed ({error}); `pip install -v` says why it was not built",
        )

present: bool = native is not None
implementation: Literal["native", "reference"] = "native" if present else "reference"
