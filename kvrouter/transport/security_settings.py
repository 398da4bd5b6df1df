"""Who may ask and what is shown to whom, from the environment: tokens, keys, rates, and the files of the transports.

TLS of TCP and HTTP stands with their own settings (`plane_settings.py`, `http_settings.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvrouter.errors import SettingsError
from kvrouter.events.nats_names import GUEST_CREDENTIALS, NatsCredentials
from kvrouter.transport.access import AccessGuard, ApiKey, Authoriser, StaticKeys, Token
from kvrouter.transport.nats_access import NatsAccess
from kvrouter.transport.rate_limit import TokenBuckets
from kvrouter.transport.tls import PlaneTls, file_stamp, log_unreadable, plane_tls
from kvrouter.transport.variables import Variables
from kvrouter.transport.zmq_curve import ZmqCurve, zmq_curve

__all__ = ["JwtSettings", "PlaneSecurity", "TokenFile", "security_settings"]


class TokenFile:
    """A token in a file that others may renew; read again for each request that finds it changed.

    Raises:
        SettingsError: it cannot be read, or is empty. Later what was read before goes on.
    """

    def __init__(self, path: str) -> None:
        self._path, self._stamp = path, file_stamp(path)
        self._token = _read_token(path)

    def __call__(self) -> str:
        """The token that is good now."""
        stamp = file_stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._token = _read_token(self._path)
            except SettingsError as error:
                log_unreadable(error)
        return self._token


def _read_token(path: str) -> str:
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no token is written like this"
        raise SettingsError(f"token: cannot read {path}: {reason}") from None
    if not token:
        raise SettingsError(f"token: {path} is empty")
    return token


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSettings:
    """What `JwtVerifier` is made with."""

    key_path: str | None = None
    jwks_path: str | None = None
    issuer: str | None = None
    audience: str | None = None
    scope: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSecurity:
    """What clients show, what servers ask for, and the files of those transports that have no settings of their own."""

    token: Token | None = field(default=None, repr=False)
    keys: tuple[ApiKey, ...] = ()
    jwt: JwtSettings | None = None
    requests_per_second: float | None = None
    burst: float | None = None
    grpc_tls: PlaneTls = field(default_factory=PlaneTls)
    nats: NatsAccess = field(default_factory=NatsAccess)
    curve: ZmqCurve | None = None

    def guard(self) -> AccessGuard | None:
        """What stands before the endpoints of a worker; None where everybody may ask, at any rate.

        Raises:
            SettingsError: keys cannot be read.
            MissingExtraError: signed tokens need a part that is not installed.
        """
        limit = None
        if self.requests_per_second is not None:
            limit = TokenBuckets(per_second=self.requests_per_second, burst=self.burst)
        authorise = self._authoriser()
        return None if authorise is None and limit is None else AccessGuard(authorise=authorise, rate_limit=limit)

    def _authoriser(self) -> Authoriser | None:
        if self.keys:
            return StaticKeys(self.keys)
        if self.jwt is None:
            return None
        from kvrouter.transport.jwt_access import JwtVerifier  # noqa: PLC0415 - needs an extra

        asked = self.jwt
        return JwtVerifier(
            key_path=asked.key_path,
            jwks_path=asked.jwks_path,
            issuer=asked.issuer,
            audience=asked.audience,
            scope=asked.scope,
        )


def security_settings(environment: Mapping[str, str]) -> PlaneSecurity:
    """Read the settings.

    Raises:
        SettingsError: a value is none, or two exclude each other; the text names the variable.
    """
    found = Variables(environment)
    token, token_path = found.optional("REQUEST_TOKEN"), found.optional("REQUEST_TOKEN_PATH")
    if token is not None and token_path is not None:
        raise SettingsError("REQUEST_TOKEN and REQUEST_TOKEN_PATH exclude each other")
    keys, jwt = _keys(found), _jwt(found)
    if keys and jwt is not None:
        raise SettingsError("REQUEST_API_KEYS and REQUEST_JWT_… exclude each other")
    per_second, burst = found.number("REQUEST_RATE_LIMIT"), found.number("REQUEST_RATE_BURST")
    if burst is not None and (per_second is None or burst < 1):
        raise SettingsError("REQUEST_RATE_BURST is a number from 1 and needs REQUEST_RATE_LIMIT")
    credentials, nats_tls = NatsCredentials.from_environment(environment), plane_tls(found, "NATS_TLS")
    return PlaneSecurity(
        token=TokenFile(token_path) if token_path is not None else token,
        keys=keys,
        jwt=jwt,
        requests_per_second=per_second,
        burst=burst,
        grpc_tls=plane_tls(found, "GRPC_TLS"),
        nats=NatsAccess(
            credentials=None if credentials is GUEST_CREDENTIALS else credentials,
            tls=nats_tls if nats_tls.dials else None,
        ),
        curve=zmq_curve(found),
    )


def _keys(found: Variables) -> tuple[ApiKey, ...]:
    """`NAME=KEY` with commas between; a key alone is named by its place. Keys may end with `=`, as base64 does."""
    keys = []
    entries = [each.strip() for each in found.text("REQUEST_API_KEYS", "").split(",")]
    for number, entry in enumerate(filter(None, entries), start=1):
        name, _, key = entry.partition("=")
        is_named = bool(name and key.strip("="))
        keys.append(ApiKey(name=name, key=key) if is_named else ApiKey(name=f"key-{number}", key=entry))
    if len({each.name for each in keys}) < len(keys):
        raise SettingsError("REQUEST_API_KEYS: two keys have the same name")
    return tuple(keys)


def _jwt(found: Variables) -> JwtSettings | None:
    key, jwks, issuer, audience, scope = (
        found.optional(f"REQUEST_JWT_{name}") for name in ("KEY_PATH", "JWKS_PATH", "ISSUER", "AUDIENCE", "SCOPE")
    )
    if key is None and jwks is None:
        if issuer or audience or scope:
            raise SettingsError("REQUEST_JWT_ISSUER, _AUDIENCE and _SCOPE need REQUEST_JWT_KEY_PATH or …_JWKS_PATH")
        return None
    if key is not None and jwks is not None:
        raise SettingsError("REQUEST_JWT_KEY_PATH and REQUEST_JWT_JWKS_PATH exclude each other")
    return JwtSettings(key_path=key, jwks_path=jwks, issuer=issuer, audience=audience, scope=scope)
