"""Calls of everything in the core that has no state, good ones and bad ones, for tests of what they leave behind."""

from collections.abc import Callable
from typing import Any

WORDS, TEXT = bytes(4096), b'{"prompt": [' + b"70000, " * 500 + b"1]}"
HEAD = b"GET / HTTP/1.1\r\nContent-Length: 70000\r\n\r\n"
MESSAGE = HEAD + bytes(70_000)
USAGE = b'"usage": {"prompt_tokens": 70000, "cached_tokens": 9000}'
_BATCH = b"\x01\x00\x01\x08" + bytes(8) + b"\x00\x03abc"
WIRE = b"".join(
    [
        _BATCH * 20,
        b"\x04\x05\x04PING",
        b"\x01\x03odd\x04\x02no\x00\x05three",
        _BATCH.replace(b"abc", b"\x83bc"),
        b"\x80",
    ]
)
"""ZMTP: batches, a command, a message with a command in it, an envelope, and what is no frame."""
_CUT = (WIRE, len(WIRE), b"", b"kv_metrics", 10_000, 64)
TOKENS = [70_000] * 1000
TOO_LARGE, NO_INTEGERS = [*TOKENS, 2**40], [*TOKENS, "text"]
CALLS: dict[str, Callable[[Any], object]] = {
    "chained": lambda core: core.chain_hashes(7, WORDS, 16, 1337, 0),
    "hashed": lambda core: core.block_hashes(WORDS, 16, 1337, 0),
    "chained_blocks": lambda core: core.chain_block_hashes(None, WORDS),
    "hashed_whole": lambda core: core.xxh3_64(WORDS, 1),
    "packed": lambda core: core.tokens_to_words(TOKENS),
    "parsed": lambda core: core.parse_token_array(TEXT, 11),
    "found": lambda core: core.find_token_array(TEXT, b'"prompt"'),
    "recalled": lambda core: core.recall_head(HEAD, len(HEAD), {HEAD[:14]: WORDS}),
    "recalled_whole": lambda core: core.recall_whole(MESSAGE, len(MESSAGE), {HEAD[:14]: WORDS}),
    "joined": lambda core: core.join_text(HEAD, 70_000, "text", HEAD),
    "skipped": lambda core: core.skip_chunks(b"5\r\nhello\r\n" * 100, 0),
    "priced": lambda core: core.find_usage(USAGE),
    "cut": lambda core: core.cut_messages(*_CUT)[1:],
    "looked_at": lambda core: [list(run[2]) + run[2][1:] for run in core.cut_messages(*_CUT)[0] if type(run) is tuple],
    "digested_run": lambda core: core.note_digests(bytearray(64), 3, core.cut_messages(*_CUT)[0][0][2], 2),
    "no_place": lambda core: core.cut_messages(*_CUT)[0][0][2]["20"],
    "no_payloads": lambda core: core.Payloads(),
    "digested": lambda core: core.note_digests(bytearray(64), 3, [WORDS, b""] * 20, 2),
    "no_message": lambda core: core.cut_messages(WORDS, len(WORDS) + 1, b"", b"", 10_000, 64),
    "no_topic": lambda core: core.cut_messages(WIRE, len(WIRE), "", b"", 10_000, 64),
    "no_batch": lambda core: core.note_digests(bytearray(64), 0, [WORDS, 7], 2),
    "no_position": lambda core: core.note_digests(bytearray(64), 8, [WORDS], 2),
    "read": lambda core: core.read_token_body(TEXT, b"prompt", b" "),
    "hashes": lambda core: core.find_hash_array(TEXT, b'"prompt"'),
    "no_hash": lambda core: core.find_hash_array(TEXT[:-2] + b"x]", b'"prompt"'),
    "no_such_size": lambda core: core.chain_hashes(7, WORDS, 0, 1337, 0),
    "no_such_parent": lambda core: core.chain_hashes(2**64, WORDS, 16, 1337, 0),
    "no_hashes": lambda core: core.chain_block_hashes(None, WORDS[:7]),
    "no_token": lambda core: core.tokens_to_words(TOO_LARGE),
    "no_integer": lambda core: core.tokens_to_words(NO_INTEGERS),
    "no_array": lambda core: core.parse_token_array(TEXT[:-2] + b"x]", 11),
    "no_head": lambda core: core.recall_head(HEAD, len(HEAD), {}),
    "no_rest": lambda core: core.recall_whole(HEAD, len(HEAD), {HEAD[:14]: WORDS}),
    "no_text": lambda core: core.join_text(HEAD, 70_000, None),
    "no_memory": lambda core: core.recall_head(HEAD, 5, {}),
    "no_start": lambda core: core.skip_chunks(WORDS, 2**20),
    "no_usage": lambda core: core.find_usage(WORDS),
    "no_key": lambda core: core.find_token_array(TEXT, 5),
}
