"""Lesson 11: the id of a deployment, looked up by its name."""

import re
from types import ModuleType
from typing import Any

import pytest
from prefect import get_client
from pytest_httpserver import HTTPServer
from werkzeug import Response

pytest_plugins = ["programs"]  # the fixtures `run_cli`, `unresponsive_api` and `served`

ID = "11111111-2222-4333-8444-555555555555"
QUOTED = {
    "my flow/flöw": "my%20flow/fl%C3%B6w",
    "a/b%2Fc": "a/b%252Fc",
    "a/b?c#d": "a/b%3Fc%23d",
    "a/...": "a/...",
}
NO_NAMES = ["", "user-flow", "user-flow/", "/x", "a/b/c", "../x", "x/..", "./."]
URLS = {
    "nonsense": "No scheme",
    "http://[::1/api": "Failed to parse",
    "http://127.0.0.1:1/api": "Connection refused",
    "http://admin:secret@127.0.0.1:1/api": "no credentials",
}
ANSWERS = {
    '404: {"detail":"Not Found"}': Response('{"detail":"Not Found"}', 404),
    "401: .*Unauthorized.*lesson 12": Response('{"exception_message":"Unauthorized"}', 401),
    "503: database is locked": Response("database is\nlocked", 503),
    "302: .*/login": Response("", 302, {"Location": "http://127.0.0.1:1/login"}),
    "200: <html>": Response("<html>"),
    '500: .*"id"': Response('{"id": "x"}', 500),
    "200:$": Response(""),
    r"200: \[1, 2\]": Response("[1, 2]"),
    "200: {}": Response("{}"),
}


@pytest.mark.parametrize("slash", ["", "/"])
def test_it_asks_for_the_name_and_prints_the_id_alone(
    run_cli: Any, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch, slash: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", httpserver.url_for("/api") + slash)
    path = "/api/deployments/name/user-flow/user-deployment"
    httpserver.expect_request(path, method="GET").respond_with_json({"id": ID})
    assert run_cli("user-flow/user-deployment") == (f"{ID}\n", None), "stdout is not the id alone"
    assert run_cli() == (f"{ID}\n", None), "user-flow/user-deployment is no longer the default"
    assert "Authorization" not in httpserver.log[0][0].headers, "lesson 11 sends no credentials"


@pytest.mark.parametrize("name", QUOTED)
def test_each_part_of_the_name_is_quoted(run_cli: Any, httpserver: HTTPServer, name: str) -> None:
    words = '{"detail":"Deployment not found"}'
    httpserver.expect_request(re.compile(".*")).respond_with_data(words, 404)
    line = run_cli(name, "--api-url", httpserver.url_for("/api"))[1]
    assert words in str(line), f"the server's words are not told, but {line}"
    asked = httpserver.log[0][0].environ["REQUEST_URI"]
    assert asked == f"/api/deployments/name/{QUOTED[name]}", "the name changes the URL"


@pytest.mark.parametrize("name", [*NO_NAMES, "a/Jos\udce9"])
def test_what_is_no_name_is_not_sent(run_cli: Any, httpserver: HTTPServer, name: str) -> None:
    stdout, line = run_cli(name, "--api-url", httpserver.url_for("/api"))
    hint = "FLOW/DEPLOYMENT" if name in NO_NAMES else "surrogates not allowed"
    assert hint in str(line), f"the mistake is not told, but {line}"
    assert (stdout, httpserver.log) == ("", []), "it was sent all the same"


@pytest.mark.parametrize("url", URLS)
def test_a_url_without_an_answer_is_one_clear_line(run_cli: Any, url: str) -> None:
    line = run_cli("--api-url", url)[1]
    assert URLS[url] in str(line), f"the cause is not told, but {line}"
    assert "secret" not in line, "a credential is shown"


@pytest.mark.parametrize("hint", ANSWERS)
def test_another_answer_is_told_in_the_servers_words(
    run_cli: Any, httpserver: HTTPServer, hint: str
) -> None:
    httpserver.expect_request(re.compile(".*")).respond_with_response(ANSWERS[hint])
    stdout, line = run_cli("--api-url", httpserver.url_for("/api"))
    assert re.search(hint, str(line)), f"the server's words are not told, but {line}"
    assert stdout == "", "stdout is for the id only"


def test_a_server_that_hangs_is_given_up(lesson: ModuleType, unresponsive_api: str) -> None:
    with pytest.raises(OSError, match="timed out"):
        lesson.get_deployment_id(unresponsive_api, "user-flow/user-deployment")


def test_it_finds_the_served_flow(run_cli: Any, served: str) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("user-flow/user-deployment")
    assert run_cli("--api-url", served) == (f"{deployment.id}\n", None), "not the deployment's id"
