"""Tests of the core's memory need the core, and Python's own tool to let allocations fail."""

from importlib.util import find_spec

from kvrouter import native_core

collect_ignore = [] if native_core.present and find_spec("_testcapi") else ["test_predictions_memory.py"]
