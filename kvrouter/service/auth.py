"""Who may call what: bearer tokens, compared in constant time.

Without keys everything is open, which is only allowed on loopback (`refuse_open_bind`). `/livez` and `/readyz` are
always open, because a kubelet has no token. Changing the fleet needs an admin key where one is set.
"""

import hmac
import ipaddress

from kvrouter.errors import RequestError, SettingsError

__all__ = ["Authenticator", "bearer_token", "is_loopback", "refuse_foreign_page", "refuse_open_bind"]

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/ready"})
_FLEET = ("/workers", "/request-plane", "/config")
_FLEET_FOLDERS = tuple(f"{path}/" for path in _FLEET)
_SAFE_METHODS = frozenset({"GET", "HEAD"})


def refuse_open_bind(
    host: str, *, api_keys: tuple[str, ...], insecure: bool, variable: str = "KVROUTER_API_KEYS"
) -> None:
    """Refuse to listen beyond this machine without keys.

    Raises:
        SettingsError: the address is not loopback, there are no keys, and nobody said `--insecure`.
    """
    if insecure or api_keys or is_loopback(host):
        return
    raise SettingsError(f"refusing to bind {host} without API keys: set {variable} (or --api-key), or say --insecure")


def refuse_foreign_page(method: str, path: str, origin: bytes | None, host: bytes | None) -> None:
    """Refuse changes that a page of another site asks for from a browser on this machine.

    On loopback nobody needs a key, and browsers send simple POSTs anywhere: without this, any page that somebody
    looks at could register a worker and read what others ask. Programs send no Origin.

    Raises:
        RequestError: 403, the origin is not this service.
    """
    if origin is None or not changes_fleet(method, path):
        return
    if origin.partition(b"://")[2] != host:
        raise RequestError(
            "workers cannot be changed by a page of another site", status=403, kind="permission_error", code="origin"
        )


class Authenticator:
    """Checks the `Authorization` header of a request; a few microseconds, whatever the key."""

    __slots__ = ("_admin_keys", "_api_keys", "refused")

    def __init__(self, *, api_keys: tuple[str, ...] = (), admin_keys: tuple[str, ...] = ()) -> None:
        self._api_keys = tuple(key.encode() for key in api_keys)
        self._admin_keys = tuple(key.encode() for key in admin_keys)
        self.refused = 0

    @property
    def is_open(self) -> bool:
        """Whether no key is asked of anybody."""
        return not self._api_keys and not self._admin_keys

    def check(self, method: str, path: str, authorization: bytes | None) -> None:
        """Let the request pass, or say why not.

        Raises:
            RequestError: 401, no token or a wrong one; 403, a good token that may not change the fleet.
        """
        if self.is_open or path in OPEN_PATHS:
            return
        token = bearer_token(authorization)
        is_admin = _matches(token, self._admin_keys)
        if is_admin or (not changes_fleet(method, path) and not self._api_keys):
            return
        is_client = _matches(token, self._api_keys)
        if is_client and not (self._admin_keys and changes_fleet(method, path)):
            return
        self.refused += 1
        if is_client:
            raise RequestError(
                "this key may not change workers; use an admin key",
                status=403,
                kind="permission_error",
                code="not_admin",
            )
        text = "incorrect API key" if token else "an API key is needed: Authorization: Bearer KEY"
        raise RequestError(text, status=401, kind="authentication_error", code="invalid_api_key")


def changes_fleet(method: str, path: str) -> bool:
    """Tell whether a request belongs to the mutating part of the admin API."""
    return path.startswith(_FLEET) and method not in _SAFE_METHODS and f"{path}/".startswith(_FLEET_FOLDERS)


def bearer_token(authorization: bytes | None) -> bytes:
    """Return the token of an `Authorization` header; empty where there is none."""
    if authorization is None:
        return b""
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _matches(token: bytes, keys: tuple[bytes, ...]) -> bool:
    """Compare with every key, so that the time tells nothing about which one matched."""
    found = False
    for key in keys:
        found |= hmac.compare_digest(token, key)
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
