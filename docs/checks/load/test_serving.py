"""Serving: its symptoms in docs/troubleshooting.md, and how it ends in docs/reference.md.

pytest docs/checks/load/test_serving.py --write changed writes their tables.
"""

import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import nbformat
import psutil
import pytest
import requests
from machinery import ENDS, Server, end, replace_each, run, server, serving
from nbclient import NotebookClient
from pages import Compare
from prefect import get_client
from prefect.states import Crashed
from recorded import read_ended, wait_until

pytestmark = pytest.mark.timeout(600)  # most of it is waiting, on a busy machine

SERVE = "served.serve(sys.argv[1], interval=3600, limit=1)"
SERVED = f"""
import datetime, sys, time
import helper
from prefect import flow, get_run_logger, serve

@flow
def served(seconds: float = 0, day: datetime.date = datetime.date(2026, 2, 3)):
    get_run_logger().info("old flow, %s helper", helper.VERSION)
    time.sleep(seconds)

if __name__ == "__main__":
    {SERVE}
"""
ENDINGS: dict[str, tuple[signal.Signals, Callable[[int, int], None]]] = {
    "Ctrl-C: `SIGINT` to the group": (signal.SIGINT, os.killpg),
    "recommended: `SIGINT` to the process": (signal.SIGINT, os.kill),
    "service managers and containers: `SIGTERM` to the process": (signal.SIGTERM, os.kill),
    "`SIGTERM` to the group": (signal.SIGTERM, os.killpg),
    "`SIGKILL` to the process": (signal.SIGKILL, os.kill),
    "power cut: `SIGKILL` to the group": (signal.SIGKILL, os.killpg),
}
FIRST_CELL = """
import asyncio
from prefect import flow, task

@flow
def hello():
    return "Hello"

@flow
async def hello_async():
    return "Hello"

@flow
def map_a_task():
    return task(lambda number: 2 * number).map([1, 2]).result()
"""
CELLS = ["hello()", "map_a_task()", "await hello_async()", "asyncio.run(hello_async())"]
CELLS.append('hello.serve("d")')


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """Run a server that calls a run Late after a second."""
    late = "PREFECT_SERVER_SERVICES_LATE_RUNS"
    with server(**{f"{late}_AFTER_SECONDS": "1", f"{late}_LOOP_SECONDS": "1"}) as running:
        yield running


@contextmanager
def serve(
    at: Server, folder: Path, names: str, *changes: tuple[str, str], **settings: Any
) -> Iterator[tuple[Any, Path]]:
    """Serve SERVED, with these changes, under these names; yield the process and its log."""
    folder.mkdir(exist_ok=True)
    (folder / "flows.py").write_text(replace_each(SERVED, *changes))
    (folder / "helper.py").write_text('VERSION = "old"')
    flows, log, words = folder / "flows.py", folder / f"{time.monotonic_ns()}.log", names.split()
    with serving(at, flows, log, f"served/{words[0]}", words, cwd=folder, **settings) as process:
        yield process, log


# --- symptoms


def test_a_run_stays_scheduled_or_late(at: Server, tmp_path: Path, compare: Compare) -> None:
    at.ask("POST", "/work_pools/", name="pool", type="process", is_paused=True)
    at.ask("PATCH", f"/deployments/{at.deploy('served/pooled')}", work_pool_name="pool")
    at.deploy("served/waiting")
    pooled, unserved = at.trigger("served/pooled"), at.trigger("served/waiting")

    def offered() -> list[str]:
        found = at.ask("POST", "/work_pools/pool/get_scheduled_flow_runs")
        return [each["flow_run"]["id"] for each in found]

    late = [at.wait_for(each, "Late") for each in (pooled, unserved)]
    assert offered() == []
    at.ask("PATCH", "/work_pools/pool", is_paused=False)
    assert offered() == [pooled]
    with serve(at, tmp_path, "waiting"):
        served = at.wait_for(unserved, *ENDS)
        at.ask("POST", f"/deployments/{at.deployment('served/waiting')['id']}/pause_deployment")
        runs = [at.trigger("served/waiting", seconds=6) for _ in "12"]
        wait_until("one runs", lambda: "Running" in map(at.state, runs))
        (queued,) = [each for each in runs if at.state(each) != "Running"]
        limited = (at.wait_for(queued, "Late", "Running"), at.wait_for(queued, *ENDS))
        unaffected = at.wait_for(runs[0], *ENDS)
    rows = [
        ("nothing serves the deployment; then it is served", late[1], served),
        ("its work pool is paused; then it is resumed", late[0], "offered to a worker"),
        ("the `limit` is reached; then the other run ends", *limited),
        ("not a reason: its deployment is paused, and so is its schedule", "", unaffected),
    ]
    compare("waiting", ("Reason", "State after Scheduled", "Afterwards"), rows)


