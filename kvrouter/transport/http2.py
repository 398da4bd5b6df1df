"""h2, the state machine of HTTP/2, as both ends use it: imported once, and silent about what headers say."""

import logging
from contextlib import suppress

from kvrouter.errors import MissingExtraError

try:
    import h2.config
    import h2.connection
    import h2.errors
    import h2.events
    import h2.exceptions
    import h2.settings
    from hpack import NeverIndexedHeaderTuple
except ImportError as missing:
    raise MissingExtraError("the request plane over HTTP/2", "http2") from missing

__all__ = ["STREAM_OVER", "NeverIndexedHeaderTuple", "h2"]

# At the level of debugging it repeats every header, tokens too; whoever wants that asks for it by name.
_headers_log = logging.getLogger("hpack")
if _headers_log.level == logging.NOTSET:
    _headers_log.setLevel(logging.INFO)

# h2 takes in all that has arrived before it tells: a stream may be over that nobody here knows of yet.
STREAM_OVER = suppress(h2.exceptions.NoSuchStreamError)
