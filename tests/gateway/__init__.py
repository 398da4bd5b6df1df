"""Tests of the gateway: from its pure parts to real processes around a real NATS server."""
