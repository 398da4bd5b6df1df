"""Settings that change while the router runs: from the watched store, over the admin API, or from the file again.

Read in this order: `running` (what is in force, and what of it may change), `following` (the key of the store),
`desk` (who changes settings, for all routers or for this one), `admin` (the same over HTTP), `figures` (what it tells
Prometheus). What a change does to the parts of the process is `kvrouter.service.applying`.
"""
