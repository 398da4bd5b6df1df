"""The workers of a benchmark: backends that cost nearly nothing, a pass-through as floor, and their cache events."""
