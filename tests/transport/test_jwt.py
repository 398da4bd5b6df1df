"""Signed tokens: which are good, which are not and why, and keys that change while they are used."""

import json
import os
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kvrouter.errors import PermissionDeniedError, SettingsError, UnauthenticatedError
from kvrouter.transport.access import AccessGuard
from kvrouter.transport.jwt_access import JwtVerifier
from tests.servers import NatsServer
from tests.transport.authority import private_pem
from tests.transport.conformance import run
from tests.transport.secured import WAYS, Secured, Ways

NOW = 1_000_000.0
SECRET = b"a secret of thirty-two bytes or more"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
SIGNED_BY: dict[str, Any] = {"HS256": SECRET, "RS256": RSA, "ES256": EC}


def public(key: Any) -> bytes:
    """A public key as its file."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[no-any-return]


FILES = {"HS256": SECRET + b"\n", "RS256": public(RSA), "ES256": public(EC)}


def signed(algorithm: str = "HS256", key: Any = None, kid: str | None = None, **claims: Any) -> str:
    """A token that is good for a minute, unless `claims` say otherwise; None takes one away."""
    told = {"sub": "blue", "exp": NOW + 60, **claims}
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(
        {name: value for name, value in told.items() if value is not None},
        SIGNED_BY[algorithm] if key is None else key,
        algorithm=algorithm,
        headers=headers,
    )


class Clock:
    """A time of day that stands still."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of verifiers."""
    return Clock()


@pytest.fixture(params=SIGNED_BY)
def algorithm(request: pytest.FixtureRequest) -> str:
    """Every way to sign."""
    return str(request.param)


@pytest.fixture
def key_file(tmp_path: Path, algorithm: str) -> str:
    """The key of an algorithm in a file."""
    path = tmp_path / "key"
    path.write_bytes(FILES[algorithm])
    return str(path)


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    """The secret in a file."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return str(path)


def test_a_token_tells_who_asks(algorithm: str, key_file: str, clock: Clock) -> None:
    """A-140: with a secret, an RSA key or one of the curve P-256; a second look costs no signature."""
    verifier = JwtVerifier(key_path=key_file, clock=clock)
    token = signed(algorithm)

    assert verifier.identify(token).name == "blue"
    assert verifier.identify(token).name == "blue"
    assert len(verifier._known) == 1


def test_a_token_of_another_key_is_refused(algorithm: str, key_file: str, clock: Clock) -> None:
    """A-140: also one whose signature was taken from another."""
    verifier = JwtVerifier(key_path=key_file, clock=clock)
    others: dict[str, Any] = {
        "HS256": b"another secret of thirty-two bytes or more",
        "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
    }
    head, _, signature = signed(algorithm).split(".")
    forged = ".".join((head, signed(algorithm, sub="admin").split(".")[1], signature))

    for token in (signed(algorithm, others[algorithm]), forged):
        with pytest.raises(UnauthenticatedError, match="signature is wrong"):
            verifier.identify(token)


def test_what_a_token_says_of_its_algorithm_is_not_believed(algorithm: str, key_file: str, clock: Clock) -> None:
    """A-140: neither none at all, nor a secret that is the public key."""
    verifier = JwtVerifier(key_path=key_file, clock=clock)
    unsigned = jwt.encode({"sub": "blue", "exp": NOW + 60}, None, algorithm="none")  # type: ignore[arg-type]
    other = next(name for name in SIGNED_BY if name != algorithm)

    for token in (unsigned, signed(other)):
        with pytest.raises(UnauthenticatedError):
            verifier.identify(token)


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"exp": NOW - 31}, "over"),
        ({"exp": None}, "no exp"),
        ({"exp": "soon"}, "times are none"),
        ({"exp": float("nan")}, "times are none"),
        ({"exp": float("inf")}, "times are none"),
        ({"endpoints": "echo"}, "endpoints are no list"),
        ({"sub": None}, "no sub"),
        ({"nbf": NOW + 31}, "not good yet"),
        ({"iss": "elsewhere"}, "another issuer"),
        ({"iss": None}, "no iss"),
        ({"aud": "another"}, "another audience"),
        ({"aud": None}, "no aud"),
    ],
)
def test_claims_that_are_not_as_they_must_be_are_named(
    claims: dict[str, Any], said: str, secret_file: str, clock: Clock
) -> None:
    """A-140: expiry, beginning, issuer, audience; clocks may differ by half a minute."""
    verifier = JwtVerifier(key_path=secret_file, issuer="us", audience="workers", clock=clock)
    good: dict[str, Any] = {"iss": "us", "aud": ["others", "workers"], "exp": NOW - 29, "nbf": NOW + 29}
    assert verifier.identify(signed(**good)).name == "blue"

    with pytest.raises(UnauthenticatedError, match=said):
        verifier.identify(signed(**{**good, **claims}))


def test_a_token_ends_while_it_is_remembered(secret_file: str, clock: Clock) -> None:
    """A-140: the time is looked at for every request."""
    verifier = JwtVerifier(key_path=secret_file, clock=clock)
    token = signed()
    assert verifier.identify(token).name == "blue"
    clock.now += 60 + 30

    with pytest.raises(UnauthenticatedError, match="over"):
        verifier.identify(token)


def test_a_scope_lets_in_and_endpoints_narrow(secret_file: str, clock: Clock) -> None:
    """A-140: who is known and has not the scope may not ask."""
    verifier = JwtVerifier(key_path=secret_file, scope="generate", clock=clock)

    assert verifier.identify(signed(scope="read generate")).endpoints is None
    assert verifier.identify(signed(scp=["generate"], endpoints=["echo"])).endpoints == frozenset({"echo"})
    for claims in ({}, {"scope": "generated"}, {"scp": ["read"]}):
        with pytest.raises(PermissionDeniedError, match="generate"):
            verifier.identify(signed(**claims))


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "é" * 10, "x" * 20_000, "..", "eyJhbGciOiJIUzI1NiJ9..x"])
def test_what_is_no_token_is_refused(token: str, secret_file: str, clock: Clock) -> None:
    """A-140: whatever it is, and it is not repeated."""
    with pytest.raises(UnauthenticatedError) as refusal:
        JwtVerifier(key_path=secret_file, clock=clock).identify(token)

    assert len(token) < 10 or token not in str(refusal.value)


def test_a_set_of_keys_is_searched_by_name(tmp_path: Path, clock: Clock) -> None:
    """A-140: as an issuer publishes them; keys for other uses are left out."""
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [jwk(RSA, "r"), jwk(EC, "e"), {**jwk(RSA, "x"), "use": "enc"}, {"kty": "?"}]}))
    verifier = JwtVerifier(jwks_path=str(path), clock=clock)

    assert verifier.identify(signed("RS256", kid="r")).name == "blue"
    assert verifier.identify(signed("ES256", kid="e")).name == "blue"
    for token in (signed("RS256", kid="x"), signed("RS256"), signed("ES256", kid="r"), signed("HS256", kid="e")):
        with pytest.raises(UnauthenticatedError):
            verifier.identify(token)


def test_a_set_of_keys_is_read_again_when_it_changes(tmp_path: Path, clock: Clock) -> None:
    """A-140: a new key counts, one that is gone does not; a file that is half written changes nothing."""
    path = tmp_path / "jwks.json"

    def publish(text: str, changed_at: int) -> None:
        path.write_text(text)
        os.utime(path, (changed_at, changed_at))
        clock.now += 1

    publish(json.dumps({"keys": [jwk(EC, "old")]}), 1)
    verifier = JwtVerifier(jwks_path=str(path), clock=clock)
    assert verifier.identify(signed("ES256", kid="old")).name == "blue"

    publish('{"keys": [', 2)
    assert verifier.identify(signed("ES256", kid="old")).name == "blue"
    assert verifier.failed_reloads == 1

    publish(json.dumps({"keys": [jwk(RSA, "new")]}), 3)
    assert verifier.identify(signed("RS256", kid="new")).name == "blue"
    with pytest.raises(UnauthenticatedError, match="not known here"):
        verifier.identify(signed("ES256", kid="old"))


def test_what_is_remembered_has_a_bound(secret_file: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A-140: whoever has a good key may make as many tokens as they like."""
    monkeypatch.setattr("kvrouter.transport.jwt_access._REMEMBERED_MAX", 3)
    verifier = JwtVerifier(key_path=secret_file, clock=clock)
    for number in range(5):
        verifier.identify(signed(sub=f"client-{number}"))

    assert len(verifier._known) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"too short", "at least 32 bytes"),
        (b"-----BEGIN PUBLIC KEY-----\nx", "no public key"),
        (private_pem(EC), "no public key"),
        (public(ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (None, "No such file"),
    ],
)
def test_a_key_that_is_none_is_an_error(content: bytes | None, said: str, tmp_path: Path) -> None:
    """A-140: at the start, with the file's name."""
    path = tmp_path / "key-file"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingsError, match=f"key-file.*{said}"):
        JwtVerifier(key_path=str(path))


