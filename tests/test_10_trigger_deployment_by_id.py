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

pytest_plugins = ["programs"]  # the fixtures `run_cli`, `unresponsive_api` and `served`

ID = "11111111-2222-4333-8444-555555555555"
RUN_ID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
VALUES = {"102": 102, '"102"': "102", "null": None, "[1, 2]": [1, 2]}  # read as JSON
VALUES |= {text: text for text in ("text", "", "b=c", "é", "NaN", "'x'")}  # and as text
MISTAKES = {
    "a name": (["user-flow/user-deployment"], "no deployment id"),
    "dots": ([".."], "no deployment id"),
    "no text": ([ID[:-1] + "\udce9"], "no deployment id"),
    "no =": ([ID, "-p", "user_id"], "KEY=VALUE"),
    "no key": ([ID, "-p", "=1"], "KEY=VALUE"),
    "twice": ([ID, "-p", "a=1", "-p", "a=2"], "each KEY once"),
    "a value that is no text": ([ID, "-p", "a=Jos\udce9"], "surrogates not allowed"),
    "a key that is no text": ([ID, "-p", "a\udce9=1"], "surrogates not allowed"),
    "JSON that is no text": ([ID, "-p", r'a=[{"b": "\ud800"}]'], "surrogates not allowed"),
    "no JSON number": ([ID, "-p", "a=1e999"], "JSON"),
    "a password": ([ID, "--api-url", "http://admin:secret@127.0.0.1:1/api"], "no credentials"),
    "no URL": ([ID, "--api-url", "nonsense"], "No scheme"),
    "no host": ([ID, "--api-url", "http://[::1/api"], "Failed to parse"),
    "nobody there": ([ID, "--api-url", "http://127.0.0.1:1/api"], "Connection refused"),
}
ANSWERS = {
    "409: .*it is refused": Response('{"detail":"it is\nrefused"}', 409),
    "404: .*not found": Response('{"detail":"Deployment not found"}', 404),
    "401: .*Unauthorized.*lesson 12": Response('{"exception_message":"Unauthorized"}', 401),
    "403: .*Missing CSRF token": Response('{"detail":"Missing CSRF token"}', 403),
    "503: database is locked": Response("database is locked", 503),
    "302: .*/login": Response("", 302, {"Location": "http://127.0.0.1:1/login"}),
    "200: <html>": Response("<html>"),
    '500: .*"id"': Response('{"id": "x", "name": "x"}', 500),
    "201:$": Response("", 201),
    r"201: \[1, 2\]": Response("[1, 2]", 201),
    "201: {}": Response("{}", 201),
}


@pytest.fixture
def api(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> HTTPServer:
    """Return a server that takes the trigger as Prefect's does, and that the settings name."""
    monkeypatch.setenv("PREFECT_API_URL", httpserver.url_for("/api/"))
    path = f"/api/deployments/{ID}/create_flow_run"
    answer = {"id": RUN_ID, "name": "calm-crow"}
    httpserver.expect_request(path, method="POST").respond_with_json(answer, 201)
    return httpserver


def test_it_sends_one_post_with_the_parameters(run_cli: Any, api: HTTPServer) -> None:
    printed = run_cli(ID, "-p", "user_id=102")
    assert printed == (f"{RUN_ID}\n", None), "stdout is not the flow run's id and nothing else"
    assert run_cli(ID)[1] is None, "without parameters the flow uses its defaults"
    (first, _), (second, _) = api.log
    assert first.json == {"parameters": {"user_id": 102}}, "another body was sent"
    assert second.json == {"parameters": {}}, "another body was sent"
    assert "Authorization" not in first.headers, "lesson 10 sends no credentials"


@pytest.mark.parametrize("text", VALUES)
def test_a_value_is_read_as_json_and_else_as_text(lesson: ModuleType, text: str) -> None:
    assert lesson.parse_parameters([f"a={text}", "b=1"]) == {"a": VALUES[text], "b": 1}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(run_cli: Any, api: HTTPServer, mistake: str) -> None:
    arguments, hint = MISTAKES[mistake]
    stdout, line = run_cli(*arguments)
    assert hint in str(line), f"the mistake is not told, but {line}"
    assert (stdout, api.log) == ("", []), "it was sent all the same"
    assert "secret" not in line, "a credential is shown"


@pytest.mark.parametrize("hint", ANSWERS)
def test_another_answer_is_told_in_the_servers_words(
    run_cli: Any, httpserver: HTTPServer, hint: str
) -> None:
    httpserver.expect_request(re.compile(".*")).respond_with_response(ANSWERS[hint])
    stdout, line = run_cli(ID, "--api-url", httpserver.url_for("/api"))
    assert re.search(hint, str(line)), f"the server's words are not told, but {line}"
    assert (stdout, len(httpserver.log)) == ("", 1), "without a key, a second POST is a second run"


def test_a_server_that_hangs_is_given_up(lesson: ModuleType, unresponsive_api: str) -> None:
    with pytest.raises(OSError, match="timed out"):
        lesson.trigger_deployment(unresponsive_api, ID, {})


def test_with_lesson_11_it_runs_the_served_flow(lesson_path: Path, served: str) -> None:
    def run(number: str, *arguments: str) -> str:
        script = str(next(lesson_path.parent.glob(f"{number}_*.py")))
        settings = os.environ | {"PREFECT_API_URL": served}
        output = subprocess.check_output([sys.executable, script, *arguments], env=settings)
        return output.decode().strip()

    run_id = UUID(run("10", run("11"), "-p", "user_id=102"))
    flow_run = read_ended(run_id)
    assert flow_run.state == "Completed", f"the flow run is {flow_run.state}"
    assert flow_run.record.parameters == {"user_id": 102}, "the parameters got lost"


def test_what_prefect_refuses_is_told_in_its_own_words(run_cli: Any, served: str) -> None:
    with get_client(sync_client=True) as client:
        served_id = client.read_deployment_by_name("user-flow/user-deployment").id
    _, line = run_cli(str(served_id), "-p", "user_id=x", "--api-url", served)
    assert "'x' is not of type 'integer'" in line
    assert "Deployment not found" in run_cli(ID, "--api-url", served)[1]
