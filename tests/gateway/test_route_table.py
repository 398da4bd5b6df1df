"""Route tables: found by path, read from TOML and YAML, and refused in one line where they are wrong (A-401, A-435)."""

from pathlib import Path
from typing import Any

import pytest

from kvrouter.errors import SettingsError
from kvrouter.gateway.descriptors import load_descriptors
from kvrouter.gateway.route_table import Route, RouteTable, load_routes, parse_routes
from kvrouter.gateway.translation import Translation

ROW = {"path": "/a", "subject": "svc.a", "request": "p.Request", "response": "p.Response"}
YAML = """\
routes:
  - path: /a/{name}
    subject: svc.a
    request: p.Request
    response: p.Response
    methods: [GET, POST]
    timeout_seconds: 2
    legacy: http://127.0.0.1:9/base/
    cutover: 0.1
    repeatable: true
    shadow: 1
"""


def table(*rows: dict[str, Any]) -> RouteTable:
    """A table of rows; what they leave out is as in ROW."""
    return parse_routes({"routes": [ROW | row for row in rows]}, "test")


def found(routes: RouteTable, path: str) -> tuple[str, dict[str, str]] | None:
    """The template that fits a path, and its variables."""
    match = routes.find(path)
    return None if match is None else (match.route.path, dict(match.variables))


def test_a_path_finds_its_route_and_its_variables() -> None:
    """A-413, A-414 and D-21: templates match, with variables in the middle too; fixed paths come first."""
    routes = table(
        {"path": "/models"},
        {"path": "/models/{model_id}"},
        {"path": "/models/{model_id}/select"},
        {"path": "/models/default"},
        {"path": "/{kind}/all"},
    )

    assert found(routes, "/models") == ("/models", {})
    assert found(routes, "/models/gpt-5") == ("/models/{model_id}", {"model_id": "gpt-5"})
    assert found(routes, "/models/gpt-5/select") == ("/models/{model_id}/select", {"model_id": "gpt-5"})
    assert found(routes, "/models/default") == ("/models/default", {})
    assert found(routes, "/models/all") == ("/models/{model_id}", {"model_id": "all"})
    assert found(routes, "/quests/all") == ("/{kind}/all", {"kind": "quests"})
    assert [found(routes, path) for path in ("/", "/models/", "/models/a/b", "/model", "/models/a/select/x")] == [
        None
    ] * 5


def test_a_dot_in_a_path_is_a_dot() -> None:
    """Templates are no regular expressions."""
    routes = table({"path": "/v1.0/{name}"})

    assert found(routes, "/v1.0/x") is not None
    assert found(routes, "/v1-0/x") is None


def test_a_table_in_yaml_says_what_one_in_toml_does(tmp_path: Path) -> None:
    """Both forms have the same keys."""
    file = tmp_path / "routes.yaml"
    file.write_text(YAML, encoding="utf-8")

    (route,) = load_routes(file)

    assert route == Route(
        name="a/name", path="/a/{name}", subject="svc.a", request="p.Request", response="p.Response",
        methods=("GET", "POST"), timeout_seconds=2.0, legacy="http://127.0.0.1:9/base", cutover=0.1, repeatable=True,
        shadow=1.0,
    )  # fmt: skip
    assert route.may_be_shadowed


def test_with_a_side_from_before_nothing_moves_until_it_is_asked_for() -> None:
    """A-428: a route that names its old service begins with it."""
    (alone,), (beside,) = table({}), table({"legacy": "http://127.0.0.1:9"})

    assert (alone.cutover, beside.cutover) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"path": "a"}, "path must begin with /"),
        ({"path": "/a/{b"}, "segment '{b'"),
        ({"path": "/a/{b}/{b}"}, "path has a variable twice"),
        ({"path": "/metrics"}, "the gateway's own"),
        ({"path": "/admin/x"}, "the gateway's own"),
        ({"subject": "svc.*"}, "subject cannot be"),
        ({"subject": None}, "subject is missing"),
        ({"request": "p/q"}, "request cannot be"),
        ({"methods": ["FETCH"]}, "methods must be some of"),
        ({"methods": "GET"}, "methods must be a list"),
        ({"subjct": "x"}, "unknown key 'subjct'; did you mean subject?"),
        ({"timeout_seconds": 0}, "timeout_seconds must be a number"),
        ({"timeout_seconds": True}, "timeout_seconds must be a number"),
        ({"legacy": "ftp://x"}, "legacy must be a URL"),
        ({"cutover": 0.5}, "cutover below 1 needs `legacy`"),
        ({"legacy": "http://x", "cutover": 1.5}, "cutover must be a number"),
        ({"legacy": "http://x", "shadow": 0.5}, "copies must do no harm"),
        ({"repeatable": "yes"}, "repeatable must be true or false"),
        ({"name": "a b"}, "name must be"),
    ],
)
def test_a_wrong_row_is_one_line_that_names_it(row: dict[str, Any], problem: str) -> None:
    """The row's number and the key are in the text."""
    with pytest.raises(SettingsError) as caught:
        table({"path": "/other", "name": "other"}, row)

    assert "routes[1]" in str(caught.value)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([], "must hold `routes`"),
        ({"routes": []}, "a list of 1 to"),
        ({"routes": [ROW], "more": 1}, "nothing else"),
        ({"routes": [5]}, "must be a table"),
        ({"routes": [ROW, ROW]}, "two routes have the path"),
        ({"routes": [ROW | {"path": "/x/{a}"}, ROW | {"path": "/x/{b}"}]}, "two routes have the path"),
        ({"routes": [ROW | {"path": "/x/{a}"}, ROW | {"path": "/x/a"}]}, "two routes have the name"),
    ],
)
def test_a_wrong_table_is_one_line(document: object, problem: str) -> None:
    """Also where no single row is wrong."""
    with pytest.raises(SettingsError, match=problem):
        parse_routes(document, "test")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("absent.toml", None, "cannot be read"),
        ("bad.toml", b"routes = [", "not valid TOML"),
        ("bad.yaml", b"routes: [", "not valid YAML"),
        ("bad.toml", b"\xff", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(name: str, content: bytes | None, problem: str, tmp_path: Path) -> None:
    """A-433: it is said at the start, not at the first request."""
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(SettingsError, match=problem):
        load_routes(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"request": "kvrouter.gateway.v1.Absent"}, "no message type 'kvrouter.gateway.v1.Absent'"),
        ({"path": "/a/{absent}"}, "no single value 'absent'"),
        ({"path": "/a/{params}"}, "no single value 'params'"),
        ({"stream": "kvrouter.gateway.v1.InferResponse"}, "must have a field `bool is_final`"),
        ({"request": "kvrouter.gateway.v1.Error"}, ""),
    ],
)
def test_types_that_do_not_fit_the_route_are_refused(row: dict[str, Any], problem: str) -> None:
    """A-433, A-435: a wrong mapping is found when the gateway starts, as far as types can show it."""
    shipped = {"request": "kvrouter.gateway.v1.InferRequest", "response": "kvrouter.gateway.v1.InferResponse"}
    (route,) = table(shipped | row)
    descriptors = load_descriptors(None)

    if not problem:  # A request without meta data is a request all the same.
        assert Translation(route, descriptors).request({"message": "x"}, {"request_id": "1"})
        return
    with pytest.raises(SettingsError, match=problem):
        Translation(route, descriptors)
