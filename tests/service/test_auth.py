"""Who may call what."""

import pytest

from kvrouter.errors import RequestError, SettingsError
from kvrouter.service.auth import Authenticator, refuse_foreign_page, refuse_open_bind


def _status(authenticator: Authenticator, method: str, path: str, token: str | None) -> int:
    try:
        authenticator.check(method, path, None if token is None else f"Bearer {token}".encode())
    except RequestError as error:
        return error.status
    return 200


def test_without_keys_everybody_may_do_everything() -> None:
    """Loopback needs no tokens."""
    authenticator = Authenticator()

    assert authenticator.is_open
    assert _status(authenticator, "POST", "/workers", None) == 200


@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("POST", "/v1/completions", None, 401),
        ("POST", "/v1/completions", "wrong", 401),
        ("POST", "/v1/completions", "client", 200),
        ("POST", "/v1/completions", "second", 200),
        ("POST", "/v1/completions", "admin", 200),
        ("GET", "/workers", "client", 200),
        ("POST", "/workers", "client", 403),
        ("DELETE", "/workers/a", "client", 403),
        ("DELETE", "/workers/a", "admin", 200),
        ("DELETE", "/workers/a", None, 401),
        ("GET", "/livez", None, 200),
        ("GET", "/readyz", None, 200),
        ("GET", "/metrics", None, 401),
    ],
)
def test_keys_open_what_is_theirs(method: str, path: str, token: str | None, status: int) -> None:
    """Clients may use, admins may change, probes need nothing."""
    authenticator = Authenticator(api_keys=("client", "second"), admin_keys=("admin",))

    assert _status(authenticator, method, path, token) == status


def test_an_admin_key_alone_leaves_reading_and_requests_open() -> None:
    """Only changing workers asks for it."""
    authenticator = Authenticator(admin_keys=("admin",))

    assert _status(authenticator, "POST", "/v1/completions", None) == 200
    assert _status(authenticator, "POST", "/workers", None) == 401
    assert _status(authenticator, "POST", "/workers", "admin") == 200


def test_any_api_key_changes_workers_where_no_admin_key_is_set() -> None:
    """One key is enough for a small set-up."""
    assert _status(Authenticator(api_keys=("k",)), "POST", "/workers", "k") == 200


@pytest.mark.parametrize(
    "header", [b"k", b"Basic k", b"Bearer", b"Bearer k k", b"bearer x", "Bearer schlüssel".encode()]
)
def test_a_malformed_header_is_no_key(header: bytes) -> None:
    """Nothing but the scheme Bearer and the exact key opens."""
    authenticator = Authenticator(api_keys=("k",))

    with pytest.raises(RequestError):
        authenticator.check("GET", "/metrics", header)

    assert authenticator.refused == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.9.1"])
def test_loopback_needs_no_key(host: str) -> None:
    """The default is usable at once."""
    refuse_open_bind(host, api_keys=(), insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "router.example"])
def test_a_wider_bind_needs_a_key_or_a_word(host: str) -> None:
    """Nobody opens a router to the network by accident."""
    refuse_open_bind(host, api_keys=("k",), insecure=False)
    refuse_open_bind(host, api_keys=(), insecure=True)

    with pytest.raises(SettingsError, match="KVROUTER_API_KEYS"):
        refuse_open_bind(host, api_keys=(), insecure=False)


def test_pages_of_other_sites_change_nothing() -> None:
    """A browser names where a page came from; only our own pages and programs may change workers."""
    host = b"127.0.0.1:8080"
    refuse_foreign_page("POST", "/workers", None, host)
    refuse_foreign_page("POST", "/workers", b"http://127.0.0.1:8080", host)
    refuse_foreign_page("POST", "/v1/completions", b"https://chat.example", host)
    refuse_foreign_page("GET", "/workers", b"https://evil.example", host)

    for origin in (b"https://evil.example", b"null", b"http://127.0.0.1:8081"):
        with pytest.raises(RequestError) as caught:
            refuse_foreign_page("DELETE", "/workers/a", origin, host)
        assert caught.value.status == 403
