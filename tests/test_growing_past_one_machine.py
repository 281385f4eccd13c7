"""The last part of LEARNINGS.md: its blocks run, and what it says of them was recorded."""

import ast
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import requests
from growing_place import (
    Folder,
    Postgres,
    make_folder,
    postgres,
    postgres_programs,
    python_blocks,
    read_part,
    shell_blocks,
)
from support import (
    ROOT,
    Api,
    FlowRun,
    TaskRun,
    free_port,
    load_afresh,
    parse_time,
    script_path,
    wait_until,
)

PAGE = ROOT / "LEARNINGS.md"
READ = 'see "Growing past one machine" in LEARNINGS.md'

# The shell blocks that the tests run, each by a text that is in no other one.
SHELL = {
    "on dask": "python on_dask.py",
    "scheduler": "dask scheduler",
    "worker": "dask worker",
    "on scheduler": "python on_scheduler.py",
    "train": "python train.py",
    "many users": "python many_users.py",
    "deploy": "python deploy_user_flow.py",
    "worker 1": "--name worker-1",
    "worker 2": "--name worker-2",
    "trigger": "user_id=102 --wait",
    "rescue": "python rescue_runs.py",
    "database": "CREATE ROLE",
    "server": "prefect server start",
    "client": "prefect work-pool ls",
    "cloud": "PREFECT_API_KEY",
}
PYTHON = {
    "on_dask.py",
    "on_scheduler.py",
    "train.py",
    "many_users.py",
    "deploy_user_flow.py",
    "rescue_runs.py",
}

LOGIN = ("admin", "server-password")
PIPELINE = {
    "user": {"user_id": 102, "name": "Alan Turing"},
    "balance": 980.0,
    "activity": [9, 8, 9, 10],
    "churn": 0.028,
}


# Clusters, workers and a database of their own: `pytest -m full` runs them.
pytestmark = pytest.mark.full


def part() -> str:
    """Return the part of the page."""
    return read_part(PAGE)


def shell(name: str, *changes: tuple[str, str]) -> str:
    """Return the shell block of this name in SHELL, with every (old, new) text replaced."""
    (block,) = [block for block in shell_blocks(part()) if SHELL[name] in block]
    return changed(block, *changes)


def changed(block: str, *changes: tuple[str, str]) -> str:
    """Return the block with every (old, new) text replaced; fail if an old one is not there."""
    for old, new in changes:
        assert old in block, f"{old!r} is not in the block:\n{block}"
        block = block.replace(old, new)
    return block


def recorded(api: Api, output: str) -> FlowRun:
    """Return the flow run whose page the output names last, once it has ended."""
    run = api.ended(re.findall(r"/runs/flow-run/([0-9a-f-]{36})", output)[-1])
    ended = "the ends of all task runs are recorded"
    wait_until(ended, lambda: all(has_ended(data) for data in task_runs(run)))
    return run


def task_runs(run: FlowRun) -> list[dict[str, Any]]:
    """Return the task runs as far as they are recorded, which happens behind the flow's back."""
    body = {"flow_runs": {"id": {"any_": [run.id]}}, "limit": 200}
    return list(run.api.post("/task_runs/filter", body))


def has_ended(data: dict[str, Any]) -> bool:
    """Return whether the end of the task run is recorded."""
    return bool(data["start_time"] and data["end_time"])


def at_once(runs: list[TaskRun]) -> int:
    """Return how many of the task runs ran at the same time at most."""
    return max(sum(other.start <= run.start < other.end for other in runs) for run in runs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, api: Api) -> Folder:
    """Return the reader's folder, on the session's server."""
    path = tmp_path_factory.mktemp("folder")
    return make_folder(path, python_blocks(part()), 0.1, PREFECT_API_URL=api.url)


# --- the page --------------------------------------------------------------------------------


def test_every_block_is_run_by_a_test() -> None:
    assert set(python_blocks(part())) == PYTHON, f"a Python block is new or gone; {READ}"
    for block in shell_blocks(part()):
        names = [name for name, text in SHELL.items() if text in block]
        assert len(names) == 1, f"no test runs this shell block, or two do: {names}\n{block}"
    assert len(shell_blocks(part())) == len(SHELL), f"a shell block is gone; {READ}"


# --- one flow on more cores and machines -----------------------------------------------------


