"""The router process: data plane, selection and admin API, health, metrics, and the root that composes them.

Read in this order: `app` (what there is, and the order of stopping), `dispatcher` (what happens to a request),
`workers` and `health` (who may get one), `selection` (for gateways that forward themselves), `admin`, `probes`,
`metrics`. `proxy` moves the bytes, `prompts` makes tokens of them.
"""
