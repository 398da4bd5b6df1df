"""kvrouter: a KV-cache router and event plane for LLM serving.

Importing this package is cheap: it loads nothing outside the standard library.
`kvrouter.routing.Router` is the router in process, `kvrouter serve` the router as a service.
"""

__version__ = "0.1.0"