def assert_like_threads(run: FlowRun, output: str) -> None:
    """Check that lesson 08's flow was recorded on Dask as it is with threads."""
    assert run.state == "Completed", f"{run.message}\n{output}"
    assert ast.literal_eval(output.strip().splitlines()[-1]) == PIPELINE, READ
    assert "prefect.task_runner.dask" in output, f"the flow did not run on Dask; {READ}"
    user, balance, activity, churn = (
        run.task_run(name)
        for name in (
            "fetch_user_info",
            "fetch_account_balance",
            "fetch_recent_activity",
            "predict_churn",
        )
    )
    for lookup in (balance, activity):
        assert user.end <= lookup.start, f"{lookup.task} did not wait for the user; {READ}"
        assert lookup.end <= churn.start, f"predict_churn did not wait for {lookup.task}; {READ}"
    assert balance.attempts == 2, f"the outage was not retried on Dask; {READ}"
    assert "Retrying" in balance.states(), f"the retry was not recorded on Dask; {READ}"

    def warned() -> bool:
        return (30, "Service is down, attempt 1 failed", balance.task) in run.logs()

    wait_until(f"the warning from a Dask worker is attached to its task run; {READ}", warned)
    assert run.edges() == {
        ("fetch_user_info", "fetch_account_balance"),
        ("fetch_user_info", "fetch_recent_activity"),
        ("fetch_user_info", "send_notification"),
        ("predict_churn", "send_notification"),
    }, f"the page says which two arrows of the run graph Dask does not draw; {READ}"


def test_lesson_08_runs_unchanged_on_a_dask_cluster_of_processes(folder: Folder, api: Api) -> None:
    result = folder.run(shell("on dask"))
    output = result.stderr + result.stdout
    assert "Creating a new Dask cluster" in output, f"the cluster is not the flow's own; {READ}"
    assert_like_threads(recorded(api, output), output)


@pytest.fixture(scope="module")
def dask(folder: Folder) -> Iterator[str]:
    """Return the address of a running Dask scheduler with two workers of one thread."""
    port = str(free_port())
    # The settings come with the flow, not from the worker's environment.
    bare = Folder(folder.path, {**folder.environment}, folder.logs)
    del bare.environment["PREFECT_API_URL"]
    with ExitStack() as stack:
        stack.enter_context(bare.terminal(shell("scheduler", ("8786", port))))
        block = shell("worker", ("8786", port))
        logs = [stack.enter_context(bare.terminal(block))[1] for _ in range(2)]
        for log in logs:
            wait_until(
                f"the Dask worker has registered: {log.read_text()}",
                lambda log=log: "Registered to" in log.read_text(),  # type: ignore[misc]
                30,
            )
        yield f"tcp://127.0.0.1:{port}"


def on(folder: Folder, name: str, address: str) -> None:
    """Give the folder's file the address of the scheduler of the tests."""
    text = python_blocks(part())[name]
    (folder.path / name).write_text(changed(text, ("tcp://127.0.0.1:8786", address)))


def test_lesson_08_runs_unchanged_on_a_dask_scheduler(folder: Folder, api: Api, dask: str) -> None:
    on(folder, "on_scheduler.py", dask)
    result = folder.run(shell("on scheduler"))
    output = result.stderr + result.stdout
    assert dask in output, f"the flow made a cluster of its own; {READ}"
    assert_like_threads(recorded(api, output), output)


def test_many_users_share_the_workers(folder: Folder, api: Api, dask: str) -> None:
    lines = shell("many users", ("tcp://127.0.0.1:8786", dask)).splitlines()
    threads, workers = lines
    assert at_most(folder, api, threads) > 2, f"threads do not run all users at once; {READ}"
    assert at_most(folder, api, workers) == 2, f"two workers of one thread run two steps; {READ}"


def at_most(folder: Folder, api: Api, line: str) -> int:
    """Run `many_users.py`, check what it recorded, and return how many steps ran at once."""
    result = folder.run(line)
    run = recorded(api, result.stderr + result.stdout)
    assert result.stdout.strip().endswith("6 users, 0.509 leave on average"), result.stdout
    runs = run.task_runs()
    names = [each.task for each in runs]
    for task in ("fetch_user_info", "fetch_account_balance", "fetch_recent_activity"):
        assert names.count(task) == 6, f"{task} did not run once for each of 6 users; {READ}"
    assert names.count("predict_churn") == 6, f"not every user has a prediction; {READ}"
    for task in ("fetch_account_balance", "fetch_recent_activity"):
        assert (task, "predict_churn") in run.edges(), f"a future passed on draws an arrow; {READ}"
    return at_once([each for each in runs if each.task != "fetch_account_balance"])


def test_a_mapped_notification_needs_a_key_for_each_user(api: Api, tmp_path: Path) -> None:
    from prefect import flow

    text = script_path("08").read_text(encoding="utf-8")
    copy = tmp_path / script_path("08").name
    copy.write_text(re.sub(r"(?m)^([A-Z]+_SECONDS) = \d+", r"\1 = 0", text), encoding="utf-8")
    lesson = load_afresh(copy)

    @flow
    def notify_flow() -> None:
        users = [{"user_id": number, "name": str(number)} for number in (101, 102, 103)]
        lesson.send_notification.map(users, [0.1, 0.2, 0.3]).wait()

    notify_flow()
    assert len(lesson.DELIVERED) == 1, f"the page says that only one message counts; {READ}"


