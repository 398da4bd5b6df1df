"""Settings: who wins, what is refused, and that each refusal names its culprit in one line."""

import argparse
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from kvrouter.errors import SettingsError
from kvrouter.settings import Settings, sections_of
from kvrouter.settings_sources import add_settings_flags, all_settings, load_settings


def load(*flags: str, **environment: str) -> Settings:
    """Load as the command line would."""
    parser = argparse.ArgumentParser()
    add_settings_flags(parser)
    return load_settings(parser.parse_args(flags), environment)


def refusal(*flags: str, **environment: str) -> str:
    """Return the one line that a wrong call is answered with."""
    with pytest.raises(SettingsError) as caught:
        load(*flags, **environment)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_need_no_source() -> None:
    """With nothing given, the schema's own defaults hold."""
    settings = load()

    assert settings == Settings()
    assert settings.server.host == "127.0.0.1"


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path: Path) -> None:
    """The strongest source wins, key by key."""
    file = tmp_path / "kvrouter.toml"
    file.write_text("[server]\nport = 1001\nhost = '::1'\ndrain_seconds = 3\n[routing]\npolicy = 'random'\n")

    settings = load(
        "--config", str(file), "--port", "1003", KVROUTER_SERVER__PORT="1002", KVROUTER_SERVER__HOST="127.0.0.2"
    )

    assert settings.server.port == 1003
    assert settings.server.host == "127.0.0.2"
    assert settings.server.drain_seconds == 3.0
    assert settings.routing.policy == "random"


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    """KVROUTER_CONFIG does what --config does."""
    file = tmp_path / "kvrouter.toml"
    file.write_text("[log]\nlevel = 'debug'\n")

    assert load(KVROUTER_CONFIG=str(file)).log.level == "debug"


def test_workers_come_from_tables_variables_or_flags(tmp_path: Path) -> None:
    """All three spellings end as the same specifications; the strongest source replaces the others."""
    file = tmp_path / "kvrouter.toml"
    file.write_text("[[workers]]\nurl = 'http://a:1'\nevents = 'tcp://a:2'\nranks = 2\n")

    assert load("--config", str(file)).workers == ("http://a:1,events=tcp://a:2,ranks=2",)
    assert load("--config", str(file), KVROUTER_WORKERS="http://b:1 http://c:1,ranks=2").workers == (
        "http://b:1",
        "http://c:1,ranks=2",
    )
    assert load("--worker", "http://d:1", KVROUTER_WORKERS="http://b:1").workers == ("http://d:1",)


def test_api_keys_have_a_short_variable() -> None:
    """KVROUTER_API_KEYS takes several keys, separated by commas or white space."""
    assert load(KVROUTER_API_KEYS="one, two three").auth.api_keys == ("one", "two", "three")


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("KVROUTER_SERVER__PROT", "1", "KVROUTER_SERVER__PORT"),
        ("KVROUTER_API_KEY", "secret", "KVROUTER_API_KEYS"),
        ("KVROUTER_NONSENSE", "1", "KVROUTER_NONSENSE"),
        ("KVROUTER_PORT", "8080", "KVROUTER_PORT"),
    ],
)
def test_a_misspelt_variable_is_refused(variable: str, value: str, named: str) -> None:
    """A variable that we do not know is an error that suggests the nearest; its value is never repeated."""
    text = refusal(**{variable: value})

    assert variable in text
    assert named in text
    assert "secret" not in text


@pytest.mark.parametrize("value", ["1", "0", "yes", "Off"])
def test_the_choice_of_implementation_is_not_a_setting(value: str) -> None:
    """KVROUTER_PURE is read before there are settings; here it is only no mistake."""
    assert load(KVROUTER_PURE=value) == Settings()
    assert "KVROUTER_PURE" in refusal(KVROUTER_PURE="maybe")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KVROUTER_PORT", "tcp://10.0.0.1:8080"),
        ("KVROUTER_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("KVROUTER_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("KVROUTER_SERVICE_HOST", "10.0.0.1"),
        ("KVROUTER_SERVICE_PORT_HTTP", "8080"),
        ("KVROUTER_ADMIN_SERVICE_PORT", "8081"),
    ],
)
def test_kubernetes_service_links_are_not_settings(variable: str, value: str) -> None:
    """A service named kvrouter puts variables into every pod; they change nothing."""
    assert load(**{variable: value}) == Settings()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\nprot = 1\n", "server.port"),
        ("[sever]\nport = 1\n", "[sever]"),
        ("server = 1\n", "must be a table: [server]"),
        ("[server]\nport = 'many'\n", "server.port"),
        ("[server]\nport = 70000\n", "65535"),
        ("[server]\nport = true\n", "server.port"),
        ("[auth]\napi_keys = [1]\n", "auth.api_keys"),
        ("[placement]\nsessions = 'best'\n", "prefer"),
        ("[[workers]]\nid = 'a'\n", "workers[0]"),
        ("workers = 3\n", "workers"),
        ("not toml", "TOML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, named: str) -> None:
    """The refusal names the file and the key or the limit."""
    file = tmp_path / "kvrouter.toml"
    file.write_text(text)

    answer = refusal("--config", str(file))

    assert str(file) in answer
    assert named in answer


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A configuration that is not there is never ignored."""
    missing = tmp_path / "absent.toml"

    assert str(missing) in refusal("--config", str(missing))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--port", "-1"), "below the least, 0"),
        (("--port", "http"), "'http' is not a whole number"),
        (("--health-interval-seconds", "nan"), "--health-interval-seconds"),
        (("--placement-sessions", "greedy"), "prefer"),
        (("--events-router-id", "a/b"), "--events-router-id: 'a/b' is not a name"),
        (("--events-router-id", "n" * 65), "1 to 64"),
        (("--events-fleet", ""), "--events-fleet"),
    ],
)
def test_a_flag_out_of_bounds_is_refused(flags: tuple[str, ...], named: str) -> None:
    """Bounds hold for every source, and the refusal names the flag's fault."""
    assert named in refusal(*flags)


def test_booleans_are_read_from_text_and_negated_by_flag() -> None:
    """Variables take the usual words; flags have a no- form."""
    assert load(KVROUTER_AUTH__INSECURE="yes").auth.insecure is True
    assert load("--no-insecure", KVROUTER_AUTH__INSECURE="yes").auth.insecure is False
    assert "KVROUTER_AUTH__INSECURE" in refusal(KVROUTER_AUTH__INSECURE="maybe")


def test_settings_are_frozen() -> None:
    """Nobody changes settings after they were built."""
    with pytest.raises(FrozenInstanceError):
        load().server.port = 1  # type: ignore[misc]


def test_every_setting_has_one_flag_and_a_help_text() -> None:
    """The schema is complete and its names do not collide."""
    settings = list(all_settings())

    for command in ("serve", "gateway"):
        flags = [setting.flag for setting in settings if setting.section in sections_of(command)]
        assert len(set(flags)) == len(flags)
    variables = [variable for setting in settings for variable in setting.variables]
    assert len(set(variables)) == len(variables)
    assert all(setting.help for setting in settings)
