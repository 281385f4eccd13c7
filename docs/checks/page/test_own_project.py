"""Into your own project: real requests in lesson 08, and a stage's test beside a flow of yours."""

import json
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
from machinery import ROOT, run, script
from prefect import flow, get_run_logger, task
from recorded import Record

from tests.conftest import load_quickly

ANSWERS = {"users": "Ada Lovelace", "balances": 120.5, "logins": [5, 3, 2, 1]}


class Service(BaseHTTPRequestHandler):
    """A service with troubles of its own: which one, the server's `troubles` say."""

    def do_GET(self) -> None:
        """Answer for a known user, or 404."""
        _, service, user_id = self.path.split("/")
        self.server.requests[service] += 1  # type: ignore[attr-defined]
        trouble = self.troubles(service)
        if trouble == "down":
            self.send_error(503)
        elif trouble == "hangs":
            self.server.released.wait(20)  # type: ignore[attr-defined]
        elif user_id != "101":
            self.send_error(404)
        else:
            body = json.dumps(ANSWERS.get(service)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:2] if trouble == "cut short" else body)

    def do_POST(self) -> None:
        """Take a message, once for each key; and then, perhaps, break the connection."""
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        messages = self.server.messages  # type: ignore[attr-defined]
        messages.setdefault(self.headers["Idempotency-Key"], message)
        self.server.requests["messages"] += 1  # type: ignore[attr-defined]
        if self.troubles("messages") != "breaks off":
            self.send_response(204)
            self.end_headers()

    def troubles(self, service: str) -> str | None:
        """Return the trouble that this request is to have."""
        left: list[str] = self.server.troubles.get(service, [])  # type: ignore[attr-defined]
        return left.pop() if left else None

    def log_message(self, format: str, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def service() -> Iterator[Any]:
    """Run the service during a test."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.troubles, server.messages, server.requests = {}, {}, Counter()
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def block_with(text: str) -> str:
    """Return the one Python block of LEARNINGS.md that has the text."""
    page = (ROOT / "LEARNINGS.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```python(?: notest)?\n(.*?)^```$", page)
    (found,) = [block for block in blocks if text in block]
    return str(found)


def with_real_requests() -> str:
    """Return lesson 08 with the page's `call_service` in the place of the simulated one."""
    block = block_with("def call_service")
    constants = re.findall(r"(?m)^[A-Z_]+ = .*\n", block)
    function = block[block.index("def call_service") :]
    text = script("08").read_text(encoding="utf-8")
    text, count = re.subn(
        r"(?ms)^def call_service.*?(?=^def )",
        lambda _: f"{''.join(constants)}\n\n{function}\n\n",
        text,
    )
    assert count == 1
    return text


@pytest.fixture
def pipeline(service: Any, tmp_path: Path) -> ModuleType:
    """Return the module of lesson 08 with real requests, to this service."""
    copy = tmp_path / "my_pipeline.py"
    copy.write_text(with_real_requests(), encoding="utf-8")
    module = load_quickly(copy)
    module.SERVICE_URL = f"http://127.0.0.1:{service.server_port}"  # type: ignore[attr-defined]
    return module


def test_what_passes_is_tried_again_and_one_message_goes_out(
    pipeline: ModuleType, service: Any, record: Record
) -> None:
    service.troubles = {
        "users": ["down", "down"],
        "balances": ["cut short"],
        "logins": ["hangs"],
        "messages": ["breaks off"],
    }
    run = record(pipeline.pipeline_flow)
    assert run.state == "Completed", f"with a real service it is {run.state}: {run.result}"
    assert run.result["balance"] == ANSWERS["balances"]
    attempts = {step.name: step.attempts for step in run.task_runs}
    assert attempts == {
        "fetch_user_info": 3,
        "fetch_account_balance": 2,
        "fetch_recent_activity": 2,
        "predict_churn": 1,
        "send_notification": 2,
    }, "what is transient is not what is tried again"
    assert service.requests["messages"] == 2, "the message was not sent again"
    assert len(service.messages) == 1, "the key changes between attempts: two messages went out"


def test_an_unknown_user_is_asked_for_once(
    pipeline: ModuleType, service: Any, record: Record
) -> None:
    run = record(pipeline.pipeline_flow, 999)
    assert isinstance(run.result, requests.HTTPError), f"a 404 became {run.result!r}"
    assert service.requests == {"users": 1}, "a 404 was tried again"
    assert service.messages == {}, "a message went out about nobody"


def test_a_flow_run_of_many_records_is_read_whole(record: Record) -> None:
    double = task(lambda number: 2 * number)

    @flow
    def wordy() -> None:
        for number in range(450):
            get_run_logger().info("Number %s", number)
        double.map(range(210)).result()

    run = record(wordy)
    assert len(run.task_runs) == 210
    assert len([log for log in run.user_logs() if log.message.startswith("Number")]) == 450


@pytest.mark.timeout(300)
def test_the_block_on_the_harness_runs_by_itself() -> None:
    result = run(
        "-c", block_with("prefect_test_harness"), seconds=280
    )  # it has a server of its own
    assert result.returncode == 0, result.stderr[-3000:]


def run_alone(folder: Path, *needed: str) -> None:
    """Run the tests in a folder with prefect and pytest, no pyproject.toml, the plugins needed."""
    for name in ("conftest.py", "recorded.py"):
        shutil.copy(ROOT / "tests" / name, folder)
    others = {"xdist", "timeout", "pytest_httpserver", "cacheprovider"} - {*needed}
    plugins = [f"-pno:{name}" for name in others]
    result = run("-m", "pytest", "-q", *plugins, cwd=folder, seconds=280)
    assert result.returncode == 0, f"copied, it fails:\n{result.stdout[-3000:]}"


@pytest.mark.parametrize("number", ["02", "08"])
@pytest.mark.timeout(300)
def test_a_stage_passes_beside_a_copy_of_its_lesson(tmp_path: Path, number: str) -> None:
    shutil.copy(script(number), tmp_path)
    shutil.copy(ROOT / "tests" / f"test_{script(number).name}", tmp_path)
    run_alone(tmp_path)


@pytest.mark.timeout(300)
def test_the_stage_of_lesson_12_passes_beside_a_copy_of_09_and_12(tmp_path: Path) -> None:
    test = f"test_{script('12').name}"
    for path in (script("09"), script("12"), ROOT / "tests" / "programs.py", ROOT / "tests" / test):
        shutil.copy(path, tmp_path)
    run_alone(tmp_path, "pytest_httpserver")


@pytest.mark.timeout(300)
def test_the_test_of_lesson_08_passes_with_real_requests_and_another_name(tmp_path: Path) -> None:
    stage = (ROOT / "tests" / f"test_{script('08').name}").read_text(encoding="utf-8")
    own, mark, _ = stage.partition("# --- the simulated service")
    assert mark, "where the tests of the simulated service begin is not said"
    (tmp_path / "churn.py").write_text(with_real_requests(), encoding="utf-8")
    (tmp_path / "test_churn.py").write_text(own, encoding="utf-8")
    run_alone(tmp_path)
