"""Runs `async def` tests of this folder on uvloop, each with a time limit; chooses between native code and Python."""

import asyncio
import inspect
from collections.abc import Iterator

import pytest
import uvloop

from kvrouter import native_core
from kvrouter.service.proxy import chunked, forwarding, head_memory, usage

_TEST_SECONDS = 110

collect_ignore = [] if native_core.present else ["test_http_core.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test to its end; leave others to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(pyfuncitem.obj(**arguments), _TEST_SECONDS))
    return True


@pytest.fixture(scope="module", params=["native", "reference"] if native_core.present else ["reference"])
def http_core(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let the data plane use what is native of it, then what is Python in its place."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "reference":
            patch.setattr(head_memory, "_recall", head_memory.recall_head)
            patch.setattr(head_memory, "_recall_whole", head_memory.recall_whole)
            patch.setattr(forwarding, "_join", forwarding.join_parts)
            patch.setattr(chunked, "_skip", None)
            patch.setattr(usage, "_find", usage.search_usage)
        yield request.param
