"""Addresses, subjects, message ids and credentials of the JetStream event plane."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.errors import SettingsError
from kvrouter.events import Source
from kvrouter.events.nats_names import (
    NatsCredentials,
    events_stream,
    events_subject,
    message_id,
    parse_nats_endpoint,
    state_subject,
    stream_name,
)
from kvrouter_subscribers.jetstream_pull import place_of


def test_a_components_stream_has_the_name_that_others_expect() -> None:
    """The wire's own rule: a slug of namespace and component, with dashes."""
    assert events_stream("dynamo", "backend") == "namespace-dynamo-component-backend-kv-events"
    assert events_stream("My.Space", "a/b") == "namespace-my-space-component-a-b-kv-events"


@pytest.mark.parametrize(("given_name", "name"), [("a-b_C9", "a-b_C9"), ("a/b\\c", "a_b_c")])
def test_slashes_in_a_streams_name_become_underscores(given_name: str, name: str) -> None:
    """Everything else that NATS cannot have is refused."""
    assert stream_name(given_name) == name


@pytest.mark.parametrize("name", ["", "a.b", "a b", "a*", "a>", "ä", "a" * 256])
def test_a_name_that_nats_cannot_have_is_refused(name: str) -> None:
    """Guessing another one would connect who should not meet."""
    with pytest.raises(SettingsError):
        stream_name(name)


def test_an_address_is_taken_apart() -> None:
    """Its text has no credentials; a user without a password is a token."""
    plain = parse_nats_endpoint("nats://10.0.0.7/kv")
    secured = parse_nats_endpoint("tls://us%40er:p%3Aw@[::1]:4333/a/b")
    token = parse_nats_endpoint("nats://t0ken@host:1/kv")

    assert (str(plain), plain.credentials, plain.secure) == ("nats://10.0.0.7:4222/kv", None, False)
    assert (str(secured), secured.secure) == ("tls://[::1]:4333/a_b", True)
    assert secured.credentials == NatsCredentials(username="us@er", password="p:w")
    assert token.credentials == NatsCredentials(token="t0ken")
    assert "p:w" not in repr(secured)


def test_subjects_of_events_are_kept_by_the_stream_and_those_of_state_are_not() -> None:
    """The stream keeps exactly one token after its name."""
    assert events_subject("kv") == "kv.queue"
    assert state_subject("kv", Source("w.1", 3)) == "kv.state.w=2E1.3"


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_workers_have_different_subjects(one: str, other: str) -> None:
    """Whatever the workers are called, each subject is one that NATS takes."""
    first, second = (state_subject("kv", Source(name, 0)) for name in (one, other))

    assert (first == second) == (one == other)
    assert first.isascii()
    assert first.count(".") == 3
    assert not set(first) & set(" *>\t\r\n")


def test_a_message_id_names_worker_rank_life_and_number() -> None:
    """No two batches share one."""
    assert message_id(Source("worker", 1), 0xAB, 42) == "worker-1-00000000000000ab:42"


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        (
            {"NATS_AUTH_USERNAME": "u", "NATS_AUTH_PASSWORD": "p", "NATS_AUTH_TOKEN": "t"},
            {"user": "u", "password": "p"},
        ),
        ({"NATS_AUTH_USERNAME": "u", "NATS_AUTH_TOKEN": "t", "NATS_AUTH_NKEY": "n"}, {"token": "t"}),
        ({"NATS_AUTH_NKEY": "n", "NATS_AUTH_CREDENTIALS_FILE": "f"}, {"nkeys_seed_str": "n"}),
        ({"NATS_AUTH_CREDENTIALS_FILE": "f"}, {"user_credentials": "f"}),
        ({}, {"user": "user", "password": "user"}),
    ],
)
def test_credentials_of_an_environment_are_tried_in_the_documented_order(
    environment: dict[str, str], options: dict[str, str]
) -> None:
    """The first that is complete counts."""
    assert NatsCredentials.from_environment(environment).connect_options() == options


def test_credentials_are_never_shown() -> None:
    """Not by a log that prints what it was given."""
    assert repr(NatsCredentials(username="u", password="p", token="t", nkey_seed="n")) == "NatsCredentials()"
    assert NatsCredentials().connect_options() == {}


@pytest.mark.parametrize(
    "subject",
    ["$JS.ACK.kv.reader.2.17.5.1700000000000000000.9", "$JS.ACK.hub.ACCOUNT.kv.reader.2.17.5.1700000000000000000.9.x"],
)
def test_a_messages_place_is_read_from_its_acknowledgement(subject: str) -> None:
    """Both forms that servers write."""
    assert place_of(subject) == (17, 2, 9)
