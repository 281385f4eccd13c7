"""Symptoms of serving, in docs/troubleshooting.md: each is caused, and its table says what is seen.

pytest docs/checks/page/test_symptoms.py --write changed writes the cells.
"""

import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import nbformat
import pytest
import requests
from machinery import Server, background, end, run, server
from nbclient import NotebookClient
from pages import table_keys
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed
from recorded import read_ended, wait_until
from served import becomes, deploy, deployment, post, read_state, set_state, trigger

pytestmark = pytest.mark.timeout(600)  # most of it is waiting, on a busy machine

Compare = Callable[..., None]
SERVED = """
import datetime, time
import helper
from prefect import flow, get_run_logger

@flow
def served(seconds: float = 0, day: datetime.date = datetime.date(2026, 2, 3)):
    get_run_logger().info("old flow, %s helper", helper.VERSION)
    time.sleep(seconds)

if __name__ == "__main__":
    served.serve("d", interval=3600, limit=1)
"""
FIRST_CELL = """
import asyncio
from prefect import flow, task

@flow
def hello():
    return "Hello"

@flow
async def hello_async():
    return "Hello"

@task
def double(number):
    return 2 * number

@flow
def doubled():
    return double.map([1, 2]).result()
"""


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """Run a server that calls a run Late after a second."""
    late = "PREFECT_SERVER_SERVICES_LATE_RUNS"
    with server(**{f"{late}_AFTER_SECONDS": "1", f"{late}_LOOP_SECONDS": "1"}) as running:
        yield running


@pytest.fixture(autouse=True)
def api_url(own_server: Server) -> Iterator[str]:
    """Use that server, and return the URL of its API."""
    with temporary_settings({PREFECT_API_URL: own_server.api_url}):
        yield own_server.api_url


@contextmanager
def serve(folder: Path, name: str, *changes: tuple[str, str]) -> Iterator[tuple[Any, Path]]:
    """Serve SERVED, with these changes, as NAME/d; yield the process and its log once it serves."""
    text = SERVED
    for old, new in [("served", name), *changes]:
        text = text.replace(old, new)
    (folder / "flows.py").write_text(text)
    (folder / "helper.py").write_text('VERSION = "old"')
    log = folder / f"{time.monotonic_ns()}.log"
    settings: dict[str, Any] = {
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    with background(folder / "flows.py", cwd=folder, log=log, **settings) as process:
        wait_until("it serves", lambda: "being served" in log.read_text(), 60)
        yield process, log


def ended(flow_run_id: UUID) -> str:
    """Wait until the run has ended, and return its state."""
    return becomes(flow_run_id, "Completed", "Failed", "Crashed", "Cancelled")


def test_a_run_stays_scheduled_or_late(tmp_path: Path, compare: Compare) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="pool", type="process", is_paused=True))
        deploy("pooled", work_pool_name="pool")
        deploy("waiting")
        pooled, unserved = trigger("pooled"), trigger("waiting")

        def offered() -> list[UUID]:
            found = client.get_scheduled_flow_runs_for_work_pool("pool")
            return [each.flow_run.id for each in found]

        late = [becomes(each, "Late") for each in (pooled, unserved)]
        assert offered() == []
        client.update_work_pool("pool", WorkPoolUpdate(is_paused=False))
        assert offered() == [pooled]
    with serve(tmp_path, "waiting"):
        seen = {"nothing": (late[1], ended(unserved)), "pool": (late[0], "offered to a worker")}
        runs = [trigger("waiting", seconds=6) for _ in "12"]
        wait_until("one runs", lambda: "Running" in map(read_state, runs))
        (queued,) = [each for each in runs if read_state(each) != "Running"]
        seen["limit"] = (becomes(queued, "Late", "Running"), ended(queued))
    compare("waiting", seen)


def test_a_run_stays_running_or_submitting(api_url: str, tmp_path: Path, compare: Compare) -> None:
    with serve(tmp_path, "killed", ("limit=1", "limit=2")) as (process, _):
        runs = []
        for state in ("Running", "Submitting"):
            runs.append(trigger("killed", seconds=600))
            becomes(runs[-1], state)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def after(command: str) -> tuple[str, ...]:
        for each in runs:
            run("-m", "prefect", "flow-run", command, str(each), PREFECT_API_URL=api_url)
        return tuple(map(read_state, runs))

    seen = {"SIGKILL": tuple(map(read_state, runs)), "prefect flow-run cancel": after("cancel")}
    for each in runs:
        set_state(each, Crashed())
    seen["set_flow_run_state"] = tuple(map(read_state, runs))
    compare("killed", seen | {"prefect flow-run delete": after("delete")})