def test_a_run_stays_running_or_submitting(at: Server, tmp_path: Path, compare: Compare) -> None:
    with serve(at, tmp_path, "killed", ("limit=1", "limit=2")) as (process, _):
        runs = []
        for state in ("Running", "Submitting"):
            runs.append(at.trigger("served/killed", seconds=600))
            at.wait_for(runs[-1], state)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def states() -> list[str]:
        found = at.ask("POST", "/flow_runs/filter", flow_runs={"id": {"any_": runs}})
        names = {each["id"]: each["state_name"] for each in found}
        return [names.get(each, "gone") for each in runs]

    def after(command: str) -> list[str]:
        for each in runs:
            run("-m", "prefect", "flow-run", command, each, PREFECT_API_URL=at.api_url)
        return [f"`prefect flow-run {command}`", *states()]

    rows = [["`SIGKILL` to the process group", *states()], after("cancel")]
    with get_client(sync_client=True) as client:
        for each in runs:
            client.set_flow_run_state(UUID(each), Crashed(), force=True)
    rows += [["`set_flow_run_state` of Prefect's client", *states()], after("delete")]
    compare("killed", ("What was done", "Run that was running", "Run that was starting"), rows)


def test_an_edit_is_not_seen_by_the_serving_process(
    at: Server, tmp_path: Path, compare: Compare
) -> None:
    def outcome(label: str) -> tuple[str, str, str]:
        found = read_ended(UUID(at.trigger("served/edited")), 120)
        logged = [it.message for it in found.logs if "helper" in it.message]
        return label, found.state, ", ".join(logged) or "nothing"

    with serve(at, tmp_path, "edited"):
        flows, helper = tmp_path / "flows.py", tmp_path / "helper.py"
        flows.write_text(flows.read_text().replace("old flow", "new flow"))
        rows = [outcome("the flow in `flows.py` is edited")]
        helper.write_text('VERSION = "new"')
        rows.append(outcome("a module that it imports, `helper.py`, is edited, too"))
        helper.unlink()
        rows.append(outcome("`helper.py` is missing"))
        flows.write_text("no Python")
        rows.append(outcome("`flows.py` is not valid Python"))
    compare("edits", ("What changed while it served", "State of a run", "What it logged"), rows)


def test_old_and_new_processes_serve_one_name(at: Server, tmp_path: Path, compare: Compare) -> None:
    def schedule(label: str) -> tuple[str, bool, int]:
        found = at.deployment("served/again")
        return label, found["paused"], len(found["schedules"])

    stays = ("limit=1", "limit=1, pause_on_shutdown=False")
    new_flow = ("old flow", "new flow")
    ran: set[str] = set()
    with (
        serve(at, tmp_path / "old", "again") as (old, _),
        serve(at, tmp_path / "new", "again", new_flow),
    ):
        rows = [schedule("the old process serves, and a new one, too")]
        for each in [at.trigger("served/again", seconds=3) for _ in "12"]:  # limit=1: one each
            logs = read_ended(UUID(each), 120).logs
            ran |= {it.message.split(",")[0] for it in logs if "helper" in it.message}
        end(old)
        rows.append(schedule("the old process ends"))
    with serve(at, tmp_path, "again", stays):
        rows.append(schedule("the new process is restarted"))
    rows.append(schedule("a process with `pause_on_shutdown=False` ends"))
    with serve(at, tmp_path, "again", ("interval=3600, ", "")):
        rows.append(schedule("a process without `interval` serves"))
    compare("schedule", ("What was done", "Paused", "Schedules"), rows)
    row = ("an old one and a new one", " or ".join(sorted(ran, reverse=True)))
    compare("twice", ("Processes that serve", "Flow that ran"), [row])


def test_a_parameter_is_accepted_and_the_run_crashes(
    at: Server, tmp_path: Path, compare: Compare
) -> None:
    rows = []
    with serve(at, tmp_path, "accepted") as (_, log):
        for name, value in {"secnds": "1", "day": "03.02.2026"}.items():
            before = len(log.read_text())
            found = read_ended(UUID(at.trigger("served/accepted", **{name: value})), 120)

            def errors(before: int = before) -> list[str]:
                return re.findall(r"(\w+Error): ", log.read_text()[before:])

            error = wait_until("the process has logged the error", errors)[-1]
            logs = [it for it in found.logs if error in it.message]
            rows.append((f"`{name}={value}`", found.state, f"`{error}`", len(logs)))
    head = ("Parameters", "State of the run", "Error in the terminal")
    compare("wrong-parameters", (*head, "Log records of it on the server"), rows)


