"""Lesson 10: a deployment is triggered by one POST to its id."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from pytest_httpserver import HTTPServer
from recorded import read_ended
from werkzeug import Response

pytest_plugins = ["programs"]  # the fixtures `unresponsive_api` and `served`

ID = "11111111-2222-4333-8444-555555555555"
RUN_ID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
PARAMETERS = {"102": 102, '"102"': "102", "null": None, "[1, 2]": [1, 2]}  # read as JSON
PARAMETERS |= {text: text for text in ("text", "", "b=c", "é", "NaN", "'x'")}  # and as text
INVALID_ARGUMENTS = {
    "a name": (["user-flow/user-deployment"], "invalid UUID value: 'user-flow/user-deployment'"),
    "dots": ([".."], "invalid UUID value"),
    "an id with invalid Unicode": ([ID[:-1] + "\udce9"], "invalid UUID value"),
    "no =": ([ID, "-p", "user_id"], "'user_id' is not KEY=VALUE"),
    "no key": ([ID, "-p", "=1"], "'=1' is not KEY=VALUE"),
    "a key twice": ([ID, "-p", "a=1", "-p", "a=2"], "Give each KEY once"),
    "a value with invalid Unicode": ([ID, "-p", "a=Jos\udce9"], "'a=Jos"),
    "a key with invalid Unicode": ([ID, "-p", "a\udce9=1"], "=1'"),
    "JSON with invalid Unicode": ([ID, "-p", r'a=[{"b": "\ud800"}]'], r"\\ud800"),
    "infinity": ([ID, "-p", "a=1e999"], "'a=1e999'"),
    "a password": ([ID, "--api-url", "http://admin:secret@127.0.0.1:1/api"], "credentials"),
}
UNREACHABLE_URLS = {
    "nonsense": "No scheme",
    "http://[::1/api": "not a valid host",
    "http://127.0.0.1:1/api": "Connection refused.*prefect server start --background",
}
UNUSABLE_ANSWERS = {
    "409 .*it is refused": Response('{"detail":"it is\nrefused"}', 409),
    "404 .*not found": Response('{"detail":"Deployment not found"}', 404),
    "401 .*Unauthorized": Response('{"exception_message":"Unauthorized"}', 401),
    "403 .*Missing CSRF token": Response('{"detail":"Missing CSRF token"}', 403),
    r"503 \(database is locked\)": Response("database is locked", 503),
    "302 .*/login": Response("", 302, {"Location": "http://127.0.0.1:1/login"}),
    "200 .*<html>": Response("<html>"),
    '500 .*"id"': Response('{"id": "x", "name": "x"}', 500),
    r"201 \(\)": Response("", 201),
    r"201 \(\[1, 2\]\)": Response("[1, 2]", 201),
    r"201 \(\{\}\)": Response("{}", 201),
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


@pytest.fixture
def api(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> HTTPServer:
    """Return a server that accepts the trigger as Prefect's does, and that the settings name."""
    monkeypatch.setenv("PREFECT_API_URL", httpserver.url_for("/api/"))
    path = f"/api/deployments/{ID}/create_flow_run"
    httpserver.expect_request(path, method="POST").respond_with_json({"id": RUN_ID}, 201)
    return httpserver


def test_it_sends_one_post_with_the_parameters(run: Any, api: HTTPServer) -> None:
    assert run(ID, "-p", "user_id=102") == (0, f"{RUN_ID}\n", ""), "expected the id alone"
    assert run(ID)[0] == 0, "without parameters the flow uses its defaults"
    (first, _), (second, _) = api.log
    assert first.json == {"parameters": {"user_id": 102}}, "another body was sent"
    assert second.json == {"parameters": {}}, "another body was sent"
    assert "Authorization" not in first.headers, "lesson 10 sends no credentials"


@pytest.mark.parametrize("text", PARAMETERS)
def test_a_value_is_parsed_as_json_or_else_kept_as_text(lesson: ModuleType, text: str) -> None:
    assert lesson.parse_parameter(f"a={text}") == ("a", PARAMETERS[text])


@pytest.mark.parametrize("mistake", INVALID_ARGUMENTS)
def test_invalid_arguments_are_rejected_before_any_request(
    run: Any, api: HTTPServer, mistake: str
) -> None:
    arguments, hint = INVALID_ARGUMENTS[mistake]
    code, stdout, stderr = run(*arguments)
    assert (code, stdout, api.log) == (2, "", []), f"expected exit code 2, got {code}: {stderr}"
    assert hint in stderr.splitlines()[-1], f"expected a line with {hint!r}, got: {stderr}"
    assert "secret" not in stderr, "a credential is shown"


@pytest.mark.parametrize("url", UNREACHABLE_URLS)
def test_an_unreachable_api_exits_with_one_line(run: Any, url: str) -> None:
    code, stdout, line = run(ID, "--api-url", url)
    assert (code, stdout) == (1, ""), f"expected exit code 1, got {code}"
    assert re.fullmatch(f"error: .*{UNREACHABLE_URLS[url]}.*", line), f"got: {line}"


@pytest.mark.parametrize("message", UNUSABLE_ANSWERS)
def test_an_answer_without_an_id_is_reported_in_the_servers_words(
    run: Any, httpserver: HTTPServer, message: str
) -> None:
    httpserver.expect_request(re.compile(".*")).respond_with_response(UNUSABLE_ANSWERS[message])
    code, stdout, line = run(ID, "--api-url", httpserver.url_for("/api"))
    assert (code, stdout) == (1, ""), f"expected exit code 1 and no id, got {code}, {stdout!r}"
    assert re.fullmatch(f"error: http.* returned {message}.*", line), f"got: {line}"
    assert len(httpserver.log) == 1, "without a key, a second POST is a second flow run"


def test_a_request_times_out(lesson: ModuleType, unresponsive_api: str) -> None:
    with pytest.raises(OSError, match="timed out"):
        lesson.trigger_deployment(unresponsive_api, ID, {})


def test_with_lesson_11_it_runs_the_served_flow(lesson_path: Path, served: str) -> None:
    def run_lesson(number: str, *arguments: str) -> str:
        script = str(next(lesson_path.parent.glob(f"{number}_*.py")))
        settings = os.environ | {"PREFECT_API_URL": served}
        output = subprocess.check_output([sys.executable, script, *arguments], env=settings)
        return output.decode().strip()

    run_id = UUID(run_lesson("10", run_lesson("11"), "-p", "user_id=102"))
    flow_run = read_ended(run_id)
    assert flow_run.state == "Completed", f"expected Completed, got {flow_run.state}"
    assert flow_run.record.parameters == {"user_id": 102}, "the parameters got lost"


def test_a_refusal_is_reported_in_prefects_words(run: Any, served: str) -> None:
    with get_client(sync_client=True) as client:
        served_id = client.read_deployment_by_name("user-flow/user-deployment").id
    assert (
        "'x' is not of type 'integer'"
        in run(str(served_id), "-p", "user_id=x", "--api-url", served)[2]
    )
    assert "Deployment not found" in run(ID, "--api-url", served)[2]
