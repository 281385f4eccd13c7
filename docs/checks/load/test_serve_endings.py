"""How serving ends, and what becomes of its runs: tables of docs/reference.md.

pytest docs/checks/load/test_serve_endings.py --write changed writes their cells.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from machinery import Server, changed_copy, script, server, serving
from pages import table_keys
from recorded import wait_until

pytestmark = pytest.mark.timeout(600)

Compare = Callable[..., None]
SEND = {"group": os.killpg, "process": os.kill}


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


def find(at: Server, name: str) -> Any:
    return at.ask("GET", f"/deployments/name/user-flow/{name}")


def trigger(at: Server, name: str) -> str:
    return str(at.ask("POST", f"/deployments/{find(at, name)['id']}/create_flow_run")["id"])


def last_state(at: Server, flow_run_id: str, seconds: float = 30) -> str:
    """Return the state in which the run ends, or its state after the seconds."""
    ends = ("Completed", "Failed", "Crashed", "Cancelled")
    with suppress(AssertionError):
        wait_until("the run ends", lambda: at.state(flow_run_id) in ends, seconds)
    return at.state(flow_run_id)


def lesson(folder: Path, name: str, seconds: float) -> Path:
    """Return a copy of lesson 09 that serves under the name, one run at a time."""
    changes = {"limit=5": "limit=1", "USER_SECONDS = 1": f"USER_SECONDS = {seconds}"}
    return changed_copy(script("09"), folder, ('"user-deployment"', f'"{name}"'), *changes.items())


@pytest.mark.parametrize("key", table_keys("endings"))
def test_how_it_ends_decides_about_the_runs(
    plain: Server, tmp_path: Path, key: str, compare: Compare
) -> None:
    name, to = key.split()
    served_as = f"{name}-{to}"
    log, path = tmp_path / "log", lesson(tmp_path, served_as, seconds=20)
    with serving(plain.api_url, path, log, f"user-flow/{served_as}") as process:
        under_way, queued = trigger(plain, served_as), trigger(plain, served_as)
        mine = {"flow_runs": {"id": {"any_": [under_way]}}}
        recorded = "a run is in progress, in its task"
        wait_until(recorded, lambda: plain.ask("POST", "/task_runs/filter", **mine), 120)
        SEND[to](process.pid, getattr(signal, name))
        code = shell_code(process)
        # A run whose process goes on needs its 20 s; one that was lost stays as it is.
        last = last_state(plain, under_way)
        waiting = plain.state(queued)
    schedule = "paused" if find(plain, served_as)["paused"] else "goes on"
    with serving(plain.api_url, lesson(tmp_path, served_as, 0.1), log, f"user-flow/{served_as}"):
        again = last_state(plain, queued, 120)
        assert not find(plain, served_as)["paused"], "serving again does not take the pause away"
        assert plain.state(under_way) == last, "serving again changes what was lost"
    waiting = "waits" if waiting in ("Scheduled", "Late") else waiting
    compare("endings", {key: (code, schedule, last, f"{waiting}, then {again}")}, whole=False)


def test_sigterm_cancels_even_a_completed_run_whose_process_lingers(
    plain: Server, tmp_path: Path, compare: Compare
) -> None:
    name = "just-completed"
    lingers = ("return user\n", "import threading; threading.Timer(20, str).start(); return user\n")
    path = changed_copy(lesson(tmp_path, name, seconds=0.1), tmp_path, lingers)
    with serving(plain.api_url, path, tmp_path / "log", f"user-flow/{name}") as process:
        flow_run_id = trigger(plain, name)
        before = last_state(plain, flow_run_id, 120)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    became = "the run is Cancelled"
    wait_until(became, lambda: plain.state(flow_run_id) == "Cancelled", 60)
    compare("just-completed", {"SIGTERM": (before, plain.state(flow_run_id))})


def test_a_serving_process_whose_server_is_away(tmp_path: Path, compare: Compare) -> None:
    """Take a server away, with its client's retries cut short: seconds instead of minutes."""
    seen: dict[str, tuple[str, ...]] = {}
    with server() as away, serving(away.api_url, script("09"), tmp_path / "log") as process:
        away.stop()
        away.start()
        run = last_state(away, trigger(away, "user-deployment"), 120)
        seen["away back"] = (f"goes on, a run is {run}" if process.poll() is None else "ends", "")
    for key, stop in {"stays away": None, "SIGINT": signal.SIGINT}.items():
        log = tmp_path / f"{key}.log"
        with (
            server() as away,
            serving(away.api_url, script("09"), log, PREFECT_CLIENT_MAX_RETRIES="0") as process,
        ):
            away.stop()
            if stop:
                process.send_signal(stop)
            code = shell_code(process)
        text = log.read_text(encoding="utf-8")
        failed = re.findall(r"Failed the last \d+ attempts", text)
        seen[key] = (f"exit code {code}", failed[0] if failed else text.splitlines()[-1][:80])
    compare("server-away", seen)
