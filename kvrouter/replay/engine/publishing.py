"""The engine's event publishers: one for each rank, on neighbouring ports, and able to lose messages on command."""

import random
from typing import Any, Literal, cast

import zmq

from kvrouter.errors import SettingsError
from kvrouter.replay.engine.options import EngineOptions
from kvrouter_publishers import ZmqEventPublisher

__all__ = ["LossyContext", "RankPublishers"]

_ATTEMPTS = 50
_UNASSIGNED_PORTS = range(10_000, 15_000)
"""Below the ports that systems give to connections, where several neighbours are rarely free at a time."""


class LossyContext(zmq.Context[zmq.Socket[bytes]]):
    """Hands out PUB sockets that lose as many messages as `lose` says: numbered and replayable, but never sent."""

    lose = 0

    def socket(self, socket_type: int, *args: Any, **kwargs: Any) -> Any:
        """Make a socket; publishing ones are lossy."""
        if socket_type == zmq.PUB:
            kwargs["socket_class"] = _LossySocket
        made = super().socket(socket_type, *args, **kwargs)
        if isinstance(made, _LossySocket):
            made.losses = self
        return made


class _LossySocket(zmq.Socket[bytes]):
    losses: LossyContext

    def send_multipart(self, msg_parts: Any, *args: Any, **kwargs: Any) -> Any:
        """Send, or lose."""
        if self.losses.lose > 0:
            self.losses.lose -= 1
            return None
        return super().send_multipart(msg_parts, *args, **kwargs)


class RankPublishers:
    """Opens, reopens and closes the publishers of all ranks; rank r is on the ports of rank 0 plus r, as in vLLM."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self.contexts: list[LossyContext] = []
        self.publishers: list[ZmqEventPublisher] = []
        self.endpoint = self.replay_endpoint = ""

    def open(self) -> None:
        """Open every rank's publisher. Ports that nobody chose are tried until all neighbours are free.

        Raises:
            SettingsError: the ports are taken.
        """
        chosen = bool(self._options.events_port and self._options.replay_port)
        for attempt in range(_ATTEMPTS):
            try:
                self._open_all()
            except SettingsError:
                self.close()
                if chosen or attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def reopen(self) -> None:
        """Begin a new life on the same ports: sequences start at 0 again, nothing can be replayed."""
        self.close()
        self._open_all()

    def close(self) -> None:
        """Close all."""
        for publisher in self.publishers:
            publisher.close()
        for context in self.contexts:
            context.term()
        self.publishers, self.contexts = [], []

    def _open_all(self) -> None:
        options = self._options
        live = self.endpoint or f"tcp://{options.host}:{options.events_port or self._some_port()}"
        replay = self.replay_endpoint or f"tcp://{options.host}:{options.replay_port or self._some_port()}"
        for rank in range(options.ranks):
            context = LossyContext()
            self.contexts.append(context)
            publisher = ZmqEventPublisher(
                live,
                replay_endpoint=replay,
                topic=options.topic,
                rank=rank,
                encoding=cast("Literal['map', 'array']", options.event_encoding),
                bind=True,
                context=context,
            )
            self.publishers.append(publisher)
            if rank == 0:
                live, replay = publisher.endpoint, publisher.replay_endpoint or replay
        self.endpoint, self.replay_endpoint = live, replay

    def _some_port(self) -> str:
        """Return one that the system gives to nobody while we are between two lives."""
        return str(random.SystemRandom().choice(_UNASSIGNED_PORTS))
