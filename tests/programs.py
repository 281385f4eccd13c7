"""What the tests of lessons 09 to 12 need besides: a lesson as a program, and a served flow."""

import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_URL
from pytest_httpserver import HTTPServer
from recorded import wait_until
from werkzeug import Request, Response


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
        assert "\n" not in str(code), f"not one line: {code}"
        return capsys.readouterr().out, code

    return run


@pytest.fixture
def unresponsive_api(httpserver: HTTPServer) -> Iterator[str]:
    """Return the URL of an API that answers when a client of the tests has given up."""

    def hang(_: Request) -> Response:
        time.sleep(1)
        return Response()

    httpserver.expect_request(re.compile(".*")).respond_with_handler(hang)
    yield httpserver.url_for("/api")
    wait_until("the server is free again", lambda: httpserver.log)


@contextmanager
def serve_lesson_09(folder: Path, name: str, *options: str) -> Iterator[str]:
    """Serve lesson 09 under the name, one run at a time, as a program; yield the API's URL."""
    here = Path(__file__).parent
    lesson = next(path for at in (here.parent, here) for path in at.glob("09_user_flow.py"))
    text = lesson.read_text(encoding="utf-8")
    text = re.sub("LIMIT = .*", "LIMIT = 1", text.replace('"user-deployment"', f'"{name}"'))
    script = folder / "09_user_flow.py"
    script.write_text(text, encoding="utf-8")
    api_url = str(PREFECT_API_URL.value())
    settings = {"PREFECT_API_URL": api_url, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}

    def polls() -> bool:
        assert process.poll() is None, "lesson 09 ended instead of serving"
        with get_client(sync_client=True) as client:
            return (name, "READY") in [(it.name, it.status) for it in client.read_deployments()]

    process = subprocess.Popen([sys.executable, str(script), *options], env=os.environ | settings)
    try:
        wait_until("lesson 09 serves", polls, 120)
        yield api_url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def served(harness: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve user-flow/user-deployment while the tests run; return the API's URL."""
    with serve_lesson_09(tmp_path_factory.mktemp("served"), "user-deployment") as api_url:
        yield api_url
