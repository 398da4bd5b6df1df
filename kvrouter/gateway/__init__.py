"""HTTP with JSON on one side, NATS with Protobuf on the other: `kvrouter gateway`.

For services that move from the one to the other without a break. Read in this order: `route_table` (what is routed
where), `descriptors`, `json_reading` and `json_writing` (one message as JSON), `metadata` (headers become a message's
meta data), `nats_link` (requests and streams over one connection), `unary` and `event_stream` (one request), `app`
(all of them as an application), `process` (its life). For the way over: `cutover`, `shadow`, `differences`, `legacy`.

Knows nothing of KV caches: it stands beside the router, and shares its settings, its stores and its manners.
"""
