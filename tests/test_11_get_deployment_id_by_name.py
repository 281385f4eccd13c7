"""Lesson 11: the id of a deployment, looked up by its name."""

import re
import sys
from types import ModuleType
from typing import Any

import pytest
from prefect import get_client
from pytest_httpserver import HTTPServer
from werkzeug import Response

pytest_plugins = ["programs"]  # the fixtures `unresponsive_api` and `served`

ID = "11111111-2222-4333-8444-555555555555"
ENCODED = {
    "my flow/flöw": "my%20flow/fl%C3%B6w",
    "a/b%2Fc": "a/b%252Fc",
    "a/b?c#d": "a/b%3Fc%23d",
    "a/...": "a/...",
}
INVALID_NAMES = ["", "user-flow", "user-flow/", "/x", "a/b/c", "../x", "x/..", "./."]
INVALID_URLS = {
    "nonsense": "No scheme",
    "http://[::1/api": "not a valid host",
    "http://127.0.0.1:1/api": "Connection refused.*prefect server start --background",
    "http://admin:secret@127.0.0.1:1/api": "contains credentials",
}
UNUSABLE_ANSWERS = {
    r'404 \(\{"detail":"Not Found"\}\)': Response('{"detail":"Not Found"}', 404),
    "401 .*Unauthorized": Response('{"exception_message":"Unauthorized"}', 401),
    r"503 \(database is locked\)": Response("database is\nlocked", 503),
    "302 .*/login": Response("", 302, {"Location": "http://127.0.0.1:1/login"}),
    "200 .*<html>": Response("<html>"),
    '500 .*"id"': Response('{"id": "x"}', 500),
    r"200 \(\)": Response(""),
    r'200 \("id"\)': Response('"id"'),
    r"200 \(\[1, 2\]\)": Response("[1, 2]"),
    r"200 \(\{\}\)": Response("{}"),
}


@pytest.fixture
def run(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Return a function that runs the lesson; it returns exit code, stdout and stderr."""

    def run_main(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["lesson", *arguments])
        code = None
        try:
            lesson.main()
        except SystemExit as end:
            code = end.code
        stdout, stderr = capsys.readouterr()
        return (1, stdout, code) if isinstance(code, str) else (code or 0, stdout, stderr)

    return run_main


@pytest.mark.parametrize("slash", ["", "/"])
def test_only_the_id_goes_to_stdout(
    run: Any, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch, slash: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", httpserver.url_for("/api") + slash)
    path = "/api/deployments/name/user-flow/user-deployment"
    httpserver.expect_request(path, method="GET").respond_with_json({"id": ID})
    assert run("user-flow/user-deployment") == (0, f"{ID}\n", ""), "expected the id alone"
    assert run()[1] == f"{ID}\n", "user-flow/user-deployment is no longer the default"
    assert "Authorization" not in httpserver.log[0][0].headers, "lesson 11 sends no credentials"


@pytest.mark.parametrize("name", ENCODED)
def test_the_name_is_encoded(run: Any, httpserver: HTTPServer, name: str) -> None:
    httpserver.expect_request(re.compile(".*")).respond_with_json({"id": ID})
    run(name, "--api-url", httpserver.url_for("/api"))
    asked = httpserver.log[0][0].environ["REQUEST_URI"]
    assert asked == f"/api/deployments/name/{ENCODED[name]}", "the name changes the URL"


@pytest.mark.parametrize("name", [*INVALID_NAMES, "a/Jos\udce9"])
def test_invalid_names_are_rejected_before_any_request(
    run: Any, httpserver: HTTPServer, name: str
) -> None:
    code, stdout, stderr = run(name, "--api-url", httpserver.url_for("/api"))
    assert (code, stdout, httpserver.log) == (2, "", []), f"expected exit code 2: {stderr}"
    assert "FLOW/DEPLOYMENT" in stderr, f"expected what a name looks like, got: {stderr}"


@pytest.mark.parametrize("url", INVALID_URLS)
def test_an_unreachable_api_exits_with_one_line(run: Any, url: str) -> None:
    code, stdout, stderr = run("--api-url", url)
    assert code != 0, "expected an exit code for the failure, got 0"
    assert re.search(INVALID_URLS[url], stderr), f"expected the cause, got: {stderr}"
    assert stdout + stderr.replace("secret", "") == stderr, "a credential is shown"


@pytest.mark.parametrize("message", UNUSABLE_ANSWERS)
def test_an_answer_without_an_id_is_reported_in_the_servers_words(
    run: Any, httpserver: HTTPServer, message: str
) -> None:
    httpserver.expect_request(re.compile(".*")).respond_with_response(UNUSABLE_ANSWERS[message])
    code, stdout, line = run("--api-url", httpserver.url_for("/api"))
    assert (code, stdout) == (1, ""), f"expected exit code 1 and no id, got {code}, {stdout!r}"
    assert re.fullmatch(f"error: http.* returned {message}.*", line), f"got: {line}"


def test_a_request_times_out(lesson: ModuleType, unresponsive_api: str) -> None:
    with pytest.raises(OSError, match="timed out"):
        lesson.get_deployment_id(unresponsive_api, "user-flow/user-deployment")


def test_it_finds_the_served_deployment(run: Any, served: str) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("user-flow/user-deployment")
    assert run("--api-url", served) == (0, f"{deployment.id}\n", ""), "not the deployment's id"
