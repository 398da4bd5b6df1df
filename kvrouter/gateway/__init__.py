"""HTTP with JSON on one side, NATS with Protobuf on the other: `kvrouter gateway`.

For services that move from the one to the other without a break. Read in this order: `route_table` (what is routed
where), `descriptors`, `json_reading`, `json_writing` and `translation` (messages as JSON), `metadata` (headers become a
message's meta data), `nats_link` (requests and streams over one connection), `calls` and `endpoint` (one request),
`event_stream`, `idempotency`; `composition`, `app`, `process` and `processes` (all of it, and its life). For the way
over: `sides`, `legacy`, `cutover`, `shadow`, `differences`.

Knows nothing of KV caches: it stands beside the router, and shares its settings, its stores and its manners.
"""
