"""Tests of the native core alone need it, and those of its memory Python's own tool to let allocations fail."""

from importlib.util import find_spec

from kvrouter import native_core

collect_ignore = [] if native_core.present else ["test_native_refusals.py"]
if not native_core.present or find_spec("_testcapi") is None:
    collect_ignore.append("test_predictions_memory.py")
