"""A request whose answer depends on another one: what becomes of it when that one fails, refuses, or is late."""

from collections.abc import Callable, Collection

from kvrouter.errors import NoWorkerError
from kvrouter.service.proxy import Endpoint, Reply, Request, Route

from .wire import OK, Conversation, Fleet, Script, answering, connected, post, proxying, silence, until, worker

BUSY = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\nlost"


def _in_turn(*scripts: Script) -> Script:
    """Script: each connection follows the next of them."""
    left = iter(scripts)

    async def script(conversation: Conversation) -> None:
        await next(left)(conversation)

    return script


class Partner:
    """A companion that does what the test says."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.failure: str | None = None
        self.refusal: Reply | None = None
        self.calls: list[Callable[[], None]] = []

    def on_failure(self, call: Callable[[], None]) -> None:
        """Remember whom to call."""
        if self.failure is None:
            self.calls.append(call)
        else:
            call()

    def fail(self, reason: str, refusal: Reply | None = None) -> None:
        """Fail."""
        self.failure, self.refusal = reason, refusal
        for call in self.calls:
            call()


class PairFleet(Fleet):
    """Every request goes to the one worker, with the first partner that is not excluded."""

    def __init__(self, endpoint: Endpoint, *names: str, body: bytes | None = None) -> None:
        super().__init__(endpoint)
        self.names, self.body = names, body
        self.partners: list[Partner] = []

    def route(self, request: Request, excluded: Collection[str]) -> Route:
        """Pair the worker with a new partner."""
        name = next((each for each in self.names if each not in excluded), None)
        if name is None or "w0" in excluded:
            raise NoWorkerError("nobody is left")
        self.requests.append(request)
        self.partners.append(Partner(name))
        return Route(self.endpoints["w0"], "w0", body=self.body, companion=self.partners[-1])


async def test_a_body_of_the_routes_own_is_sent_instead_of_the_clients() -> None:
    """With its own length."""
    async with worker(answering(OK)) as good:
        fleet = PairFleet(good.endpoint, "p", body=b'{"longer":"than the client\'s"}')
        async with proxying(fleet=fleet) as (server, _), connected(server) as client:
            assert (await client.ask(post(b"{}"))).status == 200

    assert good.requests[0][1] == fleet.body


async def test_when_the_companion_fails_both_are_tried_again_without_it() -> None:
    """The worker that waited for it is not blamed."""
    async with worker(_in_turn(silence, answering(OK))) as waiting:
        fleet = PairFleet(waiting.endpoint, "p", "q")
        async with proxying(fleet=fleet) as (server, _), connected(server) as client:
            client.send(post())
            await until(lambda: waiting.requests)
            fleet.partners[0].fail("it died")

            assert (await client.answer()).status == 200

    assert [each.worker_id for each in fleet.partners] == ["p", "q"]
    assert fleet.outcomes == ["upstream_lost", "ok"]


async def test_a_companion_that_has_failed_already_is_not_waited_for() -> None:
    """It may be quicker than the connection to the worker; with nobody left the client is told who failed."""

    class FailedFleet(PairFleet):
        def route(self, request: Request, excluded: Collection[str]) -> Route:
            found = super().route(request, excluded)
            self.partners[-1].fail("it died")
            return found

    async with worker(silence) as waiting:
        fleet = FailedFleet(waiting.endpoint, "p", "q")
        async with proxying(fleet=fleet) as (server, _), connected(server) as client:
            answer = await client.ask(post())

    assert answer.status == 502
    assert b"worker q: it died" in answer.body
    assert fleet.outcomes == ["upstream_lost"] * 2


async def test_what_the_companions_worker_refuses_the_client_is_told() -> None:
    """That is an answer, not a failure."""
    async with worker(silence) as waiting:
        fleet = PairFleet(waiting.endpoint, "p")
        async with proxying(fleet=fleet) as (server, _), connected(server) as client:
            client.send(post())
            await until(lambda: waiting.requests)
            fleet.partners[0].fail("refused", Reply(400, b'{"error":"too long"}'))

            answer = await client.answer()

    assert (answer.status, answer.body) == (400, b'{"error":"too long"}')
    assert fleet.outcomes == ["client_gone"]


async def test_a_server_error_is_taken_for_both_and_tried_again_with_another_companion() -> None:
    """The worker may say it before its companion's failure is known; the client's body is still there."""
    async with worker(_in_turn(answering(BUSY), answering(OK))) as failing:
        fleet = PairFleet(failing.endpoint, "p", "q")
        async with proxying(fleet=fleet) as (server, _), connected(server) as client:
            answer = await client.ask(post(b'{"p":1}'))

    assert answer.status == 200
    assert [body for _, body in failing.requests] == [b'{"p":1}'] * 2
    assert fleet.outcomes == ["error_status", "ok"]


async def test_after_enough_attempts_the_servers_error_is_passed_on() -> None:
    """As it is without a companion."""
    async with worker(answering(BUSY)) as failing:
        fleet = PairFleet(failing.endpoint, "p", "q", "r")
        async with proxying(fleet=fleet, attempts_max=2) as (server, _), connected(server) as client:
            answer = await client.ask(post())

    assert (answer.status, answer.body) == (500, b"lost")
    assert fleet.outcomes == ["error_status", "error_status"]


async def test_a_companion_that_fails_after_the_answer_changes_nothing() -> None:
    """The request is over."""
    async with worker(answering(OK)) as good:
        fleet = PairFleet(good.endpoint, "p")
        async with proxying(fleet=fleet) as (server, _), connected(server) as client:
            assert (await client.ask(post())).status == 200
            fleet.partners[0].fail("too late")

            assert (await client.ask(post())).status == 200

    assert fleet.outcomes == ["ok", "ok"]
