"""Asks one worker over OpenAI's HTTP API, and takes the time. For calibration; nothing here is made for load."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from kvrouter.errors import KvrouterError, SettingsError

__all__ = ["Timed", "WorkerClient"]

_TIMEOUT_SECONDS: Final = 120.0
_ANSWER_BYTES_MAX: Final = 16 << 20
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One answer; `token_seconds` is the time per token after the first."""

    prompt_tokens: int
    answer_tokens: int
    first_token_seconds: float
    token_seconds: float


class WorkerClient:
    """One connection for each request, so that calls from several threads do not meet."""

    def __init__(self, url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"--calibrate {url!r} must be like http://HOST:PORT")
        self.url = url.rstrip("/")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        card = self._card(model)
        self.model = str(card["id"])
        length = card.get("max_model_len")
        self.context_tokens: int | None = length if isinstance(length, int) and length > 0 else None

    def complete(self, prompt: str, answer_tokens: int) -> Timed:
        """Send a prompt and read its whole answer.

        Raises:
            KvrouterError: it is refused, or not the stream that was asked for.
        """
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": answer_tokens,
            "min_tokens": answer_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.perf_counter()
        times: list[float] = []
        usage: dict[str, Any] = {}
        try:
            connection = self._connect()
            try:
                connection.request("POST", f"{self._base}/v1/completions", json.dumps(body), self._headers)
                response = connection.getresponse()
                if response.status != 200:
                    raise self._refused(response, "/v1/completions")
                for line in response:
                    if line.startswith(b"data: {"):
                        chunk = json.loads(line[len(b"data: ") :])
                        usage = chunk.get("usage") or usage
                        if chunk.get("choices"):
                            times.append(time.perf_counter())
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            raise KvrouterError(f"{self.url}/v1/completions: {str(error) or type(error).__name__}") from None
        tokens, prompt_tokens = usage.get("completion_tokens"), usage.get("prompt_tokens")
        if not times or not isinstance(tokens, int) or not isinstance(prompt_tokens, int):
            raise KvrouterError(f"{self.url}/v1/completions: the stream ended without tokens, or without `usage`")
        return Timed(
            prompt_tokens=prompt_tokens,
            answer_tokens=tokens,
            first_token_seconds=times[0] - began,
            token_seconds=(times[-1] - times[0]) / max(1, tokens - 1),
        )

    def metrics(self) -> str:
        """Return what the worker tells at /metrics; nothing if it tells nothing."""
        try:
            return self._get("/metrics").decode("utf-8", "replace")
        except KvrouterError:
            return ""

    def _card(self, model: str | None) -> dict[str, Any]:
        try:
            cards = json.loads(self._get("/v1/models"))["data"]
            found = [card for card in cards if model is None or card["id"] == model]
        except (ValueError, KeyError, TypeError):
            raise KvrouterError(f"{self.url}/v1/models: the answer is no list of models") from None
        if not found:
            named = f"no model {model!r}" if model is not None else "no model"
            raise KvrouterError(f"{self.url}/v1/models: there is {named}")
        first: dict[str, Any] = found[0]
        return first

    def _get(self, path: str) -> bytes:
        try:
            connection = self._connect()
            try:
                connection.request("GET", self._base + path, headers=self._headers)
                response = connection.getresponse()
                if response.status != 200:
                    raise self._refused(response, path)
                return response.read(_ANSWER_BYTES_MAX)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise KvrouterError(f"{self.url}{path}: {str(error) or type(error).__name__}") from None

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=_TIMEOUT_SECONDS)

    def _refused(self, response: http.client.HTTPResponse, path: str) -> KvrouterError:
        said = response.read(_SHOWN).decode("utf-8", "replace").strip()
        return KvrouterError(f"{self.url}{path} answered {response.status} {response.reason}: {said}")
