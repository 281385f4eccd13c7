"""How serving ends, and what becomes of its runs: tables of docs/reference.md.

pytest docs/checks/load/test_serve_endings.py --write changed writes their cells.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from machinery import ENDS, Server, changed_copy, script, server, serving
from pages import table_keys
from recorded import wait_until

pytestmark = pytest.mark.timeout(600)

Compare = Callable[..., None]
SEND = {"group": os.killpg, "process": os.kill}
AT_A_TIME = 3  # endings, on two cores


def shell_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for the process; return its exit code as a shell tells it."""
    code = process.wait(120)
    return code if code >= 0 else 128 - code


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    """Return a Prefect server as it comes, on SQLite."""
    with server() as running:
        yield running


def serve(at: Server, folder: Path, name: str, seconds: float, *more: Any, **settings: Any) -> Any:
    """Serve a copy of lesson 09 as user-flow/NAME during a block, one run at a time."""
    changes = {"limit=5": "limit=1", "USER_SECONDS = 1": f"USER_SECONDS = {seconds}"}
    folder.mkdir(exist_ok=True)
    named = ('"user-deployment"', f'"{name}"')
    path = changed_copy(script("09"), folder, named, *changes.items(), *more)
    return serving(at.api_url, path, folder / "log", f"user-flow/{name}", **settings)


def observe(plain: Server, folder: Path, key: str) -> tuple[Any, ...]:
    """End a serving process as the key says; return the cells of its row."""
    signal_name, to = key.split()
    name = f"{signal_name}-{to}"
    deployment = f"user-flow/{name}"
    with serve(plain, folder / name, name, 12) as process:
        in_progress, queued = plain.trigger(deployment), plain.trigger(deployment)
        mine = {"flow_runs": {"id": {"any_": [in_progress]}}}
        recorded = "a run is in progress, in its task"
        wait_until(recorded, lambda: plain.ask("POST", "/task_runs/filter", **mine), 120)
        children = psutil.Process(process.pid).children(recursive=True)
        SEND[to](process.pid, getattr(signal, signal_name))
        code = shell_code(process)
        _, alive = psutil.wait_procs(children, 60)
        assert not alive, f"{key}: the process of the run goes on"
        last, waiting = plain.state(in_progress), plain.state(queued)
    schedule = "paused" if plain.deployment(deployment)["paused"] else "goes on"
    with serve(plain, folder / name, name, 0.1):
        again = plain.wait_for(queued, *ENDS)
        paused = plain.deployment(deployment)["paused"]
    assert not paused, f"{key}: serving again does not take the pause away"
    assert plain.state(in_progress) == last, f"{key}: serving again changes what was lost"
    waiting = "waits" if waiting in ("Scheduled", "Late") else waiting
    return code, schedule, last, f"{waiting}, then {again}"


def test_how_it_ends_decides_about_the_runs(
    plain: Server, tmp_path: Path, compare: Compare
) -> None:
    keys = table_keys("endings")
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        seen = list(pool.map(lambda key: observe(plain, tmp_path, key), keys))
    compare("endings", dict(zip(keys, seen, strict=True)))


def test_sigterm_cancels_even_a_completed_run_whose_process_lingers(
    plain: Server, tmp_path: Path, compare: Compare
) -> None:
    lingers = ("return user\n", "import threading; threading.Timer(8, str).start(); return user\n")
    with serve(plain, tmp_path, "just-completed", 0.1, lingers) as process:
        flow_run_id = plain.trigger("user-flow/just-completed")
        before = plain.wait_for(flow_run_id, *ENDS)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    after = plain.wait_for(flow_run_id, "Cancelled", seconds=60)
    compare("just-completed", {"SIGTERM": (before, after)})


def test_serving_processes_whose_server_is_down(
    plain: Server, tmp_path: Path, compare: Compare
) -> None:
    """Let two of three give up at once instead of after minutes: their client does not retry."""
    impatient = {"PREFECT_CLIENT_MAX_RETRIES": "0"}
    with ExitStack() as stack:

        def start(name: str, **settings: Any) -> Any:
            return stack.enter_context(serve(plain, tmp_path / name, name, 0.1, **settings))

        patient = start("patient")
        others = {it: start(it, **impatient) for it in ("stays away", "SIGINT")}
        plain.stop()
        others["SIGINT"].send_signal(signal.SIGINT)
        seen: dict[str, Any] = {}
        for key, process in others.items():
            code = shell_code(process)
            text = (tmp_path / key / "log").read_text(encoding="utf-8")
            failed = re.findall(r"Failed the last \d+ attempts", text)
            seen[key] = (f"exit code {code}", failed[0] if failed else text.splitlines()[-1][:80])
        plain.start()
        run = plain.wait_for(plain.trigger("user-flow/patient"), *ENDS)
        goes_on = patient.poll() is None
        seen["away back"] = (f"goes on, a run is {run}" if goes_on else "ends", "")
    compare("server-away", seen)
