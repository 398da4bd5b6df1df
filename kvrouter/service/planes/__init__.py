"""Workers that are found by discovery and reached over the request planes, as a second kind of upstream.

Read in this order: `connection` (one exchange over a plane, behind the data plane's seam), `ways` (the transports of
this process), `discovered` (records become workers), `switching` (the preferred plane, changed while it runs),
`request_planes` (all of it together), `figures` (what it tells Prometheus). The convention of requests and answers is
`kvrouter.transport.calls`.
"""
