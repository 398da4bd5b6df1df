"""What the published description of the admin API says of a worker's fields. Checking them is `worker_spec.py`."""

from typing import Any

__all__ = ["WORKER_BODY", "describe_errors"]


def _field(kind: str | list[str], text: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "description": text, **more}


_PROPERTIES = {
    "url": _field("string", "base URL, http or https; requests go there after a good health check"),
    "id": _field(["string", "integer"], "stable name; default: host and port of the URL (Dynamo: worker_id)"),
    "model": _field("string", "model name; default: asked from /v1/models (Dynamo: model_name)"),
    "models": _field("array", "several model names", items={"type": "string"}),
    "events": _field("string", "where rank 0 publishes events; rank r on port + r (Dynamo: kv_events_endpoint)"),
    "kv_events_endpoints": _field("object", "event endpoints by rank, instead of events"),
    "replay": _field("string", "where missed events are asked for (Dynamo: replay_endpoint)"),
    "ranks": _field("integer", "data-parallel ranks (Dynamo: data_parallel_size)", minimum=1, maximum=256, default=1),
    "first_rank": _field("integer", "number of the first (Dynamo: data_parallel_start_rank)", minimum=0, default=0),
    "block_size": _field("integer", "tokens per block; default: learnt from events", minimum=1, maximum=65_536),
    "topic": _field("string", "ZMQ topic to subscribe to; default: all"),
    "api_key": _field("string", "bearer token that this worker wants; never shown again"),
    "routing_group": _field("string", "workers of one group are chosen from together", default="default"),
    "labels": _field("object", "what it is called by; requests may require them", example={"gpu": "h100"}),
    "taints": _field(
        "array", "NAME=VALUE:NoSchedule keeps requests away that do not tolerate it", items={"type": "string"}
    ),
    "zone": _field("string", "where it stands; requests prefer their own zone"),
    "role": _field("string", "its part in split requests; default: none", enum=["prefill", "decode", "both"]),
    "engine": _field("string", "whose conventions it understands", enum=["vllm", "sglang"], default="vllm"),
    "bootstrap_port": _field("integer", "of an SGLang prefill server", minimum=1, maximum=65_535, default=8998),
    "endpoint": _field("string", "Dynamo's address, any text; without url the worker is schedulable unseen"),
    "state": _field("string", "PATCH only", enum=["active", "draining"]),
}

WORKER_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": _PROPERTIES},
                "example": {"url": "http://10.0.0.5:8000", "events": "tcp://10.0.0.5:5557", "ranks": 1},
            }
        },
    }
}

_ERROR = {
    "description": "Any error: which field, which limit",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "error": {
                        "type": "object",
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                    }
                },
            }
        }
    },
}


def describe_errors(description: dict[str, Any]) -> dict[str, Any]:
    """Describe our one kind of error instead of the framework's 422, which nobody ever gets."""
    description.get("components", {}).pop("schemas", None)
    for operations in description["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _ERROR
    return description
