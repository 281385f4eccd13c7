"""Lesson 10: a deployment is triggered by one POST to its id."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from beside import beside
from forked import run_forked
from stub import (
    BAD_API_URLS,
    BAD_PARAMETERS,
    DEPLOYMENT_ID,
    FLOW_RUN_ID,
    MISBEHAVIOUR,
    PARAMETERS,
    Answer,
    assert_asks_port_4200,
    prefect_api,
    stub,
)
from support import (
    Served,
    assert_one_line,
    assert_told,
    read,
    run_script,
    script_path,
)

pytestmark = pytest.mark.together

READ = read("10")


def test_it_sends_one_post_with_the_parameters(path: Path) -> None:
    with stub(prefect_api) as server:
        result = run_script(path, DEPLOYMENT_ID, "-p", "user_id=102", "--api-url", server.api_url)
    (request,) = server.received
    assert (request.method, request.path) == (
        "POST",
        f"/api/deployments/{DEPLOYMENT_ID}/create_flow_run",
    ), f"the trigger is another request; {READ}"
    assert request.body == {"parameters": {"user_id": 102}}, f"another body was sent; {READ}"
    assert result.returncode == 0, f"201 is success: {result.stderr}; {READ}"
    assert result.stdout == f"{FLOW_RUN_ID}\n", (
        f"stdout is not the flow run's id and nothing else: {result.stdout!r}; {READ}"
    )
    assert result.stderr == (f"Scheduled calm-crow\n{server.url}/runs/flow-run/{FLOW_RUN_ID}\n"), (
        f"stderr does not tell the flow run's name and page; {READ}"
    )


@pytest.mark.parametrize("pair", PARAMETERS)
def test_a_value_is_read_as_json_and_else_as_text(as_written: ModuleType, pair: str) -> None:
    parsed = as_written.parse_parameters([pair])
    assert parsed == PARAMETERS[pair], f"{pair} is read as {parsed}; {READ}"


def test_parameters_repeat(as_written: ModuleType) -> None:
    assert as_written.parse_parameters(["a=1", "b=x"]) == {"a": 1, "b": "x"}, READ


@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_a_parameter_that_cannot_be_read_is_not_sent(path: Path, case: str) -> None:
    options, hint = BAD_PARAMETERS[case]
    with stub(prefect_api) as server:
        assert_one_line(
            run_forked(path, DEPLOYMENT_ID, *options, "--api-url", server.api_url), hint
        )
    assert server.received == [], f"a bad parameter was sent; {READ}"


def test_without_parameters_the_flow_uses_its_defaults(as_written: ModuleType) -> None:
    with stub(prefect_api) as server:
        flow_run = as_written.trigger_deployment(server.api_url, DEPLOYMENT_ID, {})
    assert flow_run["id"] == FLOW_RUN_ID, f"it does not return the flow run; {READ}"
    assert server.received[0].body == {"parameters": {}}, f"another body was sent; {READ}"


def test_a_run_seen_before_is_a_success_too(path: Path) -> None:
    with stub(lambda _: Answer(200, {"id": FLOW_RUN_ID, "name": "calm-crow"})) as server:
        result = run_forked(path, DEPLOYMENT_ID, "--api-url", server.api_url)
    assert (result.returncode, result.stdout) == (0, f"{FLOW_RUN_ID}\n"), READ


def test_the_url_and_the_timeout_have_defaults(as_written: ModuleType, path: Path) -> None:
    assert as_written.DEFAULT_API_URL == "http://127.0.0.1:4200/api", READ
    assert as_written.TIMEOUT_SECONDS == 10, f"the timeout is another; {READ}"
    with stub(prefect_api) as server:
        for url in (server.api_url, f"{server.api_url}/"):
            run_forked(path, DEPLOYMENT_ID, PREFECT_API_URL=url)
    asked = [request.path for request in server.received]
    assert asked == [f"/api/deployments/{DEPLOYMENT_ID}/create_flow_run"] * 2, (
        f"PREFECT_API_URL is not used, with a slash at its end or without; {READ}"
    )


def test_without_a_setting_it_asks_the_local_server(path: Path, tmp_path: Path) -> None:
    assert_asks_port_4200(path, tmp_path, DEPLOYMENT_ID)


@pytest.mark.parametrize("deployment_id", ["", "user-flow/user-deployment", "123", "../x", "a?b"])
def test_what_is_no_uuid_is_not_sent(path: Path, deployment_id: str) -> None:
    with stub(prefect_api) as server:
        result = run_forked(path, deployment_id, "--api-url", server.api_url)
    assert_one_line(result, f"{deployment_id!r} is no deployment id (a UUID); lesson 11 finds it")
    assert server.received == [], f"it was sent; {READ}"


@pytest.mark.parametrize("case", BAD_API_URLS)
def test_a_bad_api_url_is_one_clear_line(path: Path, case: str) -> None:
    url, hint = BAD_API_URLS[case]
    assert_one_line(run_forked(path, DEPLOYMENT_ID, "--api-url", url), hint)


@pytest.mark.parametrize("case", MISBEHAVIOUR)
def test_a_misbehaving_server_is_one_clear_line(path: Path, impatient: Path, case: str) -> None:
    answer, hint = MISBEHAVIOUR[case]
    script = impatient if answer.hang else path
    with stub(lambda _: answer) as server:
        assert_one_line(run_forked(script, DEPLOYMENT_ID, "--api-url", server.api_url), hint)
    assert len(server.received) == 1, f"lesson 10 sends once, it has no idempotency key; {READ}"


def test_credentials_in_the_url_are_refused_and_not_shown(path: Path) -> None:
    result = run_forked(path, DEPLOYMENT_ID, "--api-url", "http://admin:secret@127.0.0.1:1/api")
    assert_one_line(result, "An API URL carries no credentials")
    assert "secret" not in result.stderr, f"a credential is shown; {READ}"


def test_it_says_what_to_type(path: Path) -> None:
    result = run_script(path, "--help")
    assert result.returncode == 0
    assert_told(
        result.stdout,
        "Trigger a deployment by its id.",
        "as lesson 11 prints it",
        "--param KEY=VALUE",
        "default: PREFECT_API_URL, or port 4200",
    )


@beside
def test_with_lesson_11_it_runs_the_served_flow(served: Served) -> None:
    url = served.api.url
    found = run_forked(script_path("11"), "user-flow/user-deployment", PREFECT_API_URL=url)
    command = (script_path("10"), found.stdout.strip(), "-p", "user_id=102")
    result = run_forked(*command, PREFECT_API_URL=url)
    run = served.api.ended(result.stdout.strip())
    assert run.state == "Completed", f"the flow run is {run.state}; {READ}"
    assert run.data["parameters"] == {"user_id": 102}, f"the parameters got lost; {READ}"
    assert str(run.data["deployment_id"]) == served.deployment["id"], f"another one ran; {READ}"


@pytest.mark.parametrize(
    ("deployment_id", "options", "hint"),
    [
        ("00000000-0000-4000-8000-000000000000", [], "There is no deployment with the id"),
        (None, ["-p", "user_id=x"], "'x' is not of type 'integer'"),
    ],
    ids=["unknown id", "wrong type"],
)
def test_what_the_server_refuses_is_one_clear_line(
    path: Path, served: Served, deployment_id: str | None, options: list[str], hint: Any
) -> None:
    asked = deployment_id or served.deployment["id"]
    assert_one_line(run_forked(path, asked, *options, PREFECT_API_URL=served.api.url), hint)
