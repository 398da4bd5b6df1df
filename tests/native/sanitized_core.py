"""A pytest plugin that takes another core than the installed one: `-p tests.native.sanitized_core --core PATH`.

Used in the processes that `test_sanitized` starts, and by whoever looks for a bug with a core of their own making.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the path of the core."""
    parser.addoption("--core", type=Path, required=True, help="the core to test")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before any test is imported, because tests choose by what is there."""
    path: Path = early_config.known_args_namespace.core
    # What tests start, such as compilers, is not what is tested.
    os.environ.pop("LD_PRELOAD", None)
    spec = importlib.util.spec_from_file_location("kvrouter._native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)

    from kvrouter import native_core  # noqa: PLC0415 - it looks for the core as soon as it is imported

    if native_core.native is not module:
        raise pytest.UsageError(f"{path} is not in use: {native_core.absence}")
