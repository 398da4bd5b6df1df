"""Tests of the native index need the native core; `tests/native/test_presence.py` sees to it that it is there."""

from importlib.util import find_spec

from kvrouter import native_core

collect_ignore = (
    []
    if native_core.present
    else [
        "test_native.py",
        "test_ingested_chains.py",
        "test_mapped.py",
        "test_mapped_processes.py",
    ]
)
if not native_core.present or find_spec("_testcapi") is None:
    collect_ignore.append("test_native_memory.py")  # Python's own tool to let allocations fail.
