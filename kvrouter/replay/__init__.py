"""Replay: recorded or made-up traffic against simulated fleets. Nothing here is used by a running router.

`kvrouter replay` plays traces in simulated time: `trace.py` and its readers say what is asked, `worker.py` is one
engine, `fleet_simulation.py` puts the router's own routing, ingest and index in front of several, `measures.py` and
`comparison.py` say what it was worth. `kvrouter.replay.engine` is one engine that runs in real time, as a process;
start it with `python -m kvrouter.replay.engine`.
"""
