"""Passes engines' events on: from an engine's own wire to any transport of ours."""
