"""Fixtures for lessons 09 to 12: the lesson as a program, servers in trouble, the served flow."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_URL
from pytest_httpserver import HTTPServer
from recorded import wait_until
from werkzeug import Request, Response

START_A_SERVER = "prefect server start --background"
UNREACHABLE_APIS = {
    "nonsense": "No scheme",
    "http://[::1/api": "not a valid host",
    "http://127.0.0.1:1/api": f"Connection refused.*{START_A_SERVER}",
    "one that does not answer": f"timed out.*{START_A_SERVER}",
}
UNUSABLE_ANSWERS = {
    "409 .*it is refused": Response('{"detail":"it is\nrefused"}', 409),
    r'404 \(\{"detail":"Not Found"\}\)': Response('{"detail":"Not Found"}', 404),
    "401 .*Unauthorized": Response('{"exception_message":"Unauthorized"}', 401),
    "403 .*Missing CSRF token": Response('{"detail":"Missing CSRF token"}', 403),
    r"503 \(database is locked\)": Response("database is\nlocked", 503),
    "302 .*/login": Response("", 302, {"Location": "http://127.0.0.1:1/login"}),
    '500 .*"id"': Response('{"id": "x", "name": "x"}', 500),
}
for status in (200, 201):
    for text in ("<html>", "", '"id"', "[1, 2]", "{}"):
        UNUSABLE_ANSWERS[re.escape(f"{status} ({text})")] = Response(text, status)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide your PREFECT_* variables and proxies: the lessons read them in each request."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def run(
    lesson: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Return a function that runs the lesson; it returns exit code, stdout and stderr."""

    def run_main(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["lesson", *arguments])
        code: Any = 0
        try:
            lesson.main()
        except SystemExit as end:
            code = end.code
        stdout, stderr = capsys.readouterr()
        return (1, stdout, code) if isinstance(code, str) else (code, stdout, stderr)

    return run_main


@pytest.fixture(params=UNREACHABLE_APIS)
def unreachable_api(
    request: pytest.FixtureRequest,
    lesson: ModuleType,
    httpserver: HTTPServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[str, str]]:
    """Return the URL of an API that cannot be reached, and what the lesson's line has to match."""
    problem = UNREACHABLE_APIS[request.param]
    if not problem.startswith("timed out"):
        yield request.param, problem
        return

    def hang(_: Request) -> Response:
        time.sleep(1)
        return Response()

    monkeypatch.setattr(lesson, "TIMEOUT_SECONDS", 0.25)
    httpserver.expect_request(re.compile(".*")).respond_with_handler(hang)
    yield httpserver.url_for("/api"), problem
    wait_until("the server is free again", lambda: httpserver.log)


@pytest.fixture(params=UNUSABLE_ANSWERS)
def unusable_api(request: pytest.FixtureRequest, httpserver: HTTPServer) -> tuple[str, str]:
    """Return the URL of an API with another answer, and what the lesson's line has to match."""
    answer = UNUSABLE_ANSWERS[request.param]
    httpserver.expect_request(re.compile(".*")).respond_with_response(answer)
    return httpserver.url_for("/api"), request.param


@pytest.fixture(scope="session")
def served(harness: None) -> Iterator[str]:
    """Serve user-flow/user-deployment while the tests run; return the API's URL."""
    here = Path(__file__).parent
    lesson = next(path for at in (here.parent, here) for path in at.glob("09_user_flow.py"))
    settings = {
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.1",
    }

    def polls() -> bool:
        assert process.poll() is None, "lesson 09 ended instead of serving"
        with get_client(sync_client=True) as client:
            return "READY" in [deployment.status for deployment in client.read_deployments()]

    process = subprocess.Popen([sys.executable, str(lesson)], env=os.environ | settings)
    try:
        wait_until("lesson 09 serves", polls, 120)
        yield settings["PREFECT_API_URL"]
    finally:
        process.terminate()
        process.wait(60)
