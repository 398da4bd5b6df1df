"""Who may call: bearer tokens where keys are set, and no pages of other sites where they are not. Pure.

A gateway without keys listens on this machine only (or was told `--insecure`). A browser on it sends requests anywhere
that a page says, so requests whose `Origin` is another host are refused then; programs send none.
"""

import hmac

from starlette.types import Scope

from kvrouter.errors import GatewayError

__all__ = ["Guard"]

_OPEN_PATHS = frozenset({"/live", "/livez", "/ready", "/readyz", "/health"})
_ADMIN = "/admin/"


class Guard:
    """Checks a request before anything else does."""

    def __init__(self, *, api_keys: tuple[str, ...], admin_keys: tuple[str, ...], insecure: bool) -> None:
        self._api_keys = tuple(key.encode() for key in api_keys)
        self._admin_keys = tuple(key.encode() for key in admin_keys)
        self.asks_for_keys = bool(api_keys or admin_keys)
        self._lets_all_in = not self.asks_for_keys and insecure

    def check(self, scope: Scope) -> None:
        """Let a request pass, or say why not. Raises GatewayError: 401 or 403."""
        if self._lets_all_in:
            return
        path: str = scope["path"]
        if not self.asks_for_keys:
            _refuse_foreign_page(scope)
        elif path not in _OPEN_PATHS:
            self._check_token(path, scope)

    def _check_token(self, path: str, scope: Scope) -> None:
        token = _bearer_token(_header(scope, b"authorization"))
        is_admin = _matches(token, self._admin_keys)
        is_client = _matches(token, self._api_keys)
        for_admins = path.startswith(_ADMIN) and bool(self._admin_keys)
        if is_admin or (is_client and not for_admins) or (not self._api_keys and not for_admins):
            return
        if is_client:
            raise GatewayError("this key is none of an administrator", status=403, code="PERMISSION_DENIED")
        text = "incorrect API key" if token else "an API key is needed: Authorization: Bearer KEY"
        raise GatewayError(text, status=401, code="UNAUTHENTICATED")


def _refuse_foreign_page(scope: Scope) -> None:
    origin = _header(scope, b"origin")
    if origin and origin.partition(b"://")[2] != _header(scope, b"host"):
        raise GatewayError("a page of another site may not ask here", status=403, code="PERMISSION_DENIED")


def _header(scope: Scope, name: bytes) -> bytes:
    for each, value in scope["headers"]:
        if each == name:
            found: bytes = value
            return found
    return b""


def _bearer_token(authorization: bytes) -> bytes:
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _matches(token: bytes, keys: tuple[bytes, ...]) -> bool:
    """Compare with every key, so that the time tells nothing about which one matched."""
    found = False
    for key in keys:
        found |= hmac.compare_digest(token, key)
    return found
