"""Tokens that somebody has signed (JWT, RFC 7519): HS256, RS256 and ES256, with a key of a file or a set (JWKS).

What was verified is remembered until it is over, so that a signature is checked once and not for every request. The
file of the keys may change while it is used.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

import msgspec

from kvrouter.errors import MissingExtraError, PermissionDeniedError, SettingsError, UnauthenticatedError
from kvrouter.transport.access import Identity
from kvrouter.transport.tls import file_stamp, log_unreadable, read_pem

try:
    import jwt
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
except ImportError as missing:
    raise MissingExtraError("tokens that are signed (JWT)", "jwt") from missing

__all__ = ["JwtVerifier"]

ALGORITHMS = ("HS256", "RS256", "ES256")
_TOKEN_CHARACTERS_MAX = 16 << 10
_REMEMBERED_MAX = 4096
_LOOK_SECONDS = 1.0
_SECRET_BYTES_MIN = 32
"""RFC 7518, section 3.2: a secret has at least the length of the hash."""
_NUMERIC = (int, float)

_Keys = dict[str, tuple[str, Any]]
"""By key id: the algorithm that the key is for, and the key. A single key has the id ''."""


class JwtVerifier:
    """An `Authoriser`. Exactly one of `key_path` (public key in PEM, or a secret) and `jwks_path` names the keys.

    A token needs `exp` and `sub`, which names who asks; `issuer` and `audience` must be as given, if they are. Who has
    not the `scope` in `scope` or `scp` may not come in; the claim `endpoints`, a list, narrows what may be asked for.
    `clock` gives the time of day in seconds; clocks may differ by `leeway_seconds`.

    Raises:
        SettingsError: the keys cannot be read; the text names the file.
    """

    def __init__(
        self,
        *,
        key_path: str | None = None,
        jwks_path: str | None = None,
        issuer: str | None = None,
        audience: str | None = None,
        scope: str | None = None,
        leeway_seconds: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if (key_path is None) == (jwks_path is None):
            raise SettingsError("JWT: name either a key or a set of keys (JWKS)")
        self._path, self._is_set = (key_path or jwks_path or ""), jwks_path is not None
        self._issuer, self._audience, self._scope = issuer, audience, scope
        self._leeway_seconds, self._clock = leeway_seconds, clock
        self.failed_reloads = 0
        self._known: OrderedDict[bytes, tuple[Identity, float]] = OrderedDict()
        self._looked_at = clock()
        self._stamp = file_stamp(self._path)
        self._keys = self._read()

    def identify(self, token: str | None) -> Identity:
        """Return who a token was signed for; see `Authoriser`."""
        if token is None:
            raise UnauthenticatedError("a token is needed")
        now = self._clock()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            self._look()
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is None:
            known = self._verified(token, now)
            self._known[digest] = known
            if len(self._known) > _REMEMBERED_MAX:
                self._known.popitem(last=False)
        if now >= known[1] + self._leeway_seconds:
            self._known.pop(digest, None)
            raise UnauthenticatedError("the token is over")
        return known[0]

    def _verified(self, token: str, now: float) -> tuple[Identity, float]:
        claims = self._claims(token)
        expires, begins = claims["exp"], claims.get("nbf", 0)
        if not all(isinstance(each, _NUMERIC) and isfinite(each) for each in (expires, begins)):
            raise UnauthenticatedError("the token's times are none")
        if now + self._leeway_seconds < begins:
            raise UnauthenticatedError("the token is not good yet")
        if self._scope is not None and self._scope not in _scopes(claims):
            raise PermissionDeniedError(f"the token has not the scope {self._scope!r}")
        narrowed = claims.get("endpoints")
        if narrowed is not None and not isinstance(narrowed, list):
            raise UnauthenticatedError("the token's endpoints are no list")
        endpoints = None if narrowed is None else frozenset(map(str, narrowed))
        return Identity(str(claims["sub"]), endpoints), float(expires)

    def _claims(self, token: str) -> Mapping[str, Any]:
        if len(token) > _TOKEN_CHARACTERS_MAX:
            raise UnauthenticatedError("the token is too long")
        try:
            algorithm, key = self._key(jwt.get_unverified_header(token))
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                options={
                    "require": ["exp", "sub"],
                    # The time is the clock's, which is given.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": self._audience is not None,
                },
            )
        except jwt.PyJWTError as error:
            raise UnauthenticatedError(f"the token is not good: {_reason(error)}") from None
        return claims

    def _key(self, header: Mapping[str, Any]) -> tuple[str, Any]:
        """The key that a token says it was signed with; what it says of the algorithm is not believed."""
        keys = self._keys
        found = keys.get(str(header.get("kid", "")))
        if found is None and len(keys) == 1 and (not self._is_set or "kid" not in header):
            found = next(iter(keys.values()))
        if found is None:
            raise UnauthenticatedError("the token was signed with a key that is not known here")
        return found

    # -- the keys ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Read the keys again if their file has changed; a file that cannot be read changes nothing."""
        stamp = file_stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = self._read()
        except SettingsError as error:
            self.failed_reloads += 1
            log_unreadable(error)
        else:
            self._known.clear()  # some may have been signed with a key that is not there any more

    def _read(self) -> _Keys:
        data = read_pem(self._path)
        return _key_set(self._path, data) if self._is_set else {"": _single_key(self._path, data)}


