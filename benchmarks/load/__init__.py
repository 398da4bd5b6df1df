"""Load for the proxy and selection benchmarks: what is sent, at full speed or at a fixed rate, and what came back."""
