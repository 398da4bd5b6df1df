"""The router without a service: two workers, a few events, a decision.

Run it with: python examples/route_in_process.py
"""

from kvrouter.events import BlockStored, EventBatch, Source, encode_batch
from kvrouter.routing import Router

BLOCK = 16


def main() -> None:
    """Worker `b` says that it has a prompt's first blocks, so the prompt goes there."""
    router = Router(policy="kv")
    for worker_id in ("a", "b"):
        router.add_worker(worker_id, models=["demo"], block_size=BLOCK, now=0.0)

    prompt = list(range(100))
    stored = BlockStored(block_hashes=(11, 12, 13), token_ids=tuple(prompt[: 3 * BLOCK]), block_size=BLOCK)
    payload = encode_batch(EventBatch(timestamp=0.0, events=(stored,)))
    router.ingest.receive(Source("b", 0), 0, payload, now=0.1)

    decision = router.route(prompt, model="demo", now=0.2)
    print(f"worker {decision.worker_id}: {decision.overlap_tokens} of {decision.prompt_tokens} tokens are cached there")  # noqa: T201
    router.finished(decision.id, now=1.0)


if __name__ == "__main__":
    main()