def test_processes_compute_where_threads_only_wait(folder: Folder) -> None:
    (folder.path / "train.py").write_text(
        changed(python_blocks(part())["train.py"], ("STEPS = 4_000", "STEPS = 200"))
    )
    lines = folder.run(shell("train")).stdout.strip().splitlines()
    pattern = r"best rate ([\d.]+), loss ([\d.]+), [\d.]+ s, (\d) worker process\(es\)"
    threads, processes = (re.fullmatch(pattern, line) for line in lines)
    assert threads, lines
    assert processes, lines
    assert threads.group(1, 2) == processes.group(1, 2), f"the two disagree: {lines}"
    assert threads[3] == "0", f"threads run in the flow's own process; {READ}"
    assert processes[3] in "12", f"the pool's tasks did not leave the flow's process; {READ}"


# --- many runs on more machines, and a server for a team -------------------------------------


@dataclass
class TeamApi(Api):
    """The API of a server that wants a password."""

    def get(self, path: str, **query: str) -> Any:
        """Return the JSON at `path`."""
        response = requests.get(self.url + path, params=query, auth=LOGIN, timeout=30)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON that the POST answers."""
        response = requests.post(self.url + path, json=body, auth=LOGIN, timeout=30)
        response.raise_for_status()
        return response.json()

    def states(self, flow_run_id: str) -> list[dict[str, Any]]:
        """Return all states of the flow run."""
        states = self.get("/flow_run_states/", flow_run_id=flow_run_id)
        return list(states)

    def trigger(self, deployment_id: str) -> str:
        """Schedule a run and return its id."""
        return str(self.post(f"/deployments/{deployment_id}/create_flow_run", {})["id"])

    def last(self, flow_run_id: str) -> str:
        """Return the name of the last state of the flow run."""
        return self.flow_run(flow_run_id).state

    def wait_for(self, flow_run_id: str, state: str, seconds: float) -> None:
        """Return when the last state of the flow run is this one."""
        what = f"flow run {flow_run_id} is {state}"
        wait_until(what, lambda: self.last(flow_run_id) == state, seconds)

    def forget_automations(self) -> None:
        """Delete all automations."""
        for automation in self.post("/automations/filter", {}):
            self.delete(f"/automations/{automation['id']}")

    def delete(self, path: str) -> None:
        """Delete what is at `path`."""
        requests.delete(self.url + path, auth=LOGIN, timeout=30).raise_for_status()


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
    client = make_folder(path, python_blocks(part()), 2)
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
        process, log = stack.enter_context(serving.terminal(start))
        team = Team(TeamApi(f"http://127.0.0.1:{port}/api"), client, database)

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


def kill(process: psutil.Process) -> None:
    """Kill the process and all that it has started, as a power cut does."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, 10)


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
        block = python_blocks(part())["rescue_runs.py"]
        block = changed(block, ("SILENT_SECONDS = 90", f"SILENT_SECONDS = {silent}"))
        (folder.path / "rescue_runs.py").write_text(block)
        folder.run(shell("rescue"))
        running = api.trigger(deployment)
        wait_until("the run is running", lambda: api.last(running) == "Running", 60)
        pending = api.trigger(deployment)
        wait_until("a run is pending", lambda: api.last(pending) in ("Pending", "Submitting"))
        kill(first)
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


@pytest.fixture(scope="module", autouse=True)
def behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Future[Team], Future[Story]] | None]:
    """Play the story, most of which is waiting, while the tests of Dask run."""
    wanted = [item for item in request.session.items if "team" in getattr(item, "fixturenames", ())]
    if not wanted:
        yield None
        return
    path = tmp_path_factory.mktemp("team")
    with ExitStack() as stack, ThreadPoolExecutor(1) as thread:
        team = thread.submit(lambda: stack.enter_context(run_team(path)))
        yield team, thread.submit(lambda: play(team.result()))


@pytest.fixture(scope="module")
def team(behind: tuple[Future[Team], Future[Story]]) -> Team:
    """Return the team's server, once it runs."""
    return behind[0].result()


@pytest.fixture(scope="module")
def story(behind: tuple[Future[Team], Future[Story]], team: Team) -> Story:
    """Return what happened to the runs of the worker that was killed."""
    return behind[1].result()


def names(states: list[dict[str, Any]]) -> list[str]:
    """Return the names of the states."""
    return [state["name"] for state in states]


ORDINARY = ["Scheduled", "Pending", "Submitting", "Running", "Completed"]


def test_script_12_triggers_a_run_on_the_pool(story: Story) -> None:
    assert names(story.states["ordinary"]) == ORDINARY, READ
    assert "Completed" in story.output, f"script 12 did not see the end: {story.output}"


