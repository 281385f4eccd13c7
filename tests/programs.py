"""Fixtures for lessons 09 to 12: a lesson as a program, a server that hangs, the served flow."""

import os
import re
import runpy
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


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide your PREFECT_* variables and proxies: the lessons read them in each request."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def run_cli(
    lesson_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, Any]]:
    """Return a function that runs the lesson as a program: its stdout, and what ends it, if not 0.

    That is an exit code, or a line for stderr (and then the exit code is 1).
    """

    def run(*arguments: str) -> tuple[str, Any]:
        monkeypatch.setattr(sys, "argv", [lesson_path.name, *arguments])
        code = None
        try:
            runpy.run_path(str(lesson_path), run_name="__main__")
        except SystemExit as end:
            code = end.code
        assert "\n" not in str(code), f"expected one line, got {code}"
        return capsys.readouterr().out, code

    return run


@pytest.fixture
def unresponsive_api(
    lesson: ModuleType, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Return the URL of an API that answers after the lesson has given up, here after 0.25 s."""
    monkeypatch.setattr(lesson, "TIMEOUT_SECONDS", 0.25)

    def hang(_: Request) -> Response:
        time.sleep(1)
        return Response()

    httpserver.expect_request(re.compile(".*")).respond_with_handler(hang)
    yield httpserver.url_for("/api")
    wait_until("the server is free again", lambda: httpserver.log)


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
