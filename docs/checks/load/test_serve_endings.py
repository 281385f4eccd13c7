"""How serving ends, and what becomes of its runs: the table of lesson 09 in LEARNINGS.md."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from machinery import Server, changed_copy, script, server, serving
from pages import LEARNINGS, symptoms, tells
from recorded import wait_until

pytestmark = pytest.mark.timeout(600)

ENDINGS = {  # the signal, who gets it, and the row of the page's table
    "Ctrl-C": (signal.SIGINT, os.killpg, "Ctrl-C in the terminal"),
    "SIGINT-to-the-process": (signal.SIGINT, os.kill, "SIGINT to the process alone"),
    "SIGTERM-to-the-process": (signal.SIGTERM, os.kill, "SIGTERM to the process, or to its group"),
    "SIGTERM-to-the-group": (signal.SIGTERM, os.killpg, "SIGTERM to the process, or to its group"),
    "SIGKILL-to-the-process": (signal.SIGKILL, os.kill, "SIGKILL to the process alone"),
    "SIGKILL-to-the-group": (signal.SIGKILL, os.killpg, "SIGKILL to its group, power cut"),
}


def stated(ending: str) -> tuple[int, bool, str]:
    """Return what the page says of the ending: exit code, is it paused, state of the run."""
    (line,) = re.findall(rf"(?m)^\| {ending} \| (.*)$", LEARNINGS)
    code, schedule, run, *_ = line.split(" | ")
    return int(re.findall(r"\d+", code)[0]), schedule == "paused", run.removeprefix("stays ")


def shell_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for the process; return its exit code as a shell tells it."""
    code = process.wait(120)
    return code if code >= 0 else 128 - code


@pytest.fixture(scope="session", autouse=True)
def harness() -> None:
    """Take the place of the harness: these checks have servers of their own."""


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    """Return a Prefect server as it comes, on SQLite."""
    with server() as running:
        yield running


def ask(at: Server, method: str, path: str, **body: Any) -> Any:
    """Return the JSON of the answer; while SQLite is busy, ask again."""

    def answer() -> requests.Response | None:
        response = requests.request(method, at.api_url + path, json=body, timeout=60)
        return response if response.ok else None

    return wait_until(f"{method} {path}", answer, 90).json()


def find(at: Server, name: str) -> Any:
    return ask(at, "GET", f"/deployments/name/user-flow/{name}")


def trigger(at: Server, name: str) -> str:
    return str(ask(at, "POST", f"/deployments/{find(at, name)['id']}/create_flow_run")["id"])


def state(at: Server, flow_run_id: str) -> str:
    return str(ask(at, "GET", f"/flow_runs/{flow_run_id}")["state_name"])


def await_state(at: Server, flow_run_id: str, name: str) -> None:
    wait_until(f"the run is {name}", lambda: state(at, flow_run_id) == name, 150)


def lesson(folder: Path, name: str, seconds: float) -> Path:
    """Return a copy of lesson 09 that serves under the name, one run at a time."""
    changes = {"LIMIT = 5": "LIMIT = 1", "USER_SECONDS = 1": f"USER_SECONDS = {seconds}"}
    return changed_copy(script("09"), folder, ('"user-deployment"', f'"{name}"'), *changes.items())


@pytest.mark.parametrize("name", ENDINGS)
def test_how_it_ends_decides_about_the_runs(plain: Server, tmp_path: Path, name: str) -> None:
    sent, to, ending = ENDINGS[name]
    exit_code, paused, last = stated(ending)
    log, path = tmp_path / "log", lesson(tmp_path, name, seconds=20)
    with serving(plain.api_url, path, log, f"user-flow/{name}") as process:
        under_way, queued = trigger(plain, name), trigger(plain, name)
        mine = {"flow_runs": {"id": {"any_": [under_way]}}}
        recorded = "a run is under way, in its task"
        wait_until(recorded, lambda: ask(plain, "POST", "/task_runs/filter", **mine), 120)
        to(process.pid, sent)
        assert shell_code(process) == exit_code, log.read_text()
    assert find(plain, name)["paused"] == paused, f"{name}: the schedule is the other way"
    await_state(plain, under_way, last)
    if name in ("Ctrl-C", "SIGTERM-to-the-process"):
        row = "test_a_run_is_crashed_or_cancelled_because_its_service_was_restarted"
        tells(symptoms()[row], state(plain, under_way))
    assert state(plain, queued) in ("Scheduled", "Late"), "a queued run does not stay queued"
    with serving(plain.api_url, lesson(tmp_path, name, 0.1), log, f"user-flow/{name}"):
        await_state(plain, queued, "Completed")
        assert not find(plain, name)["paused"], "serving again does not take the pause away"
        assert state(plain, under_way) == last, "serving again changes what was lost"


def test_sigterm_cancels_even_a_completed_run_whose_process_lingers(
    plain: Server, tmp_path: Path
) -> None:
    name = "just-completed"
    lingers = ("return user\n", "import threading; threading.Timer(20, str).start(); return user\n")
    path = changed_copy(lesson(tmp_path, name, seconds=0.1), tmp_path, lingers)
    with serving(plain.api_url, path, tmp_path / "log", f"user-flow/{name}") as process:
        flow_run_id = trigger(plain, name)
        await_state(plain, flow_run_id, "Completed")
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    await_state(plain, flow_run_id, "Cancelled")


def test_an_edit_is_seen_only_after_a_restart(plain: Server, tmp_path: Path) -> None:
    name, log = "edited", tmp_path / "log"
    path = lesson(tmp_path, name, seconds=0.1)
    with serving(plain.api_url, path, log, f"user-flow/{name}"):
        changed_copy(path, tmp_path, ("Ada Lovelace", "Edited"))
        await_state(plain, trigger(plain, name), "Completed")
        assert "Ada Lovelace" in log.read_text()
        changed_copy(path, tmp_path, ("import time", "import time, no python"))
        broken = trigger(plain, name)
        await_state(plain, broken, "Crashed")
    tells(symptoms()["test_an_edit_is_not_seen_by_the_serving_process"], state(plain, broken))


def test_a_server_that_comes_back_is_served_again(tmp_path: Path) -> None:
    with server() as away, serving(away.api_url, script("09"), tmp_path / "log") as process:
        away.stop()
        away.start()
        await_state(away, trigger(away, "user-deployment"), "Completed")
        assert process.poll() is None, "it ended because its server was away"


def test_a_server_that_stays_away_ends_it_with_1(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # Without retries of its client it takes seconds instead of minutes.
    with (
        server() as away,
        serving(away.api_url, script("09"), log, PREFECT_CLIENT_MAX_RETRIES="0") as process,
    ):
        away.stop()
        exit_code, *_ = stated("its server is away for about five minutes")
        assert process.wait(120) == exit_code, "it goes on without a server"
    assert "Failed the last 3 attempts" in log.read_text()