def test_an_edit_is_not_seen_by_the_serving_process(tmp_path: Path, compare: Compare) -> None:
    def outcome() -> tuple[str, str]:
        flow_run_id = trigger("edited")
        found = read_ended(flow_run_id, 120)
        own = [it.message for it in found.logs if "helper" in it.message]
        return found.state, ", ".join(own) or "nothing"

    with serve(tmp_path, "edited"):
        flows, helper = tmp_path / "flows.py", tmp_path / "helper.py"
        flows.write_text(flows.read_text().replace("old flow", "new flow"))
        seen = {"flows.py": outcome()}
        helper.write_text('VERSION = "new"')
        seen["helper.py"] = outcome()
        helper.unlink()
        seen["helper.py missing"] = outcome()
        flows.write_text("no Python")
        seen["flows.py broken"] = outcome()
    compare("edits", seen)


def test_a_schedule_is_off_after_a_restart(tmp_path: Path, compare: Compare) -> None:
    def schedule(name: str) -> tuple[bool, int]:
        found = deployment(name)
        return found.paused, len(found.schedules)

    forgets = ("interval=3600, ", "")
    stays = ("limit=1", "limit=1, pause_on_shutdown=False")
    with serve(tmp_path, "restarted") as (old, _), serve(tmp_path, "restarted"):
        wait_until("it polls", lambda: deployment("restarted").status == "READY")
        seen = {"old new": schedule("restarted")}
        end(old)
        seen["old"] = schedule("restarted")
    with serve(tmp_path, "restarted", stays):
        seen["restart"] = schedule("restarted")
    seen["pause_on_shutdown=False"] = schedule("restarted")
    with serve(tmp_path, "restarted", forgets):
        seen["interval"] = schedule("restarted")
    compare("schedule", seen)


def test_two_processes_serve_one_name(tmp_path: Path, compare: Compare) -> None:
    other = tmp_path / "other"
    other.mkdir()
    seen: set[str] = set()
    with serve(tmp_path, "twice"), serve(other, "twice", ("old flow", "new flow")):
        deadline = time.monotonic() + 120
        while len(seen) < 2 and time.monotonic() < deadline:
            runs = [trigger("twice") for _ in range(4)]
            for each in runs:
                logs = read_ended(each, 120).logs
                seen |= {it.message.split(",")[0] for it in logs if "helper" in it.message}
    compare("twice", {"old new": " or ".join(sorted(seen, reverse=True))})


def test_a_parameter_is_accepted_and_the_run_crashes(tmp_path: Path, compare: Compare) -> None:
    seen = {}
    with serve(tmp_path, "accepted") as (_, log):
        for words in ("secnds=1", "day=03.02.2026"):
            before = len(log.read_text())
            found = read_ended(trigger("accepted", **dict([words.split("=")])), 120)

            def errors(before: int = before) -> list[str]:
                return re.findall(r"(\w+Error): ", log.read_text()[before:])

            error = wait_until("the process has logged the error", errors)[-1]
            logs = [it for it in found.logs if error in it.message]
            seen[words] = (found.state, f"`{error}`", len(logs))
    compare("wrong-parameters", seen)


def test_503_and_database_is_locked(own_server: Server, compare: Compare) -> None:
    deployment_id = deploy("locked")
    url = f"{own_server.api_url}/deployments/{deployment_id}/create_flow_run"
    writer = sqlite3.connect(own_server.home / "prefect.db", timeout=60, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    seen = {"locked": requests.post(url, json={"idempotency_key": "k"}, timeout=100).status_code}
    writer.execute("ROLLBACK")
    writer.close()
    assert "database is locked" in (own_server.home / "server.log").read_text(encoding="utf-8")
    for key in ("free", "again"):
        seen[key] = post(deployment_id, idempotency_key="k").status_code
    compare("locked", seen)


def cell_outcome(cell: nbformat.NotebookNode) -> tuple[str, str]:
    """Return the result of a notebook's cell, or the error that ended it; what it announced."""
    errors = [f"{it.ename}: {it.evalue}" for it in cell.outputs if it.output_type == "error"]
    results = [it.data["text/plain"] for it in cell.outputs if it.output_type == "execute_result"]
    shown = [it.data["text/plain"] for it in cell.outputs if it.output_type == "display_data"]
    text = re.sub(r"\x1b\[[\d;]*m", "", "".join(shown))  # without colours
    announced = re.findall(r"(?m)^Your flow '.*?' is being served", text)
    return f"`{(errors + results)[0].splitlines()[0]}`", "".join(announced)


def test_cells_of_a_notebook(
    tmp_path: Path, api_url: str, monkeypatch: pytest.MonkeyPatch, compare: Compare
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", api_url)
    keys = table_keys("notebook")
    v4: Any = nbformat.v4
    book = v4.new_notebook(cells=[v4.new_code_cell(it) for it in [FIRST_CELL, *keys]])
    options: dict[str, Any] = {"kernel_name": "python3", "allow_errors": True, "timeout": 200}
    NotebookClient(book, resources={"metadata": {"path": str(tmp_path)}}, **options).execute()
    seen = map(cell_outcome, book.cells[1:])
    compare("notebook", dict(zip(keys, seen, strict=True)))
