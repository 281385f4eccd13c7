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
from recorded import read_flow_run, wait_until

pytest_plugins = ["programs"]  # the fixtures `run`, `served`, `unreachable_api`, `unusable_api`

ID = "11111111-2222-4333-8444-555555555555"
RUN_ID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
PARAMETERS = {"102": 102, '"102"': "102", "null": None, "[1, 2]": [1, 2]}  # read as JSON
PARAMETERS |= {text: text for text in ("text", "", "b=c", "é", "NaN", "'x'")}  # and as text
INVALID_ARGUMENTS = [
    (["user-flow/user-deployment"], "invalid UUID value: 'user-flow/user-deployment'"),
    ([".."], "invalid UUID value"),
    ([ID[:-1] + "\udce9"], "invalid UUID value"),  # not valid Unicode
    ([ID, "-p", "user_id"], "'user_id' is not KEY=VALUE"),
    ([ID, "-p", "=1"], "'=1' is not KEY=VALUE"),
    ([ID, "-p", "a=1", "-p", "a=2"], "Give each KEY once"),
    ([ID, "-p", "a=Jos\udce9"], "'a=Jos"),
    ([ID, "-p", "a\udce9=1"], "=1'"),
    ([ID, "-p", r'a=[{"b": "\ud800"}]'], r"\\ud800"),
    ([ID, "-p", "a=1e999"], "'a=1e999'"),
    ([ID, "--api-url", "http://admin:secret@127.0.0.1:1/api"], "credentials"),
]


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
    key, value = lesson.parse_parameter(f"a={text}")
    assert (key, value) == ("a", PARAMETERS[text]), f"expected {PARAMETERS[text]!r}, got {value!r}"


@pytest.mark.parametrize(("arguments", "hint"), INVALID_ARGUMENTS)
def test_invalid_arguments_are_rejected_before_any_request(
    run: Any, api: HTTPServer, arguments: list[str], hint: str
) -> None:
    code, stdout, stderr = run(*arguments)
    assert (code, stdout, api.log) == (2, "", []), f"expected exit code 2, got {code}: {stderr}"
    assert hint in stderr.splitlines()[-1], f"expected a line with {hint!r}, got: {stderr}"
    assert "secret" not in stderr, "a credential is shown"


def test_an_unreachable_api_exits_with_one_line(run: Any, unreachable_api: Any) -> None:
    url, problem = unreachable_api
    code, stdout, line = run(ID, "--api-url", url)
    assert (code, stdout) == (1, ""), f"expected exit code 1, got {code}"
    assert re.fullmatch(f"error: .*{problem}.*", line), f"expected {problem}, got: {line}"


def test_an_answer_without_an_id_is_reported_in_the_servers_words(
    run: Any, httpserver: HTTPServer, unusable_api: Any
) -> None:
    url, answer = unusable_api
    code, stdout, line = run(ID, "--api-url", url)
    assert (code, stdout) == (1, ""), f"expected exit code 1 and no id, got {code}, {stdout!r}"
    assert re.fullmatch(f"error: http.* returned {answer}.*", line), f"got: {line}"
    assert len(httpserver.log) == 1, "without a key, a second POST is a second flow run"


def test_with_lesson_11_it_runs_the_served_flow(lesson_path: Path, served: str) -> None:
    def run_lesson(number: str, *arguments: str) -> str:
        script = str(next(lesson_path.parent.glob(f"{number}_*.py")))
        settings = os.environ | {"PREFECT_API_URL": served}
        output = subprocess.check_output([sys.executable, script, *arguments], env=settings)
        return output.decode().strip()

    run_id = UUID(run_lesson("10", run_lesson("11"), "-p", "user_id=102"))
    flow_run = read_flow_run(run_id)
    assert flow_run.record.parameters == {"user_id": 102}, "the parameters got lost"
    wait_until("it is Completed", lambda: read_flow_run(run_id).state == "Completed", 90)


def test_a_refusal_is_reported_in_prefects_words(run: Any, served: str) -> None:
    with get_client(sync_client=True) as client:
        served_id = client.read_deployment_by_name("user-flow/user-deployment").id
    line = run(str(served_id), "-p", "user_id=x", "--api-url", served)[2]
    assert "'x' is not of type 'integer'" in line, f"expected Prefect's words, got: {line}"
    line = run(ID, "--api-url", served)[2]
    assert "Deployment not found" in line, f"expected Prefect's words, got: {line}"
