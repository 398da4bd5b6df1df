"""Simulated fleets: an engine model that runs in real time, as a process.

`kvrouter.replay.engine` is one engine; start it with `python -m kvrouter.replay.engine`.
"""