@pytest.mark.parametrize("content", ["", "{}", '{"keys": {}}', '{"keys": []}', '{"keys": [{"kty": "RSA", "n": "x"}]}'])
def test_a_set_of_keys_that_is_none_is_an_error(content: str, tmp_path: Path) -> None:
    """A-140: likewise."""
    path = tmp_path / "jwks.json"
    path.write_text(content)

    with pytest.raises(SettingsError, match=r"jwks\.json"):
        JwtVerifier(jwks_path=str(path))


@pytest.mark.parametrize("paths", [{}, {"key_path": "a", "jwks_path": "b"}])
def test_keys_stand_in_one_place(paths: dict[str, Any]) -> None:
    """A-140: and in one at least."""
    with pytest.raises(SettingsError, match="JWT"):
        JwtVerifier(**paths)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> JwtVerifier:
    """A verifier with the real time."""
    path = tmp_path_factory.mktemp("jwt") / "key"
    path.write_bytes(FILES["ES256"])
    return JwtVerifier(key_path=str(path))


@pytest.mark.parametrize("way", WAYS)
def test_signed_tokens_go_over_every_transport(way: str, nats: NatsServer, verifier: JwtVerifier) -> None:
    """A-140: one that is over is refused."""
    now = time.time()

    async def scenario() -> None:
        async with Secured.started(way, Ways(nats=nats.url), AccessGuard(authorise=verifier)) as served:
            assert await served.ask(served.client(signed("ES256", exp=now + 3600))) == "blue"
            with pytest.raises(UnauthenticatedError, match="over"):
                await served.ask(served.client(signed("ES256", exp=now - 3600)))

    run(scenario())


def jwk(key: Any, kid: str) -> dict[str, Any]:
    """A public key as an entry of a set."""
    kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid}
