"""Nothing that a request made waits for the garbage collector."""

import gc
from collections.abc import Callable

from kvrouter.service.proxy import Route, Usage

from .inprocess import InProcess


def test_routed_requests_leave_no_reference_cycles() -> None:
    """From the decision to the last byte, with events, predictions and the ring of decisions at work."""
    service = InProcess()
    service.add(worker_id="a", url="http://127.0.0.1:1", model="m")
    worker = service.add(worker_id="b", url="http://127.0.0.1:2", model="m")
    service.store(worker, list(range(64)))
    dispatcher = service.service.dispatcher

    def routed(number: int) -> None:
        body = {"model": "m", "prompt": [*range(64), *range(number, number + 64)]}
        route = dispatcher.route(service.request("POST", "/v1/completions", body), ())
        assert isinstance(route, Route)
        dispatcher.first_token(route)
        dispatcher.finished(route, "ok", Usage(128, 4, 64))

    assert _unreachable_after(routed) < 50


def test_selections_leave_no_reference_cycles() -> None:
    """A selection that is reserved, and given back."""
    service = InProcess()
    service.add(worker_id="a", url="http://127.0.0.1:1", model="m")

    def selected(number: int) -> None:
        body = {"model_name": "m", "token_ids": list(range(number, number + 64)), "selection_id": f"s{number}"}
        assert service.call("POST", "/select_and_reserve", body)[0] == 200
        assert service.call("DELETE", f"/reservations/s{number}")[0] == 200

    assert _unreachable_after(selected) < 50


def _unreachable_after(request: Callable[[int], None]) -> int:
    """How many objects the collector finds that reference counting left, after a thousand requests."""
    for number in range(20):
        request(number)
    gc.collect()
    gc.disable()
    try:
        for number in range(1000):
            request(number)
        return gc.collect()
    finally:
        gc.enable()
