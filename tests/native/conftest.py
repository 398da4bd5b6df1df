"""Tests of the native core itself need it; `test_presence` sees to it that it is there wherever it can be built."""

from kvrouter import native_core

collect_ignore = [] if native_core.present else ["test_hashing.py", "test_json_tokens.py", "test_xxh3.py"]
