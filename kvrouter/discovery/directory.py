"""Who serves an endpoint now, kept up to date by a watch: what clients choose from.

While the store cannot be reached the last that was known stands: a discovery service that is down must not take the
fleet down with it.
"""

import asyncio
from collections.abc import Callable

from kvrouter.discovery.records import Instance
from kvrouter.discovery.registry import Discovery
from kvrouter.errors import NoInstancesError
from kvrouter.store.key_values import Synced

__all__ = ["Directory"]

Listener = Callable[[str, Instance | None], None]


class Directory:
    """The instances of one endpoint, or of all that a prefix of names covers. Lives on one event loop."""

    def __init__(self, discovery: Discovery, namespace: str = "", component: str = "", endpoint: str = "") -> None:
        self._discovery, self._names = discovery, (namespace, component, endpoint)
        self._instances: dict[str, Instance] = {}
        self._listeners: list[Listener] = []
        self._changed = asyncio.Event()
        self._synced = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self.resyncs = 0

    async def start(self) -> None:
        """Begin to follow; returns when everything that is there is known."""
        self._following = asyncio.create_task(self._follow(), name=f"directory {'/'.join(self._names)}")
        waiting = asyncio.create_task(self._synced.wait())
        await asyncio.wait((waiting, self._following), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._following.done():
            self._following.result()

    async def close(self) -> None:
        """Stop following. Idempotent."""
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    def instances(self) -> tuple[Instance, ...]:
        """Who is there and not unhealthy, in the order of their keys."""
        return tuple(instance for _, instance in sorted(self._instances.items()) if instance.health != "unhealthy")

    def listen(self, listener: Listener) -> None:
        """Call `listener(key, instance)` at each change, with None when an instance is gone; it must not raise."""
        self._listeners.append(listener)
        for key, instance in self._instances.items():
            listener(key, instance)

    async def wait(self, *, seconds: float | None = None) -> tuple[Instance, ...]:
        """Return who is there, as soon as anybody is.

        Raises:
            NoInstancesError: nobody came within `seconds`.
        """
        try:
            async with asyncio.timeout(seconds):
                while not (found := self.instances()):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            names = "/".join(name for name in self._names if name) or "anything"
            raise NoInstancesError(f"No instances found: nobody serves {names}") from None
        return found

    async def _follow(self) -> None:
        async for news in self._discovery.watch(*self._names):
            if isinstance(news, Synced):
                self.resyncs += self._synced.is_set()
                self._synced.set()
                continue
            key, instance = news
            if instance is None:
                self._instances.pop(key, None)
            else:
                before = self._instances.get(key)
                self._instances[key] = instance
                if before == instance:  # renewed
                    continue
            self._changed.set()
            for listener in self._listeners:
                listener(key, instance)
