"""Whether the native core is here, and the one place that decides it.

Everything in it has a reference implementation in Python with the same contract: callers ask `present` and take one or
the other. The environment variable `KVROUTER_PURE=1` keeps the core out; so does an installation that could not build
it, whose `absence` then says what to do.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

__all__ = ["PURE_VARIABLE", "absence", "implementation", "native", "present"]

PURE_VARIABLE = "KVROUTER_PURE"


def _forced_pure() -> bool:
    return os.environ.get(PURE_VARIABLE, "").strip().lower() in {"1", "true", "yes", "on"}


def _is_stale(library: str) -> bool:
    """Whether a checkout's sources have changed since its core was built; an installed package has no sources."""
    built = Path(library).stat().st_mtime
    return any(source.stat().st_mtime > built for source in Path(__file__).with_name("native").glob("*.[ch]"))


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
    else:
        if _is_stale(native.__file__):
            # An older core may lack what the Python beside it calls: slow is better than wrong.
            native, absence = None, "the native core is older than its sources; build it with: python hatch_build.py"

present: bool = native is not None
implementation: Literal["native", "reference"] = "native" if present else "reference"
