"""Lesson 11: the id of a deployment, looked up by its name."""

import re
from typing import Any

import pytest
from prefect import get_client
from pytest_httpserver import HTTPServer

pytest_plugins = ["programs"]  # the fixtures `run`, `served`, `unreachable_api`, `unusable_api`

ID = "11111111-2222-4333-8444-555555555555"
ENCODED = {
    "my flow/flöw": "my%20flow/fl%C3%B6w",
    "a/b%2Fc": "a/b%252Fc",
    "a/b?c#d": "a/b%3Fc%23d",
    "a/...": "a/...",
}
INVALID_NAMES = ["", "user-flow", "user-flow/", "/x", "a/b/c", "../x", "x/..", "./.", "a/\udce9"]
INVALID_ARGUMENTS = [
    *(([name], "Write FLOW/DEPLOYMENT") for name in INVALID_NAMES),
    (["--api-url", "http://admin:secret@127.0.0.1:1/api"], "contains credentials"),
]


@pytest.fixture
def api(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> HTTPServer:
    """Return a server that knows every name, and that the settings name."""
    monkeypatch.setenv("PREFECT_API_URL", httpserver.url_for("/api/"))
    path = re.compile("/api/deployments/name/.*")
    httpserver.expect_request(path, method="GET").respond_with_json({"id": ID})
    return httpserver


def test_only_the_id_goes_to_stdout(run: Any, api: HTTPServer) -> None:
    assert run("a/b") == (0, f"{ID}\n", ""), "expected the id alone"
    run()
    (first, _), (second, _) = api.log
    assert first.path.endswith("/a/b"), f"asked for {first.path}"
    assert second.path.endswith("/user-flow/user-deployment"), f"the default is {second.path}"
    assert "Authorization" not in first.headers, "lesson 11 sends no credentials"


@pytest.mark.parametrize("name", ENCODED)
def test_the_name_is_encoded(run: Any, api: HTTPServer, name: str) -> None:
    run(name, "--api-url", api.url_for("/api"))
    asked = api.log[0][0].environ["REQUEST_URI"]
    assert asked == f"/api/deployments/name/{ENCODED[name]}", "the name changes the URL"


@pytest.mark.parametrize(("arguments", "hint"), INVALID_ARGUMENTS)
def test_invalid_arguments_are_rejected_before_any_request(
    run: Any, api: HTTPServer, arguments: list[str], hint: str
) -> None:
    code, stdout, stderr = run(*arguments)
    assert (code, stdout, api.log) == (2, "", []), f"expected exit code 2, got {code}: {stderr}"
    assert hint in stderr, f"expected {hint!r}, got: {stderr}"
    assert "secret" not in stderr, "a credential is shown"


def test_an_unreachable_api_exits_with_one_line(run: Any, unreachable_api: Any) -> None:
    url, problem = unreachable_api
    code, stdout, line = run("--api-url", url)
    assert (code, stdout) == (1, ""), f"expected exit code 1, got {code}"
    assert re.fullmatch(f"error: .*{problem}.*", line), f"expected {problem}, got: {line}"


def test_an_answer_without_an_id_is_reported_in_the_servers_words(
    run: Any, unusable_api: Any
) -> None:
    url, answer = unusable_api
    code, stdout, line = run("--api-url", url)
    assert (code, stdout) == (1, ""), f"expected exit code 1 and no id, got {code}, {stdout!r}"
    assert re.fullmatch(f"error: http.* returned {answer}.*", line), f"got: {line}"


def test_it_finds_the_served_deployment(run: Any, served: str) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("user-flow/user-deployment")
    assert run("--api-url", served) == (0, f"{deployment.id}\n", ""), "not the deployment's id"
