"""A team's server on PostgreSQL, its workers, and what happens when one of them is killed."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import requests
from growing_place import (
    Folder,
    Postgres,
    changed,
    make_folder,
    postgres,
    postgres_programs,
    python_blocks,
    shell,
)
from support import Api, free_port, kill, parse_time, script_path, wait_until

LOGIN = ("admin", "server-password")


@dataclass
class TeamApi(Api):
    """The API of a team's server."""

    def states(self, flow_run_id: str) -> list[dict[str, Any]]:
        """Return all states of the flow run."""
        states = self.get("/flow_run_states/", flow_run_id=flow_run_id)
        return list(states)

    def last(self, flow_run_id: str) -> str:
        """Return the name of the last state of the flow run."""
        return self.flow_run(flow_run_id).state

    def wait_for(self, flow_run_id: str, state: str, seconds: float) -> None:
        """Return when the last state of the flow run is this one."""
        try:
            wait_until(state, lambda: self.last(flow_run_id) == state, seconds)
        except AssertionError:
            told = "\n".join(
                f"{one['timestamp']} {one['name']}: {one['message']}"
                for one in self.states(flow_run_id)
            )
            raise AssertionError(
                f"flow run {flow_run_id} is not {state} after {seconds} s, but:\n{told}"
            ) from None

    def forget_automations(self) -> None:
        """Delete all automations."""
        for automation in self.post("/automations/filter", {}):
            self.delete(f"/automations/{automation['id']}")


@dataclass
class Team:
    """A server for a team, on PostgreSQL if it is installed, and a client's folder."""

    api: TeamApi
    folder: Folder
    postgres: Postgres | None


@contextmanager
def run_team(path: Path) -> Iterator[Team]:
    """Run the server as the page says; one on SQLite where PostgreSQL is not installed."""
    port = free_port()
    client = make_folder(path, python_blocks(), 2)
    start = shell("server", ("--host 0.0.0.0", "--host 127.0.0.1"), ("4200", str(port)))
    programs = postgres_programs()
    database = None
    with ExitStack() as stack:
        if programs:
            database = stack.enter_context(postgres(programs))
            start = changed(start, (":5432/", f":{database.port}/"))
            words = client.command(shell("database"))
            assert words[:4] == ["sudo", "-u", "postgres", "psql"], words
            database.psql(*words[4:])
        else:
            start = re.sub(r"(?m)^export PREFECT_SERVER_DATABASE.*\n", "", start)
        serving = Folder(path, {**client.environment}, client.logs)
        # Silent runs are looked for more often than every 5 s.
        serving.environment["PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY"] = "PT1S"
        serving.environment["PREFECT_API_BLOCKS_REGISTER_ON_START"] = "false"  # nothing uses them
        process, log = stack.enter_context(serving.terminal(start))
        team = Team(TeamApi(f"http://127.0.0.1:{port}/api", LOGIN), client, database)

        def is_up() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return requests.get(f"{team.api.url}/health", timeout=5).ok
            except requests.RequestException:
                return False

        wait_until("the team's server answers", is_up, 60)
        for line in client.lines(shell("client", ("4200", str(port))))[:-1]:
            assert not line, f"only the last line of the client's block is a command: {line}"
        yield team


@dataclass
class Story:
    """What happened to the runs of a worker that was killed."""

    states: dict[str, list[dict[str, Any]]]
    output: str
    refused: str
    accepted: str


@contextmanager
def worker(team: Team, name: str) -> Iterator[psutil.Process]:
    """Run the worker of this block; leave none of its runs behind."""
    with team.folder.terminal(shell(name)) as (process, log):
        wait_until(f"{name} has started", lambda: "started!" in log.read_text(), 30)
        family = psutil.Process(process.pid)
        try:
            yield family
        finally:
            if process.poll() is None:
                kill(family)


def set_seconds(folder: Folder, seconds: int) -> None:
    """Make all runs of `user_flow` that start from now on take so long."""
    path = folder.path / script_path("09").name
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"(USER_SECONDS =) \d+", rf"\1 {seconds}", text), encoding="utf-8")


def play(team: Team) -> Story:
    """Kill a worker with one run running and one pending, and let another worker come."""
    api, folder = team.api, team.folder
    folder.run(shell("deploy"))
    deployment = api.get("/deployments/name/user-flow/user-deployment")["id"]
    with worker(team, "worker 1") as first:
        result = folder.run(shell("trigger"))
        ordinary = result.stdout.strip()
        times = [parse_time(state["timestamp"]) for state in api.states(ordinary)]
        # Silence is longer than an ordinary run, on this machine and today.
        silent = min(60, 3 + round(1.5 * (times[-1] - times[0]).total_seconds()))
        block = python_blocks()["rescue_runs.py"]
        block = changed(block, ("SILENT_SECONDS = 90", f"SILENT_SECONDS = {silent}"))
        (folder.path / "rescue_runs.py").write_text(block)
        folder.run(shell("rescue"))
        set_seconds(folder, 300)  # this one is not to end before its worker does
        running = api.trigger(deployment)
        wait_until("the run is running", lambda: api.last(running) == "Running", 60)
        pending = api.trigger(deployment)
        wait_until("a run is pending", lambda: api.last(pending) in ("Pending", "Submitting"))
        kill(first)
        set_seconds(folder, 2)
        waiting = api.trigger(deployment)
    for run in (running, pending):
        api.wait_for(run, "AwaitingRetry", silent + 30)
    # So slow a start of the second worker's runs that it looks like silence changes nothing.
    api.forget_automations()
    with worker(team, "worker 2"):
        runs = {"running": running, "pending": pending, "waiting": waiting, "ordinary": ordinary}
        for run in runs.values():
            api.wait_for(run, "Completed", 90)
        states = {name: api.states(run) for name, run in runs.items()}
    answers = [
        api.post(f"/flow_runs/{ordinary}/set_state", {"state": {"type": kind, "name": name}})
        for kind, name in (("CRASHED", "Crashed"), ("SCHEDULED", "AwaitingRetry"))
    ]
    return Story(states, result.stderr, answers[0]["status"], answers[1]["status"])
