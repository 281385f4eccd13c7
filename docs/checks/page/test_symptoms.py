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

import pytest
import requests
from machinery import Server, background, end, run, server
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed
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


@pytest.fixture(scope="session", autouse=True)
def harness() -> None:
    """Take the place of the harness: these checks have a server of their own."""


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
    url = PREFECT_API_URL.value() or ""
    with background(folder / "flows.py", cwd=folder, log=log, PREFECT_API_URL=url) as process:
        wait_until("it serves", lambda: "being served" in log.read_text(), 60)
        yield process, log


def deployment(name: str) -> Any:
    """Return the server's record of NAME/d."""
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(f"{name}/d")


def deploy(name: str, **options: Any) -> None:
    """Create the deployment NAME/d, which nothing serves."""
    with get_client(sync_client=True) as client:
        client.create_deployment(client.create_flow_from_name(name), "d", **options)


def trigger(name: str, **parameters: Any) -> UUID:
    """Ask for a run of NAME/d, and return its id."""
    with get_client(sync_client=True) as client:
        made = client.create_flow_run_from_deployment(deployment(name).id, parameters=parameters)
    return made.id


def state(flow_run_id: UUID) -> str:
    """Return the name of the run's state, or `gone` if the server has no such run."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_flow_run(flow_run_id).state_name or ""
        except ObjectNotFound:
            return "gone"


def becomes(flow_run_id: UUID, *names: str) -> str:
    """Wait until the run is in one of these states, and return which."""
    wait_until(f"the run is {' or '.join(names)}", lambda: state(flow_run_id) in names, 120)
    return state(flow_run_id)


def ended(flow_run_id: UUID) -> str:
    """Wait until the run has ended, and return its state."""
    return becomes(flow_run_id, "Completed", "Failed", "Crashed", "Cancelled")


def test_a_run_stays_scheduled_or_late(tmp_path: Path, compare: Compare) -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="pool", type="process", is_paused=True))
        deploy("pooled", work_pool_name="pool")
        pooled = trigger("pooled")

        def offered() -> list[UUID]:
            found = client.get_scheduled_flow_runs_for_work_pool("pool")
            return [each.flow_run.id for each in found]

        deploy("waiting")
        unserved = trigger("waiting")
        seen: dict[str, Any] = {"nothing": (becomes(unserved, "Late"),)}
        seen["pool"] = (becomes(pooled, "Late"),)
        assert offered() == []
        client.update_work_pool("pool", WorkPoolUpdate(is_paused=False))
        seen["pool"] += ("offered to a worker" if offered() == [pooled] else "not offered",)
    with serve(tmp_path, "waiting"):
        seen["nothing"] += (ended(unserved),)
        runs = [trigger("waiting", seconds=6) for _ in "12"]
        wait_until("one of them runs", lambda: any(state(each) == "Running" for each in runs))
        (queued,) = [each for each in runs if state(each) != "Running"]
        seen["limit"] = (becomes(queued, "Late", "Running"), ended(queued))
    compare("waiting", seen)


def test_a_run_stays_running_or_submitting(api_url: str, tmp_path: Path, compare: Compare) -> None:
    with serve(tmp_path, "killed", ("limit=1", "limit=2")) as (process, _):
        running = trigger("killed", seconds=600)
        becomes(running, "Running")
        starting = trigger("killed", seconds=600)
        becomes(starting, "Submitting")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    runs = (running, starting)
    seen = {"SIGKILL": tuple(map(state, runs))}
    for command in ("cancel", "delete"):
        if command == "delete":
            with get_client(sync_client=True) as client:
                for each in runs:
                    client.set_flow_run_state(each, Crashed(), force=True)
            seen["set_flow_run_state"] = tuple(map(state, runs))
        for each in runs:
            run("-m", "prefect", "flow-run", command, str(each), PREFECT_API_URL=api_url)
        seen[f"prefect flow-run {command}"] = tuple(map(state, runs))
    compare("killed", seen)


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

            def logged(before: int = before) -> list[str]:
                return re.findall(r"exceptions\.(\w+Error)", log.read_text()[before:])

            # The process logs it after the run has ended.
            error = wait_until("the error is logged", logged)[-1]
            logs = [it for it in found.logs if error in it.message]
            seen[words] = (found.state, f"`{error}`", len(logs))
    compare("wrong-parameters", seen)


def test_503_and_database_is_locked(own_server: Server, api_url: str, compare: Compare) -> None:
    deploy("locked")
    create = f"{api_url}/deployments/{deployment('locked').id}/create_flow_run"

    def post() -> int:
        return requests.post(create, json={"idempotency_key": "k"}, timeout=100).status_code

    writer = sqlite3.connect(own_server.home / "prefect.db", timeout=60, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    seen = {"locked": post()}
    writer.execute("ROLLBACK")
    writer.close()
    assert "database is locked" in (own_server.home / "server.log").read_text(encoding="utf-8")
    seen["free"] = wait_until("it is accepted", lambda: (code := post()) != 503 and code)
    seen["again"] = wait_until("it is known", lambda: (code := post()) != 503 and code)
    compare("locked", seen)