def test_503_and_database_is_locked(at: Server, compare: Compare) -> None:
    url = f"{at.api_url}/deployments/{at.deploy('served/locked')}/create_flow_run"

    def post() -> int:
        return requests.post(url, json={"idempotency_key": "k"}, timeout=100).status_code

    writer = sqlite3.connect(at.home / "prefect.db", timeout=60, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    status = post()
    writer.execute("ROLLBACK")
    writer.close()
    (logged, *_) = re.findall("database is locked", (at.home / "server.log").read_text("utf-8"))
    rows = [("while another program writes to the database", status, f"`{logged}`")]
    for label in ("once the database is free", "again, with the same key"):
        rows.append((label, wait_until("it is accepted", lambda: (it := post()) != 503 and it), ""))
    compare("locked", ("POST with a key", "Status", "The server logs"), rows)


def test_cells_of_a_notebook(
    at: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: Compare
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", at.api_url)
    v4: Any = nbformat.v4
    book = v4.new_notebook(cells=[v4.new_code_cell(it) for it in [FIRST_CELL, *CELLS]])
    options: dict[str, Any] = {"kernel_name": "python3", "allow_errors": True, "timeout": 200}
    NotebookClient(book, resources={"metadata": {"path": str(tmp_path)}}, **options).execute()
    rows = []
    for cell in book.cells[1:]:
        outputs = cell.outputs
        ends = [f"{it.ename}: {it.evalue}" for it in outputs if it.output_type == "error"]
        ends += [it.data["text/plain"] for it in outputs if it.output_type == "execute_result"]
        shown = "".join(it.data["text/plain"] for it in outputs if it.output_type == "display_data")
        announced = re.findall(
            r"(?m)^Your flow '.*?' is being served", re.sub(r"\x1b\[[\d;]*m", "", shown)
        )
        rows.append((f"`{cell.source}`", f"`{ends[0].splitlines()[0]}`", "".join(announced)))
    compare("notebook", ("Cell", "What happens", "What it announces before"), rows)


# --- how serving ends


def shell_code(process: Any) -> int:
    """Wait for the process; return its exit code as a shell shows it."""
    code = int(process.wait(120))
    return code if code >= 0 else 128 - code


def test_how_it_ends_decides_about_the_runs(at: Server, tmp_path: Path, compare: Compare) -> None:
    def observe(label: str) -> tuple[str, int, str, str, str, str]:
        sent, send = ENDINGS[label]
        name = f"{sent.name}-{send.__name__}"
        with serve(at, tmp_path / name, name) as (process, log):
            runs = at.trigger(f"served/{name}", seconds=12), at.trigger(f"served/{name}")
            wait_until("one runs", lambda: "old flow" in log.read_text(), 120)
            children = process.children(recursive=True)
            send(process.pid, sent)
            code = shell_code(process)
            _, alive = psutil.wait_procs(children, 60)
            assert not alive, f"{label}: the process of the run goes on"
        schedule = "paused" if at.deployment(f"served/{name}")["paused"] else "goes on"
        queued = "waits" if at.state(runs[1]) in ("Scheduled", "Late") else at.state(runs[1])
        return name, code, schedule, queued, *runs

    with ThreadPoolExecutor(3) as pool:
        seen = list(pool.map(observe, ENDINGS))
    names = " ".join(it[0] for it in seen)
    all_of_them = "serve(*[served.to_deployment(it) for it in sys.argv[1:]], limit=3)"
    rows = []
    with serve(at, tmp_path, names, (SERVE, all_of_them)):
        for label, (_, code, schedule, queued, first, second) in zip(ENDINGS, seen, strict=True):
            then = f"{queued}, then {at.wait_for(second, *ENDS)}"
            rows.append((label, code, schedule, at.state(first), then))
    compare("endings", ("Signal", "Exit code", "Schedule", "Run in progress", "Queued run"), rows)


def test_sigterm_cancels_even_a_completed_run_whose_process_lingers(
    at: Server, tmp_path: Path, compare: Compare
) -> None:
    lingers = ("time.sleep(seconds)", "import threading; threading.Timer(8, str).start()")
    with serve(at, tmp_path, "just-completed", lingers) as (process, _):
        flow_run_id = at.trigger("served/just-completed")
        before = at.wait_for(flow_run_id, *ENDS)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    after = at.wait_for(flow_run_id, "Cancelled")
    head = ("Sent to the serving process", "State of a run whose process is still ending")
    compare("just-completed", (*head, "And then"), [("`SIGTERM`", before, after)])


def test_serving_processes_whose_server_is_down(
    at: Server, tmp_path: Path, compare: Compare
) -> None:
    """Let two of three give up at once instead of after minutes: their client retries once."""
    impatient = {"PREFECT_CLIENT_MAX_RETRIES": "1"}
    with ExitStack() as stack:

        def start(name: str, **settings: Any) -> tuple[Any, Path]:
            return stack.enter_context(serve(at, tmp_path / name, name, **settings))

        patient, _ = start("patient")
        abandoned, interrupted = start("abandoned", **impatient), start("interrupted", **impatient)
        at.stop()
        interrupted[0].send_signal(signal.SIGINT)
        ends = []
        for process, log in (abandoned, interrupted):
            code, text = shell_code(process), log.read_text(encoding="utf-8")
            failed = re.findall(r"Failed the last \d+ attempts", text)
            ends.append((f"exit code {code}", [*failed, text.splitlines()[-1][:80]][0]))
        at.start()
        ended = at.wait_for(at.trigger("served/patient"), *ENDS)
        goes_on = f"goes on, a run is {ended}" if patient.poll() is None else "ends"
    rows = [
        ("is down for less than a minute", goes_on, ""),
        ("stays down for minutes", *ends[0]),
        ("is down when the process gets `SIGINT`, which it takes long to obey", *ends[1]),
    ]
    compare("server-away", ("The server", "Serving process", "What it logs"), rows)
