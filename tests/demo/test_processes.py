"""Child processes: announced, watched, stopped, and never left behind."""

import asyncio
import os

import pytest

from kvrouter.demo.processes import ChildProcess, ProcessFailedError
from tests.replay.serving import run

ENGINE = "kvrouter.replay.engine"


def test_a_process_announces_itself_and_stops_when_told() -> None:
    """With its own exit, not a kill."""

    async def work() -> None:
        process = await ChildProcess.start("engine", ENGINE, ["--exit-with-parent"])
        announced = await process.announced("engine_ready")
        await process.stop()

        assert announced["pid"] == process.pid
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)

    run(work)


def test_a_process_that_does_not_start_says_why() -> None:
    """Its last words are in the error."""

    async def work() -> None:
        process = await ChildProcess.start("engine", ENGINE, ["--blocks", "0"])
        with pytest.raises(ProcessFailedError, match=r"engine did not start(.|\n)*0 is less than 1"):
            await process.announced("engine_ready")
        await process.stop()

    run(work)


def test_a_process_that_ends_early_is_noticed() -> None:
    """Whoever waits for its end hears of it."""

    async def work() -> None:
        process = await ChildProcess.start("engine", ENGINE, ["--exit-with-parent"])
        await process.announced("engine_ready")
        watching = asyncio.ensure_future(process.ended())
        os.kill(process.pid, 9)

        with pytest.raises(ProcessFailedError, match="engine ended with -9"):
            await watching
        await process.stop()

    run(work)


def test_stopping_twice_is_stopping() -> None:
    """Clean-up may run after a failure that has cleaned up already."""

    async def work() -> None:
        process = await ChildProcess.start("engine", ENGINE, ["--exit-with-parent"])
        await process.announced("engine_ready")
        await process.stop()
        await process.stop()

    run(work)


def test_settings_of_the_user_do_not_reach_the_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A KVROUTER_ variable that would break a router breaks none of ours."""
    monkeypatch.setenv("KVROUTER_MISSPELT", "1")

    async def work() -> None:
        process = await ChildProcess.start("router", "kvrouter", ["serve", "--port", "0", "--exit-with-parent"])
        announced = await process.announced("listening")
        await process.stop()

        assert announced["port"] > 0

    run(work)