def _single_key(path: str, data: bytes) -> tuple[str, Any]:
    if b"-----BEGIN" not in data:
        secret = data.strip()
        if len(secret) < _SECRET_BYTES_MIN:
            raise SettingsError(f"JWT: {path}: a secret has at least {_SECRET_BYTES_MIN} bytes")
        return "HS256", secret
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(f"JWT: {path}: no public key in PEM") from None
    if isinstance(key, rsa.RSAPublicKey):
        return "RS256", key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return "ES256", key
    raise SettingsError(f"JWT: {path}: neither an RSA key nor one of the curve P-256")


def _key_set(path: str, data: bytes) -> _Keys:
    """Keys for other algorithms and uses are left out; nobody says that a set is ours alone."""
    try:
        entries = msgspec.json.decode(data, type=dict[str, Any]).get("keys")
    except (msgspec.DecodeError, UnicodeDecodeError):
        entries = None
    if not isinstance(entries, list):
        raise SettingsError(f"JWT: {path}: no set of keys (JWKS)")
    keys: _Keys = {}
    for entry in entries:
        algorithm = _algorithm_of(entry)
        if algorithm is None:
            continue
        try:
            keys[str(entry.get("kid", ""))] = algorithm, jwt.PyJWK(entry, algorithm=algorithm).key
        except jwt.PyJWTError as error:
            raise SettingsError(f"JWT: {path}: a key cannot be read ({type(error).__name__})") from None
    if not keys:
        raise SettingsError(f"JWT: {path}: no key for {', '.join(ALGORITHMS)}")
    return keys


def _algorithm_of(entry: object) -> str | None:
    match entry:
        case {"use": str(use)} if use != "sig":
            return None
        case {"alg": str(algorithm)}:
            return algorithm if algorithm in ALGORITHMS else None
        case {"kty": "RSA"}:
            return "RS256"
        case {"kty": "EC", "crv": "P-256"}:
            return "ES256"
        case {"kty": "oct"}:
            return "HS256"
    return None


def _scopes(claims: Mapping[str, Any]) -> set[str]:
    told = claims.get("scope", claims.get("scp", ""))
    return set(map(str, told)) if isinstance(told, list) else set(str(told).split())


def _reason(error: Exception) -> str:
    """Words of our own: those of the library may repeat what the token says."""
    match error:
        case jwt.InvalidAudienceError():
            return "it is for another audience"
        case jwt.InvalidIssuerError():
            return "it is of another issuer"
        case jwt.MissingRequiredClaimError():
            return f"it has no {error.claim}"
        case jwt.InvalidSignatureError():
            return "its signature is wrong"
        case jwt.InvalidAlgorithmError():
            return "it was signed with another algorithm"
    return "it cannot be read"
