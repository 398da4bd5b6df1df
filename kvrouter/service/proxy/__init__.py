"""The data plane: a strict, fast HTTP/1.1 reverse proxy that asks a `Dispatcher` where each request goes.

Read in this order: `messages` (the contract), `server`, `client` (a connection), `exchange` (a request), `relay` (its
answer), `pool` and `upstream` (connections to workers). The parsers are sans I/O: `header_lines`, `head_memory`,
`request_head`, `request_parser`, `chunked`, `response_head`, `forwarding`, `usage`; parts of four of them are native.
`fetch` is a small client on the same pool.
"""

from .fetch import Response, fetch
from .header_lines import asked_lines
from .limits import ProxyLimits, ProxyStatistics
from .messages import Companion, Dispatcher, Endpoint, Outcome, Reply, Request, Route, Usage
from .pool import UpstreamPool
from .replies import UpstreamError, error_reply
from .server import ProxyServer

__all__ = [
    "Companion",
    "Dispatcher",
    "Endpoint",
    "Outcome",
    "ProxyLimits",
    "ProxyServer",
    "ProxyStatistics",
    "Reply",
    "Request",
    "Response",
    "Route",
    "UpstreamError",
    "UpstreamPool",
    "Usage",
    "asked_lines",
    "error_reply",
    "fetch",
]