def test_runs_that_wait_outlive_the_worker(story: Story) -> None:
    history = [name for name in names(story.states["waiting"]) if name != "Late"]
    assert history == ORDINARY, f"the other worker takes them; {READ}"


@pytest.mark.parametrize(
    ("name", "before"),
    [("running", "Running"), ("pending", "Pending")],
)
def test_a_run_that_lost_its_worker_is_run_again(story: Story, name: str, before: str) -> None:
    states = story.states[name]
    history = names(states)
    crashed = history.index("Crashed")
    assert before in history[:crashed], history
    message = states[crashed]["message"]
    assert message == "No heartbeat", f"the heartbeat's automation did not end it: {message}"
    assert history[crashed + 1] == "AwaitingRetry", f"the second automation did not act; {READ}"
    assert history[-1] == "Completed", f"the run is lost: {history}; {READ}"


def test_a_finished_run_cannot_crash_but_can_be_taken_back(story: Story) -> None:
    assert story.refused == "ABORT", f"a finished run became Crashed; {READ}"
    assert story.accepted == "ACCEPT", f"the page warns of what the server refuses now; {READ}"


def test_the_server_wants_the_password(team: Team) -> None:
    with pytest.raises(requests.HTTPError, match="401"):
        Api(team.api.url).post("/work_pools/filter", {})
    assert team.folder.environment["PREFECT_API_AUTH_STRING"] == ":".join(LOGIN), READ
    team.folder.run("prefect work-pool ls")


def test_ten_and_eleven_say_that_they_send_no_credentials(team: Team) -> None:
    with pytest.raises(AssertionError, match="wants credentials"):
        team.folder.run(f"python {script_path('11').name}")


@pytest.mark.skipif(not postgres_programs(), reason="PostgreSQL is not installed (no initdb)")
def test_eight_threads_lose_nothing_on_postgresql(story: Story, team: Team) -> None:
    assert team.postgres
    deployment = team.api.get("/deployments/name/user-flow/user-deployment")["id"]
    with ThreadPoolExecutor(8) as threads:
        runs = set(threads.map(team.api.trigger, [deployment] * 40))
    query = "SELECT id FROM flow_run"
    stored = team.postgres.psql("--dbname=prefect", "--tuples-only", "--no-align", "-c", query)
    for run in runs:
        team.api.delete(f"/flow_runs/{run}")
    assert len(runs) == 40, f"plain triggers were lost on PostgreSQL; {READ}"
    assert runs <= set(stored.split()), f"the runs are not in PostgreSQL; {READ}"


def test_runs_end_by_themselves_when_only_the_workers_process_dies(
    story: Story, team: Team
) -> None:
    deployment = team.api.get("/deployments/name/user-flow/user-deployment")["id"]
    with worker(team, "worker 1") as process:
        run = team.api.trigger(deployment)
        wait_until("the run is running", lambda: team.api.last(run) == "Running", 60)
        children = process.children(recursive=True)
        process.kill()
        ended = team.api.ended(run, 30)
        psutil.wait_procs(children, 10)
    assert ended.state in ("Crashed", "Completed"), READ


# --- Prefect Cloud ---------------------------------------------------------------------------


@pytest.fixture
def cloud() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Run a stand-in for Prefect Cloud; return its address and the requests it gets."""
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            key = self.headers.get("Authorization")
            seen.append((f"{self.command} {self.path}", key))
            status = 201 if self.command == "POST" else 200
            body = {
                "id": "11111111-1111-1111-1111-111111111111",
                "name": "a-run",
                "status": "READY",
                "paused": False,
                "parameter_openapi_schema": {"properties": {"user_id": {}}},
            }
            if not key:
                status, body = 401, {"detail": "Unauthorized"}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, format: str, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_prefect_cloud_is_another_url_and_a_key(
    cloud: tuple[str, list[tuple[str, str | None]]], tmp_path: Path
) -> None:
    address, seen = cloud
    folder = make_folder(tmp_path, {}, 1)
    result = folder.run(shell("cloud", ("https://api.prefect.cloud", address)))
    assert result.stdout.strip() == "11111111-1111-1111-1111-111111111111"
    base = "/api/accounts/ACCOUNT_ID/workspaces/WORKSPACE_ID/deployments"
    assert seen == [
        (f"GET {base}/name/user-flow/user-deployment", "Bearer pnu_your_key"),
        (
            f"POST {base}/11111111-1111-1111-1111-111111111111/create_flow_run",
            "Bearer pnu_your_key",
        ),
    ], f"script 12 needs the URL and the key, and no edit; {READ}"
    with pytest.raises(AssertionError, match="wants credentials"):
        folder.run(f"python {script_path('11').name}")
