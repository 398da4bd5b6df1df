"""One argument leaves a request body; everything else of it arrives as it was sent."""

import json

import pytest

from kvrouter.service.report_mode import without_report_mode


def test_only_the_argument_leaves() -> None:
    """Numbers, escapes and order of the others are untouched."""
    body = (
        b'{"model":"m", "prompt":[1,2], "vllm_xargs":{"kv_cache_report_mode":"full","n":1e2}, "x":1.0000,"y":"\\u00e9"}'
    )

    left = without_report_mode(body)

    assert left == b'{"model":"m","prompt":[1,2],"vllm_xargs":{"n":100.0},"x":1.0000,"y":"\\u00e9"}'


def test_no_empty_arguments_are_left() -> None:
    """An engine that does not know the field need not see it."""
    left = without_report_mode(b'{"model":"m","vllm_xargs":{"kv_cache_report_mode":"full"}}')

    assert json.loads(left) == {"model": "m"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":"kv_cache_report_mode"}',
        b'{"vllm_xargs":"kv_cache_report_mode"}',
        b'{"vllm_xargs":{"other":"kv_cache_report_mode"}}',
        b'{"vllm_xargs":{"kv_cache_report_mode":',
        b"kv_cache_report_mode \xff",
        b"[" * 50_000 + b'"kv_cache_report_mode"',
        b"{}",
    ],
)
def test_bodies_without_the_argument_are_the_same_bytes(body: bytes) -> None:
    """Nothing else is read into them, and what is no JSON is not ours to judge here."""
    assert without_report_mode(body) is body
