"""Lesson 09: `.serve()` makes a deployment, and a process that runs it when asked."""

import re
import runpy
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect import Flow, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from pytest_httpserver import HTTPServer
from recorded import FlowRun, read_ended

pytest_plugins = ["programs"]  # the fixtures `run_cli` and `served`

USERS = [101, 102, 103]
Serve = Callable[..., dict[str, Any]]


def read_deployment(name: str) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(f"user-flow/{name}")


def run_at_once(runs: list[FlowRun]) -> int:
    """Return how many pairs of the flow runs ran at the same time for a while."""
    spans: list[Any] = [(run.record.start_time, run.record.end_time) for run in runs]
    return sum(a[0] < b[1] and b[0] < a[1] for a, b in combinations(spans, 2))


@pytest.fixture(scope="module")
def triggered(served: str) -> list[FlowRun]:
    """Trigger a run for each user, all at once, and return them when they have ended."""
    deployment_id = read_deployment("user-deployment").id
    with get_client(sync_client=True) as client:
        given = [{"user_id": user} for user in USERS]
        trigger = client.create_flow_run_from_deployment
        ids = [trigger(deployment_id, parameters=parameters).id for parameters in given]
    return [read_ended(id, 90) for id in ids]


def test_it_serves_a_deployment_that_knows_the_flows_parameters(served: str) -> None:
    deployment = read_deployment("user-deployment")
    assert deployment.entrypoint.endswith("09_user_flow.py:user_flow"), "another flow is served"
    accepted = deployment.parameter_openapi_schema["properties"]
    assert accepted["user_id"]["type"] == "integer", "the flow's parameter is not user_id: int"


def test_a_trigger_runs_the_flow_with_its_parameters(
    lesson: ModuleType, triggered: list[FlowRun]
) -> None:
    for user, run in zip(USERS, triggered, strict=True):
        assert run.state == "Completed", f"the triggered run is {run.state}"
        assert "fetch_user_info" in run.names(), "the lookup is not recorded as a task run"
        logged = " ".join(log.message for log in run.user_logs())
        assert lesson.USERS[user] in logged, f"the run for user {user} is about another: {logged}"


def test_the_limit_holds_back_runs_that_are_due(triggered: list[FlowRun]) -> None:
    assert not run_at_once(triggered), "limit= is lost: every run that is due starts at once"


@pytest.fixture
def serve(lesson_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Return a function that runs the lesson, changed, up to .serve(): what would be served."""

    def run(*options: str, **changes: str) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def note(flow: Flow[..., Any], name: str, **more: Any) -> None:
            asked.update(more, name=f"{flow.name}/{name}", url=PREFECT_API_URL.value())

        text = lesson_path.read_text(encoding="utf-8")
        for old, new in changes.items():
            assert text.count(old) == 1, f"{old} stands in more than one place"
            text = text.replace(old, new)
        copy = tmp_path / lesson_path.name
        copy.write_text(text, encoding="utf-8")
        monkeypatch.setattr(Flow, "serve", note)
        monkeypatch.setattr(sys, "argv", [copy.name, *options])
        runpy.run_path(str(copy), run_name="__main__")
        return asked

    return run


def test_the_interval_is_a_schedule_and_keeps_the_limit(serve: Serve) -> None:
    asked = serve("--interval", "60")
    assert asked.get("interval") == 60, "--interval 60 is not the schedule"
    assert asked.get("limit") == serve().get("limit") is not None, "limit= is lost"


def test_what_it_prints_names_what_it_serves(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = serve(**{'"user-deployment"': '"nightly"', "@flow\n": '@flow(name="my flow")\n'})
    assert asked["name"] == "my flow/nightly", "the last line does not name the deployment"
    printed = capsys.readouterr().out
    for word in ("name_lookup.py 'my flow/nightly'", f"PREFECT_API_URL={asked['url']}"):
        assert word in printed, f"{word} is not told, so lessons 10 to 12 go elsewhere"


def test_without_a_setting_it_serves_at_port_4200(serve: Serve) -> None:
    url = str(PREFECT_API_URL.value())
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        asked = serve(**{"http://127.0.0.1:4200/api": url})
    assert asked["url"] == url, "the URL is not pinned: each run starts a server of its own"


@pytest.mark.parametrize("interval", ["soon", "0", "-1", "0.5", "nan", "1e15", "9" * 20, ""])
def test_a_bad_interval_is_one_clear_line(serve: Serve, interval: str) -> None:
    with pytest.raises(SystemExit, match=r"^--interval takes .* seconds.*not '.*'$"):
        serve(f"--interval={interval}")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (0, "", "refused.* prefect server start --background"),
        (401, '{"exception_message":"Unauthorized"}', "401.*Unauthorized"),
        (403, '{"detail":\n"Missing CSRF token"}', "403.*Missing CSRF token"),
        (200, "<html>", "JSONDecodeError"),
    ],
)
def test_a_server_that_does_not_take_it_is_one_clear_line(
    serve: Serve, httpserver: HTTPServer, status: int, body: str, said: str
) -> None:
    httpserver.expect_request(re.compile(".*")).respond_with_data(body, status)
    url = httpserver.url_for("/api") if status else "http://127.0.0.1:1/api"
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(SystemExit) as end:
        serve()
    line = str(end.value)
    assert re.fullmatch(f".*{url}.*{said}.*", line), f"it does not say what happened: {line}"
    refused = status > 200
    assert refused != ("No Prefect server" in line), f"whether there is a server is untrue: {line}"
