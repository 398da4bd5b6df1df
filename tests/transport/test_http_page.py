"""What the page about the planes says of HTTP is what the code does."""

import re
from pathlib import Path

import pytest

from kvrouter.transport.http_answers import ITEMS_MAX
from kvrouter.transport.http_app import ROOT_ALIAS, HttpAppOptions
from kvrouter.transport.http_errors import status_of
from kvrouter.transport.http_formats import answer_writer, format_of
from kvrouter.transport.http_settings import HttpPlaneSettings, http_plane_settings
from kvrouter.transport.n_part import CONTENT_TYPE

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "planes.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## HTTP\n")[2].partition("\n## ")[0]
ANSWERS = re.findall(r"```http\nContent-Type: (.+)\n\n([^`]+)```", SECTION)
ERROR = b'{"code":"NOT_FOUND","message":"no such model","retryable":false}'
STATUSES = re.findall(r"^\| (\d+) \| (.+) \|$", SECTION, re.MULTILINE)
VARIABLES = re.findall(r"^\| `([A-Z_]+)` \| `(.+?)` \|", SECTION, re.MULTILINE)
FIELDS = {
    "HTTP_RPC_HOST": "rpc_host",
    "HTTP_RPC_PORT": "rpc_port",
    "HTTP_RPC_ROOT_PATH": "rpc_root",
    "HTTP_REQUEST_TIMEOUT": "acknowledge_seconds",
    "HTTP_RESPONSE_HOST": "response_host",
    "HTTP_RESPONSE_PORT": "response_port",
    "HTTP_RESPONSE_ROOT_PATH": "response_root",
    "HTTP_RESPONSE_STREAM_FORMAT": "answer_format",
    "HTTP_RESPONSE_TIMEOUT_SECS": "stream_seconds",
}


@pytest.mark.parametrize(("content_type", "shown"), ANSWERS, ids=[each for each, _ in ANSWERS])
def test_the_answers_of_the_page_are_what_is_written(content_type: str, shown: str) -> None:
    """A-208, A-209: byte for byte."""
    kind = format_of(content_type)
    assert kind is not None
    plain, other = answer_writer(kind, "json"), answer_writer(kind, "raw")

    written = plain.item(0, b'{"token":"a"}') + other.item(1, bytes(range(3))) + plain.beat()
    written += plain.error(ERROR) + plain.end()

    assert written.decode().rstrip("\n") == shown.rstrip("\n")


def test_the_page_shows_both_forms_of_text() -> None:
    """The pattern that finds them finds them all."""
    assert [format_of(content_type) for content_type, _ in ANSWERS] == ["sse", "ndjson"]


@pytest.mark.parametrize(("status", "codes"), STATUSES, ids=[each for each, _ in STATUSES])
def test_the_statuses_of_the_page_are_the_codes(status: str, codes: str) -> None:
    """A-210: each code and its status."""
    names = re.findall(r"`([A-Z_]+)`", codes)

    assert names
    assert {status_of(b'{"code":"%b"}' % name.encode()) for name in names} == {int(status)}


def test_the_variables_of_the_page_are_the_codes() -> None:
    """A-242, A-244: names and defaults."""
    assert {name for name, _ in VARIABLES} == set(FIELDS)
    for name, default in VARIABLES:
        read = getattr(http_plane_settings({f"KVROUTER_{name}": default}), FIELDS[name])
        assert read == getattr(HttpPlaneSettings(), FIELDS[name])


def test_the_bounds_of_the_page_are_the_codes() -> None:
    """Numbers that are written in two places."""
    options = HttpAppOptions()
    for sentence in (
        f"`{CONTENT_TYPE}` for N. The root is `{options.root}`, and\n`{ROOT_ALIAS}` means the same",
        f"where one consumer may have it within {options.attach_seconds:g} s",
        f"the root `{options.response_root}`. At most {ITEMS_MAX} items",
        f"not whole within {options.body_seconds:g} s",
    ):
        assert sentence in SECTION
    assert f"keep-alive of an answer every {options.beat_seconds:g} s" in PAGE
