"""What the pretended engines answer: the same bytes from nginx and from our own backend."""

__all__ = ["CHUNKS", "COMPLETION", "FIXED", "STEP_SECONDS", "STREAM_CHUNK"]

CHUNKS = 64
STEP_SECONDS = 0.005

COMPLETION = {
    "id": "cmpl-benchmark",
    "object": "text_completion",
    "created": 1700000000,
    "model": "bench",
    "choices": [{"index": 0, "text": " An answer of a few words.", "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 160, "completion_tokens": 16, "total_tokens": 176},
}
# What routers ask a worker before they send it anything.
FIXED: dict[str, object] = {
    "/v1/models": {"object": "list", "data": [{"id": "bench", "object": "model", "created": 1, "owned_by": "bench"}]},
    "/get_model_info": {"model_path": "bench", "tokenizer_path": "bench", "is_generation": True},
    "/model_info": {"model_path": "bench", "tokenizer_path": "bench", "is_generation": True},
    "/get_server_info": {"model_path": "bench", "served_model_name": "bench", "dp_size": 1, "version": "0"},
    "/server_info": {"model_path": "bench", "served_model_name": "bench", "dp_size": 1, "version": "0"},
    "/health": {"status": "ok"},
    "/version": {"version": "0"},
}
STREAM_CHUNK = (
    b'data: {"id":"cmpl-benchmark","object":"text_completion","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null}]}\n\n'
)
