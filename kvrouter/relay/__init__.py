"""Passes engines' events on: from an engine's own wire to any transport of ours.

For engines that cannot be changed, where ZeroMQ does not reach the router or cannot keep what it has not read. `Relay`
takes what a subscriber brings, `TrtllmPoller` reads TensorRT-LLM's JSON, and `Destination` opens the publishers.
"""

from kvrouter.relay.destinations import Destination
from kvrouter.relay.relay import MakePublisher, Relay, RelayedSource
from kvrouter.relay.trtllm import TrtllmPoller

__all__ = ["Destination", "MakePublisher", "Relay", "RelayedSource", "TrtllmPoller"]
