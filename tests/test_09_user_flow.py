"""Lesson 09: `.serve()` creates a deployment, and runs it when somebody asks."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect import Flow, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from pytest_httpserver import HTTPServer
from recorded import read_ended

pytest_plugins = ["programs"]  # the fixture `served`

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
Serve = Callable[..., dict[str, Any]]


def test_a_trigger_runs_the_flow_with_its_parameters(lesson: ModuleType, served: str) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("user-flow/user-deployment")
        trigger = client.create_flow_run_from_deployment
        flow_run_id = trigger(deployment.id, parameters={"user_id": 102}).id
    user_id = (deployment.parameter_openapi_schema or {})["properties"]["user_id"]
    assert user_id["type"] == "integer", f"expected the parameter user_id: int, got {user_id}"
    run = read_ended(flow_run_id, 90)
    assert run.state == "Completed", f"expected Completed, got {run.state}"
    assert "fetch_user_info" in run.names(), "no task run of fetch_user_info: is @task missing?"
    logged = " ".join(log.message for log in run.user_logs())
    assert lesson.USERS[102] in logged, f"expected a log record about user 102, got {logged!r}"


@pytest.fixture
def serve(
    harness: None, lesson_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Serve:
    """Return a function that runs the lesson until it would serve: how, and at which URL."""

    def run(*options: str, default_api_url: str = DEFAULT_API_URL) -> dict[str, Any]:
        served: dict[str, Any] = {}

        def note(flow: Flow[..., Any], name: str, **how: Any) -> None:
            served.update(how, url=PREFECT_API_URL.value())

        text = lesson_path.read_text(encoding="utf-8")
        assert DEFAULT_API_URL in text, f"no {DEFAULT_API_URL} in the lesson"
        copy = tmp_path / lesson_path.name
        copy.write_text(text.replace(DEFAULT_API_URL, default_api_url), encoding="utf-8")
        monkeypatch.setattr(Flow, "serve", note)
        monkeypatch.setattr(sys, "argv", [copy.name, *options])
        runpy.run_path(str(copy), run_name="__main__")
        return served

    return run


def test_the_interval_is_the_schedule_and_the_limit_stays(serve: Serve) -> None:
    by_itself, on_request = serve("--interval", "60"), serve()
    assert by_itself.get("interval") == 60, f"expected 60, got {by_itself.get('interval')}"
    assert on_request.get("interval") is None, "it runs by itself without --interval"
    assert by_itself.get("limit") == on_request.get("limit") is not None, "limit= is missing"


def test_the_server_is_pinned_without_a_setting(serve: Serve) -> None:
    url = str(PREFECT_API_URL.value())
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        served_at = serve(default_api_url=url)["url"]
    assert served_at == url, f"expected {url}, got {served_at}: each run starts another server"


@pytest.mark.parametrize("interval", ["soon", "0", "-1", "0.5", "nan", "1e15", "9" * 20, ""])
def test_an_invalid_interval_is_a_usage_error(
    serve: Serve, capsys: pytest.CaptureFixture[str], interval: str
) -> None:
    with pytest.raises(SystemExit) as end:
        serve(f"--interval={interval}")
    line = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2, f"expected exit code 2, got {end.value.code}"
    assert "error: argument --interval" in line, f"the error doesn't name --interval: {line}"


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (401, '{"exception_message":"Unauthorized"}', "401.*Unauthorized"),
        (403, '{"detail":\n"Missing CSRF token"}', "403.*Missing CSRF token"),
        (404, "no such page", "404"),
        (200, "<html>", "JSONDecodeError"),
    ],
)
def test_an_unusable_server_exits_with_one_line(
    serve: Serve, httpserver: HTTPServer, status: int, body: str, cause: str
) -> None:
    httpserver.expect_request(re.compile(".*")).respond_with_data(body, status)
    url = httpserver.url_for("/api")
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(SystemExit) as end:
        serve()
    line = rf"error: .*{url} \(.*{cause}.*\)\. Check PREFECT_API_URL.*\."
    assert re.fullmatch(line, str(end.value)), f"expected {line}, got {end.value}"


@pytest.mark.parametrize(
    ("setting", "advice"),
    [(None, "Start .* prefect server start --background"), ("http://127.0.0.1:1/api", "Check")],
)
def test_a_missing_server_exits_with_advice_that_fits_the_setting(
    serve: Serve, setting: str | None, advice: str
) -> None:
    closed = "http://127.0.0.2:1/api"  # in place of the default
    with temporary_settings({PREFECT_API_URL: setting}), pytest.raises(SystemExit) as end:
        serve(default_api_url=closed)
    line = rf"error: .*{setting or closed} \(.*refused\)\. {advice}.*"
    assert re.fullmatch(line, str(end.value)), f"expected {line}, got {end.value}"
