"""What belongs to one request on both of its sides: its id, headers and deadline, and whether it shall still go on.

`stop` asks for a cooperative end: what was produced is still delivered. `kill` drops everything at once. Both reach
every child, both may be called again and again, and a kill is a stop too. Nothing here waits for a peer or sends
anything: transports listen.
"""

import asyncio
from collections.abc import Callable, Mapping
from uuid import uuid4

__all__ = ["Context", "Listener"]

Listener = Callable[["Context"], None]


class Context:
    """One request's life. Lives on one event loop; not thread-safe. Every call costs a few attribute accesses.

    `headers` travel with the request: `traceparent`, `tracestate`, `x-request-id` and what the caller adds. `deadline`
    is in the loop's time, seconds; None means that the caller waits for ever. `identity` is at the worker who asks, as
    its guard has found out; '' where nobody is asked.
    """

    __slots__ = ("_children", "_listeners", "_parent", "deadline", "headers", "id", "identity", "killed", "stopped")

    def __init__(
        self,
        id: str | None = None,  # noqa: A002 - the field's name
        *,
        headers: Mapping[str, str] | None = None,
        deadline: float | None = None,
    ) -> None:
        self.id = id if id is not None else str(uuid4())
        self.headers: Mapping[str, str] = headers if headers is not None else {}
        self.deadline = deadline
        self.identity = ""
        self.stopped = self.killed = False
        self._parent: Context | None = None
        self._children: set[Context] = set()
        self._listeners: list[Listener] = []

    def __repr__(self) -> str:
        state = "killed" if self.killed else "stopped" if self.stopped else "running"
        return f"Context({self.id!r}, {state})"

    def stop(self) -> None:
        """Ask for a cooperative end."""
        if not self.stopped:
            self.stopped = True
            self._tell(Context.stop)

    def kill(self) -> None:
        """Drop everything at once."""
        if not self.killed:
            self.stopped = self.killed = True
            self._tell(Context.kill)

    def child(self, id: str | None = None) -> "Context":  # noqa: A002 - as above
        """Return a context that ends with this one at the latest, with the same headers and deadline.

        Whoever makes a child calls its `close` when its work is over.
        """
        child = Context(id, headers=self.headers, deadline=self.deadline)
        child.identity, child.stopped, child.killed = self.identity, self.stopped, self.killed
        child._parent = self
        self._children.add(child)
        return child

    def close(self) -> None:
        """Let go of the parent, so that it does not hold what is over. Idempotent; stops nothing."""
        if self._parent is not None:
            self._parent._children.discard(self)  # noqa: SLF001 - one of its own kind
            self._parent = None

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(context)` at each stop and kill to come; returns what ends that. Listeners must not raise."""
        self._listeners.append(listener)

        def forget() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return forget

    async def until_stopped(self) -> None:
        """Wait until the context is stopped or killed."""
        if self.stopped:
            return
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell(_: Context) -> None:
            if not told.done():
                told.set_result(None)

        forget = self.listen(tell)
        try:
            await told
        finally:
            forget()

    def remaining_seconds(self, now: float) -> float | None:
        """Time until the deadline, at least 0; None where there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - now)

    def _tell(self, act: Callable[["Context"], None]) -> None:
        for listener in tuple(self._listeners):
            listener(self)
        for child in tuple(self._children):
            act(child)
