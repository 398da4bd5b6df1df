"""Benchmarks: `python -m benchmarks.NAME [--json] [--quick]`, each beside its peers in the same run."""
