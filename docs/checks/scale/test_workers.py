"""A team's server on PostgreSQL, its workers, and what becomes of the runs of a killed one.

pytest docs/checks/scale/test_workers.py --write changed writes their tables of README.md.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from itertools import count
from typing import Any

import psutil
import pytest
import requests
from clone import Clone, block, make_clone, needs_postgres, postgres
from machinery import Server
from recorded import wait_until

pytestmark = [pytest.mark.timeout(900, func_only=True), needs_postgres]

Compare = Callable[..., None]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """Return a client of a server that was started as the page says, with lesson 09 deployed."""
    clone = make_clone(tmp_path_factory.mktemp("team"), 1)
    at = Server(clone.folder)
    with ExitStack() as stack:
        database, port = stack.enter_context(postgres()), ("4200", str(at.port))
        free = (("0.0.0.0", "127.0.0.1"), port, (":5432/", f":{database}/"))
        stack.enter_context(clone.terminal(block("prefect server start", *free), "Check out"))
        wait_until("the team's server answers", at.is_up, 300)
        commands = block("prefect work-pool ls", port)
        clone.run(commands)
        clone.exported = dict(re.findall(r'export (\w+)="(.+)"', commands))
        clone.run(block("work-pool create"))
        yield clone


@pytest.fixture
def at(team: Clone) -> Iterator[Server]:
    """Return the team's server; all automations are deleted in the end."""
    login = {"PREFECT_SERVER_API_AUTH_STRING": team.exported["PREFECT_API_AUTH_STRING"]}
    port = team.exported["PREFECT_API_URL"].split(":")[2].removesuffix("/api")
    server = Server(team.folder, login, int(port))
    yield server
    forget_automations(server)


def automations(at: Server) -> list[Any]:
    return list(at.ask("POST", "/automations/filter"))


def forget_automations(at: Server) -> None:
    for automation in automations(at):
        at.ask("DELETE", f"/automations/{automation['id']}")


def rescue(team: Clone, at: Server, silent_seconds: int) -> None:
    """Create the page's automations, with another time of silence, by running the program twice."""
    line = f"SILENT_SECONDS = {silent_seconds}"
    team.change("docs/growing/rescue_runs.py", r"^SILENT_SECONDS = \d+", line)
    for _ in range(2):
        team.run(block("rescue_runs.py"))
    assert len(automations(at)) == 2, "rescue_runs.py does not replace its automations"


def states(at: Server, flow_run_id: str) -> list[Any]:
    """Return all states of the flow run, but not `Late`, which depends on the machine's speed."""
    found = at.ask("GET", f"/flow_run_states/?flow_run_id={flow_run_id}")
    return [state for state in found if state["name"] != "Late"]


def set_state(at: Server, flow_run_id: str, name: str, force: bool = True) -> str:
    """Ask the server to change the flow run's state; return its answer."""
    kind = {"AwaitingRetry": "SCHEDULED"}.get(name, name.upper())
    body = {"state": {"type": kind, "name": name}, "force": force}
    return str(at.ask("POST", f"/flow_runs/{flow_run_id}/set_state", **body)["status"])


def set_seconds(team: Clone, seconds: int) -> None:
    """Make all runs of lesson 09 that start from now on take so long."""
    team.change("09_user_flow.py", r"^USER_SECONDS = \d+", f"USER_SECONDS = {seconds}")


def test_the_runs_of_a_killed_worker_are_restarted_by_another_one(
    team: Clone, at: Server, compare: Compare
) -> None:
    with team.terminal(block("--name worker-1"), "started!") as worker:
        ordinary = team.run(block("user_id=102 --wait"))[0].strip()
        first, *_, last = (datetime.fromisoformat(it["timestamp"]) for it in states(at, ordinary))
        # Silence has to be longer than an ordinary run, on this machine and today.
        rescue(team, at, 5 + 2 * round((last - first).total_seconds()))
        set_seconds(team, 600)
        lost = {}
        for was, names in {  # --limit 2
            "Running": ["Running"],
            "Pending": ["Pending", "Submitting"],
            "Scheduled": ["Scheduled"],
        }.items():
            lost[was] = at.trigger()
            at.wait_for(lost[was], *names)
        processes = [worker, *worker.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, 10)
    seen = {}
    for was, flow_run_id in lost.items():
        seen[f"machine {was}"] = states(at, flow_run_id)[-1]["type"].capitalize()
    compare("killed worker", seen, whole=False)
    for was in ("Running", "Pending"):
        at.wait_for(lost[was], "AwaitingRetry")
    forget_automations(at)  # a slow start of the second worker is no silence

    set_seconds(team, 1)
    with team.terminal(block("--name worker-2", (" --limit 2", "")), "started!"):
        for flow_run_id in lost.values():
            at.wait_for(flow_run_id, "Completed")
    ours = {"No heartbeat", "The worker died"}  # the messages that the automations give
    history = states(at, lost["Running"])
    rows = [(it["name"], it["message"] if it["message"] in ours else "") for it in history]
    compare("rescued run", dict(zip(map(str, count(1)), rows, strict=False)))


def test_a_worker_keeps_its_limit_and_when_it_dies_alone_its_runs_crash(
    team: Clone, at: Server, compare: Compare
) -> None:
    set_seconds(team, 20)  # the first one must not end before the second one runs
    with team.terminal(block("--name worker-3"), "started!") as worker:
        first, second, third = (at.trigger() for _ in range(3))
        running = [at.wait_for(it, "Running") for it in (first, second)]
        waiting, runs = states(at, third)[-1]["name"], worker.children(recursive=True)
        worker.kill()
        ended = at.wait_for(second, "Crashed", "Completed")
        psutil.wait_procs(runs, 20)
    compare("killed worker", {"process Running": ended}, whole=False)
    compare("workers", {"the first two": running[1], "the third": waiting})


def test_a_crashed_run_is_restarted_twice_and_a_finished_one_must_not_be(
    team: Clone, at: Server, compare: Compare
) -> None:
    rescue(team, at, 90)
    stubborn, other = at.trigger(), at.trigger()
    seen = {}
    for time in ("first", "second", "third"):
        set_state(at, stubborn, "Running")
        set_state(at, stubborn, "Crashed")
        if time == "third":  # a later crash is handled, so this one has been, too
            set_state(at, other, "Crashed")
        at.wait_for(other if time == "third" else stubborn, "AwaitingRetry")
        seen[f"for the {time} time"] = at.state(stubborn)
    compare("crashes", seen)
    set_state(at, other, "Completed")
    changes = ("Crashed", "AwaitingRetry")
    compare("changes of a state", {it: set_state(at, other, it, force=False) for it in changes})


def test_eight_threads_lose_no_plain_post_on_postgresql(team: Clone, at: Server) -> None:
    url = f"{at.api_url}/deployments/{at.deployment()['id']}/create_flow_run"
    user, password = team.exported["PREFECT_API_AUTH_STRING"].split(":")

    def post(_: int) -> int:
        return requests.post(url, json={}, auth=(user, password), timeout=60).status_code

    with ThreadPoolExecutor(8) as threads:
        codes = {*threads.map(post, range(40))}
    assert codes == {201}, f"PostgreSQL lost triggers: it returned {codes}"
