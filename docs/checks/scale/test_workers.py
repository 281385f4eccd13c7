"""A team's server on PostgreSQL, its workers, and what becomes of the runs of a killed one.

pytest docs/checks/scale/test_workers.py --write changed writes their tables of README.md.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psutil
import pytest
import requests
from clone import Clone, block, make_clone, needs_postgres, postgres
from machinery import Server
from pages import Compare
from recorded import wait_until

pytestmark = [pytest.mark.timeout(900, func_only=True), needs_postgres]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Return a clone of somebody in the team."""
    return make_clone(tmp_path_factory.mktemp("team"), 1)


@pytest.fixture(scope="module")
def at(clone: Clone) -> Iterator[Server]:
    """Start the team's server as the page says; the clone uses it, and has deployed lesson 09."""
    running = Server(clone.folder)
    port = ("4200", str(running.port))
    with postgres() as database:
        free = (("0.0.0.0", "127.0.0.1"), port, (":5432/", f":{database}/"))
        with clone.terminal(block("prefect server start", *free), "Check out"):
            wait_until("the team's server answers", running.is_up, 300)
            commands = block("prefect work-pool ls", port)
            clone.run(commands)
            clone.exported = dict(re.findall(r'export (\w+)="(.+)"', commands))
            password = clone.exported["PREFECT_API_AUTH_STRING"]
            running.settings["PREFECT_SERVER_API_AUTH_STRING"] = password
            clone.run(block("work-pool create"))
            refused = requests.post(f"{running.api_url}/flows/filter", timeout=60)
            assert refused.status_code == 401, "the server has no password"
            ui_settings = requests.get(f"{running.site}/ui-settings", timeout=60).json()
            assert ui_settings["api_url"] == running.api_url, "the UI asks another server"
            yield running


def rescue(clone: Clone, at: Server, silent_seconds: int) -> None:
    """Create the page's automations, with another time of silence, instead of earlier ones."""
    line = f"SILENT_SECONDS = {silent_seconds}"
    clone.change("docs/growing/rescue_runs.py", r"^SILENT_SECONDS = \d+", line)
    clone.run(block("rescue_runs.py"))
    created = at.ask("POST", "/automations/filter")
    assert len(created) == 2, "rescue_runs.py does not replace its automations"


def history(at: Server, flow_run_id: str) -> list[Any]:
    """Return all states of the flow run, but not `Late`, which depends on the machine's speed."""
    found = at.ask("GET", f"/flow_run_states/?flow_run_id={flow_run_id}")
    return [state for state in found if state["name"] != "Late"]


def set_state(at: Server, flow_run_id: str, name: str, force: bool = True) -> str:
    """Ask the server to change the flow run's state; return its answer."""
    kind = {"AwaitingRetry": "SCHEDULED"}.get(name, name.upper())
    body = {"state": {"type": kind, "name": name}, "force": force}
    return str(at.ask("POST", f"/flow_runs/{flow_run_id}/set_state", **body)["status"])


def set_seconds(clone: Clone, seconds: int) -> None:
    """Make all runs of lesson 09 that start from now on take so long."""
    clone.change("09_user_flow.py", r"^USER_SECONDS = \d+", f"USER_SECONDS = {seconds}")


# The first test: it needs a server without automations.
def test_a_worker_keeps_its_limit_and_when_it_dies_alone_its_runs_crash(
    clone: Clone, at: Server, compare: Compare
) -> None:
    set_seconds(clone, 20)  # the first one must not end before the second one runs
    with clone.terminal(block("--name worker-2"), "started!") as worker:
        first, second, third = (at.trigger() for _ in range(3))
        running = [at.wait_for(it, "Running") for it in (first, second)]
        waiting, runs = history(at, third)[-1]["name"], worker.children(recursive=True)
        worker.kill()
        ended = [at.wait_for(it, "Crashed", "Completed") for it in (first, second)]
        psutil.wait_procs(runs, 20)
        ended.append(history(at, third)[-1]["name"])
    set_seconds(clone, 1)
    with clone.terminal(block("--name worker-1"), "started!"):
        at.wait_for(third, "Completed")
    last = [at.state(it) for it in (first, second, third)]
    names = ["the first", "the second", "the third"]
    rows = zip(names, [*running, waiting], ended, last, strict=True)
    head = ["three flow runs, and a worker with `--limit 2`", "state"]
    head += ["after the worker is killed", "after another worker has started"]
    compare("workers", head, rows)


def test_the_runs_of_a_dead_machine_are_restarted_by_another_worker(
    clone: Clone, at: Server, compare: Compare
) -> None:
    set_seconds(clone, 1)
    with clone.terminal(block("--name worker-1"), "started!") as worker:
        ordinary = clone.run(block("user_id=102 --wait"))[0].strip()
        times = [datetime.fromisoformat(it["timestamp"]) for it in history(at, ordinary)]
        # Silence has to be longer than an ordinary run, on this machine and today.
        rescue(clone, at, 5 + 2 * round((times[-1] - times[0]).total_seconds()))
        set_seconds(clone, 600)
        lost = {}
        for was in ("Running", "Pending", "Scheduled"):  # --limit 2
            lost[was] = at.trigger()
            at.wait_for(lost[was], was, was.replace("Pending", "Submitting"))
        processes = [worker, *worker.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, 10)
    rows = [(was, history(at, it)[-1]["type"].capitalize()) for was, it in lost.items()]
    compare("killed worker", ["a flow run that was", "is, after its machine died"], rows)
    for was in ("Running", "Pending"):
        at.wait_for(lost[was], "AwaitingRetry")
    rescue(clone, at, 600)  # a slow start of the second worker is no silence

    set_seconds(clone, 1)
    with clone.terminal(block("--name worker-3", (" --limit 2", "")), "started!"):
        for flow_run_id in lost.values():
            at.wait_for(flow_run_id, "Completed")
    ours = {"No heartbeat", "The worker died"}  # the messages that the automations give
    states = enumerate(history(at, lost["Running"]), start=1)
    rescued = [
        (number, it["name"], it["message"] if it["message"] in ours else "")
        for number, it in states
    ]
    compare("rescued run", ["", "state", "message"], rescued)


def test_a_crashed_run_is_restarted_twice_and_a_finished_one_must_not_be(
    clone: Clone, at: Server, compare: Compare
) -> None:
    rescue(clone, at, 600)
    stubborn, other = at.trigger(), at.trigger()
    rows = []
    for time in ("first", "second", "third"):
        set_state(at, stubborn, "Running")
        set_state(at, stubborn, "Crashed")
        if time == "third":  # a later crash is handled, so this one has been, too
            set_state(at, other, "Crashed")
        at.wait_for(other if time == "third" else stubborn, "AwaitingRetry")
        rows.append((f"for the {time} time", at.state(stubborn)))
    compare("crashes", ["the flow run crashes", "and is then"], rows)
    set_state(at, other, "Completed")
    answers = [(it, set_state(at, other, it, force=False)) for it in ("Crashed", "AwaitingRetry")]
    head = ["a flow run that is Completed is changed to", "the server's answer"]
    compare("changes of a state", head, answers)
