"""A simulated inference engine: OpenAI's API, a real prefix cache, real KV-cache events, and faults on command.

Tests, the demo and the benchmarks run against it, as a process: `python -m kvrouter.replay.engine --help`.

Read `pool.py`, `cache.py`, `scheduler.py` and `timing.py` first: they are the engine, without clock or sockets.
`rank.py` moves one of them through time, `simulated.py` puts the process together, `app.py` is what clients see.
"""
