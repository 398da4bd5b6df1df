"""Where a relay publishes: one address, over the transport that its scheme names, for any number of sources."""

import ssl
from urllib.parse import urlsplit

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.events import Source
from kvrouter.events.endpoints import check_source, transport_of, without_password
from kvrouter_publishers import EventPublisher, HttpEventServer

__all__ = ["Destination"]


class Destination:
    """Opens publishers at one address; an HTTP server is shared by all of them.

    Args:
        endpoint: `tcp://*:5557` (rank N uses the port N above), `http://127.0.0.1:8100`, `nats://host:4222/stream`,
            `redis://host:6379/0/stream`.
        replay_endpoint: where a ZeroMQ publisher serves replays and snapshots, such as `tcp://*:5657`.
        topic: of a ZeroMQ publisher.
        api_key: what clients of an HTTP publisher must send.
        insecure: allow an HTTP address beyond this machine without a key.

    Raises:
        SettingsError: the address is malformed, or has no fixed port; an HTTP address cannot be bound.
        MissingExtraError: the transport's client is not installed.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        replay_endpoint: str | None = None,
        topic: str = "",
        api_key: str | None = None,
        insecure: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.endpoint, self.replay_endpoint, self.topic = check_source(endpoint), replay_endpoint, topic
        self.transport = transport_of(endpoint)
        if self.transport != "zmq" and (replay_endpoint or topic):
            raise SettingsError(f"{self._shown()} has neither a replay endpoint nor a topic; they are ZeroMQ's")
        if endpoint.endswith((":0", ":*")):
            raise SettingsError(f"{self._shown()} must name a port: each further life of a source is published there")
        self._server: HttpEventServer | None = None
        if self.transport == "http":
            address = urlsplit(endpoint)
            if address.path not in ("", "/") or address.scheme != "http":
                raise SettingsError(f"{self._shown()} must be http://host:port; put a proxy in front for the rest")
            self._server = HttpEventServer(address.netloc, api_key=api_key, insecure=insecure, tls=tls)

    def open(self, source: Source) -> EventPublisher:
        """Open a publisher of `source`.

        Raises:
            SettingsError: the worker's id cannot be published, or the address cannot be bound.
            MissingExtraError: the transport's client is not installed.
        """
        match self.transport:
            case "zmq":
                return self._zmq(source)
            case "http":
                return self._http(source)
            case "jetstream":
                return self._jetstream(source)
            case "redis":
                return self._redis(source)

    def close(self) -> None:
        """Close what is shared."""
        if self._server is not None:
            self._server.close()

    def _shown(self) -> str:
        return f"destination {without_password(self.endpoint)}"

    def _zmq(self, source: Source) -> EventPublisher:
        from kvrouter_publishers import ZmqEventPublisher  # noqa: PLC0415 - only the chosen transport is loaded

        return ZmqEventPublisher(
            self.endpoint,
            replay_endpoint=self.replay_endpoint,
            topic=self.topic,
            rank=source.rank,
            wire="native",
            bind=True,
            worker_id=source.worker_id,
        )

    def _http(self, source: Source) -> EventPublisher:
        from kvrouter_publishers import HttpEventPublisher  # noqa: PLC0415 - as above

        assert self._server is not None
        return HttpEventPublisher(self._server, worker_id=source.worker_id, rank=source.rank)

    def _jetstream(self, source: Source) -> EventPublisher:
        try:
            from kvrouter_publishers import JetStreamEventPublisher  # noqa: PLC0415 - as above
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"{self._shown()} (it found no {error.name})", "nats") from None
        return JetStreamEventPublisher(self.endpoint, worker_id=source.worker_id, rank=source.rank)

    def _redis(self, source: Source) -> EventPublisher:
        try:
            from kvrouter_publishers import RedisEventPublisher  # noqa: PLC0415 - as above
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"{self._shown()} (it found no {error.name})", "redis") from None
        return RedisEventPublisher(self.endpoint, worker_id=source.worker_id, rank=source.rank)
