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
from machinery import ENDS, Server, background, end, run, server
from nbclient import NotebookClient
from pages import table_keys
from recorded import read_ended, wait_until

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


@contextmanager
def serve(
    at: Server, folder: Path, name: str, *changes: tuple[str, str]
) -> Iterator[tuple[Any, Path]]:
    """Serve SERVED, with these changes, as NAME/d; yield the process and its log once it serves."""
    text = SERVED
    for old, new in [("served", name), *changes]:
        text = text.replace(old, new)
    (folder / "flows.py").write_text(text)
    (folder / "helper.py").write_text('VERSION = "old"')
    log = folder / f"{time.monotonic_ns()}.log"
    settings: dict[str, Any] = {"PREFECT_RUNNER_POLL_FREQUENCY": "1", "PREFECT_API_URL": at.api_url}
    with background(folder / "flows.py", cwd=folder, log=log, **settings) as process:
        wait_until("it serves", lambda: "being served" in log.read_text(), 60)
        yield process, log


def test_a_run_stays_scheduled_or_late(at: Server, tmp_path: Path, compare: Compare) -> None:
    at.ask("POST", "/work_pools/", name="pool", type="process", is_paused=True)
    at.ask("PATCH", f"/deployments/{at.deploy('pooled/d')}", work_pool_name="pool")
    at.deploy("waiting/d")
    pooled, unserved = at.trigger("pooled/d"), at.trigger("waiting/d")

    def offered() -> list[str]:
        found = at.ask("POST", "/work_pools/pool/get_scheduled_flow_runs")
        return [each["flow_run"]["id"] for each in found]

    late = [at.wait_for(each, "Late") for each in (pooled, unserved)]
    assert offered() == []
    at.ask("PATCH", "/work_pools/pool", is_paused=False)
    assert offered() == [pooled]
    with serve(at, tmp_path, "waiting"):
        served = at.wait_for(unserved, *ENDS)
        seen = {"nothing": (late[1], served), "pool": (late[0], "offered to a worker")}
        runs = [at.trigger("waiting/d", seconds=6) for _ in "12"]
        wait_until("one runs", lambda: "Running" in map(at.state, runs))
        (queued,) = [each for each in runs if at.state(each) != "Running"]
        seen["limit"] = (at.wait_for(queued, "Late", "Running"), at.wait_for(queued, *ENDS))
    compare("waiting", seen)


def test_a_run_stays_running_or_submitting(at: Server, tmp_path: Path, compare: Compare) -> None:
    with serve(at, tmp_path, "killed", ("limit=1", "limit=2")) as (process, _):
        runs = []
        for state in ("Running", "Submitting"):
            runs.append(at.trigger("killed/d", seconds=600))
            at.wait_for(runs[-1], state)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def states() -> tuple[str, ...]:
        found = at.ask("POST", "/flow_runs/filter", flow_runs={"id": {"any_": runs}})
        names = {each["id"]: each["state_name"] for each in found}
        return tuple(names.get(each, "gone") for each in runs)

    def after(command: str) -> tuple[str, ...]:
        for each in runs:
            run("-m", "prefect", "flow-run", command, each, PREFECT_API_URL=at.api_url)
        return states()

    seen = {"SIGKILL": states(), "prefect flow-run cancel": after("cancel")}
    for each in runs:
        at.ask("POST", f"/flow_runs/{each}/set_state", state={"type": "CRASHED"}, force=True)
    seen["set_flow_run_state"] = states()
    compare("killed", seen | {"prefect flow-run delete": after("delete")})


def test_an_edit_is_not_seen_by_the_serving_process(
    at: Server, tmp_path: Path, compare: Compare
) -> None:
    def outcome() -> tuple[str, str]:
        found = read_ended(UUID(at.trigger("edited/d")), 120)
        own = [it.message for it in found.logs if "helper" in it.message]
        return found.state, ", ".join(own) or "nothing"

    with serve(at, tmp_path, "edited"):
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


def test_a_schedule_is_off_after_a_restart(at: Server, tmp_path: Path, compare: Compare) -> None:
    def schedule() -> tuple[bool, int]:
        found = at.deployment("restarted/d")
        return found["paused"], len(found["schedules"])

    forgets = ("interval=3600, ", "")
    stays = ("limit=1", "limit=1, pause_on_shutdown=False")
    with serve(at, tmp_path, "restarted") as (old, _), serve(at, tmp_path, "restarted"):
        wait_until("it polls", lambda: at.deployment("restarted/d")["status"] == "READY")
        seen = {"old new": schedule()}
        end(old)
        seen["old"] = schedule()
    with serve(at, tmp_path, "restarted", stays):
        seen["restart"] = schedule()
    seen["pause_on_shutdown=False"] = schedule()
    with serve(at, tmp_path, "restarted", forgets):
        seen["interval"] = schedule()
    compare("schedule", seen)


def test_two_processes_serve_one_name(at: Server, tmp_path: Path, compare: Compare) -> None:
    other = tmp_path / "other"
    other.mkdir()
    seen: set[str] = set()
    with serve(at, tmp_path, "twice"), serve(at, other, "twice", ("old flow", "new flow")):
        deadline = time.monotonic() + 120
        while len(seen) < 2 and time.monotonic() < deadline:
            runs = [at.trigger("twice/d") for _ in range(4)]
            for each in runs:
                logs = read_ended(UUID(each), 120).logs
                seen |= {it.message.split(",")[0] for it in logs if "helper" in it.message}
    compare("twice", {"old new": " or ".join(sorted(seen, reverse=True))})


def test_a_parameter_is_accepted_and_the_run_crashes(
    at: Server, tmp_path: Path, compare: Compare
) -> None:
    seen = {}
    with serve(at, tmp_path, "accepted") as (_, log):
        for words in ("secnds=1", "day=03.02.2026"):
            before = len(log.read_text())
            parameters = dict([words.split("=")])
            found = read_ended(UUID(at.trigger("accepted/d", **parameters)), 120)

            def errors(before: int = before) -> list[str]:
                return re.findall(r"(\w+Error): ", log.read_text()[before:])

            error = wait_until("the process has logged the error", errors)[-1]
            logs = [it for it in found.logs if error in it.message]
            seen[words] = (found.state, f"`{error}`", len(logs))
    compare("wrong-parameters", seen)


def test_503_and_database_is_locked(at: Server, compare: Compare) -> None:
    url = f"{at.api_url}/deployments/{at.deploy('locked/d')}/create_flow_run"

    def post() -> int:
        return requests.post(url, json={"idempotency_key": "k"}, timeout=100).status_code

    writer = sqlite3.connect(at.home / "prefect.db", timeout=60, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    seen = {"locked": post()}
    writer.execute("ROLLBACK")
    writer.close()
    assert "database is locked" in (at.home / "server.log").read_text(encoding="utf-8")
    for key in ("free", "again"):
        seen[key] = wait_until("it is accepted", lambda: (code := post()) != 503 and code)
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
    at: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: Compare
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", at.api_url)
    keys = table_keys("notebook")
    v4: Any = nbformat.v4
    book = v4.new_notebook(cells=[v4.new_code_cell(it) for it in [FIRST_CELL, *keys]])
    options: dict[str, Any] = {"kernel_name": "python3", "allow_errors": True, "timeout": 200}
    NotebookClient(book, resources={"metadata": {"path": str(tmp_path)}}, **options).execute()
    seen = map(cell_outcome, book.cells[1:])
    compare("notebook", dict(zip(keys, seen, strict=True)))
