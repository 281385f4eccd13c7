"""The last part of LEARNINGS.md: its blocks run, and what it says of them was recorded."""

import ast
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import requests
from beside import Keep, beside, early, first
from growing_place import (
    READ,
    SHELL,
    Folder,
    changed,
    make_folder,
    postgres_programs,
    python_blocks,
    shell,
    shell_blocks,
)
from support import (
    ALAN_CHURN,
    Api,
    FlowRun,
    TaskRun,
    assert_order,
    free_port,
    load_afresh,
    script_path,
    wait_until,
)
from team import LOGIN, Story, Team, play, run_team, worker

PYTHON = {
    "on_dask.py",
    "on_scheduler.py",
    "train.py",
    "many_users.py",
    "deploy_user_flow.py",
    "rescue_runs.py",
}


def recorded(api: Api, output: str) -> FlowRun:
    """Return the flow run whose page the output names last, once it has ended."""
    run = api.ended(re.findall(r"/runs/flow-run/([0-9a-f-]{36})", output)[-1])
    ended = "the ends of all task runs are recorded"
    wait_until(ended, run.has_ended_task_runs)
    return run


def at_once(runs: list[TaskRun]) -> int:
    """Return how many of the task runs ran at the same time at most."""
    return max(sum(other.start <= run.start < other.end for other in runs) for run in runs)


def readers_folder(path: Path, api: Api, factor: float = 0.1) -> Folder:
    """Return the reader's folder at `path`, on the session's server, the seconds times `factor`."""
    return make_folder(path, python_blocks(), factor, PREFECT_API_URL=api.url)


@pytest.fixture
def folder(tmp_path: Path, api: Api) -> Folder:
    """Return the reader's folder, on the session's server."""
    return readers_folder(tmp_path, api)


# --- the page --------------------------------------------------------------------------------


def test_every_block_is_run_by_a_test() -> None:
    assert set(python_blocks()) == PYTHON, f"a Python block is new or gone; {READ}"
    for block in shell_blocks():
        names = [name for name, text in SHELL.items() if text in block]
        assert len(names) == 1, f"no test runs this shell block, or two do: {names}\n{block}"
    assert len(shell_blocks()) == len(SHELL), f"a shell block is gone; {READ}"


# --- one flow on more cores and machines -----------------------------------------------------


def assert_like_threads(run: FlowRun, output: str) -> None:
    """Check that lesson 08's flow was recorded on Dask as it is with threads."""
    assert run.state == "Completed", f"{run.message}\n{output}"
    assert ast.literal_eval(output.strip().splitlines()[-1]) == ALAN_CHURN, READ
    assert "prefect.task_runner.dask" in output, f"the flow did not run on Dask; {READ}"
    assert_order(run, READ)
    balance = run.task_run("fetch_account_balance")
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


@early
def test_the_pipeline_runs_unchanged_on_a_dask_cluster_of_processes(
    empty_folder: Path, api: Api
) -> None:
    result = readers_folder(empty_folder, api).run(shell("on dask"))
    output = result.stderr + result.stdout
    assert "Creating a new Dask cluster" in output, f"the cluster is not the flow's own; {READ}"
    assert_like_threads(recorded(api, output), output)


@contextmanager
def dask_scheduler(folder: Folder) -> Iterator[str]:
    """Give the address of a running Dask scheduler with two workers of one thread."""
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
    text = python_blocks()[name]
    (folder.path / name).write_text(changed(text, ("tcp://127.0.0.1:8786", address)))


@pytest.mark.full
def test_the_pipeline_runs_unchanged_on_a_dask_scheduler(folder: Folder, api: Api) -> None:
    with dask_scheduler(folder) as dask:
        on(folder, "on_scheduler.py", dask)
        result = folder.run(shell("on scheduler"))
    output = result.stderr + result.stdout
    assert dask in output, f"the flow made a cluster of its own; {READ}"
    assert_like_threads(recorded(api, output), output)


# Steps so short that a busy machine cannot start the second before the first ends tell nothing.
MANY_USERS_SCALE = 0.5


@early
def test_many_users_run_at_once(empty_folder: Path, api: Api) -> None:
    folder = readers_folder(empty_folder, api, MANY_USERS_SCALE)
    line, _ = shell("many users", (" 6", " 3")).splitlines()
    assert at_most(folder, api, line) > 2, f"threads do not run all users at once; {READ}"


@pytest.mark.full
def test_many_users_share_the_workers(tmp_path: Path, api: Api) -> None:
    folder = readers_folder(tmp_path, api, MANY_USERS_SCALE)
    with dask_scheduler(folder) as dask:
        _, line = shell("many users", ("tcp://127.0.0.1:8786", dask), (" 6", " 3")).splitlines()
        assert at_most(folder, api, line) == 2, f"two workers of one thread run two steps; {READ}"


def at_most(folder: Folder, api: Api, line: str) -> int:
    """Run `many_users.py`, check what it recorded, and return how many steps ran at once."""
    result = folder.run(line)
    run = recorded(api, result.stderr + result.stdout)
    assert result.stdout.strip().endswith("3 users, 0.509 leave on average"), result.stdout
    runs = run.task_runs()
    names = [each.task for each in runs]
    assert set(Counter(names).values()) == {3}, f"not every step ran for every user; {READ}"
    assert len(set(names)) == 5, f"these are not lesson 08's five steps: {set(names)}; {READ}"
    for task in ("fetch_account_balance", "fetch_recent_activity"):
        assert (task, "predict_churn") in run.edges(), f"a future passed on draws an arrow; {READ}"
    return at_once([each for each in runs if each.task != "fetch_account_balance"])


def test_a_mapped_notification_reaches_every_user_once(api: Api, tmp_path: Path) -> None:
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
    assert len(lesson.DELIVERED) == 3, f"the key is not the user's own; {READ}"


@pytest.mark.full
def test_processes_compute_where_threads_only_wait(folder: Folder) -> None:
    (folder.path / "train.py").write_text(
        changed(python_blocks()["train.py"], ("STEPS = 4_000", "STEPS = 200"))
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


@first
def team(empty_folder: Path, keep: Keep) -> Team:
    """Return the team's server, once it runs."""
    return keep(run_team(empty_folder))


@first
def story(team: Team) -> Story:
    """Return what happened to the runs of the worker that was killed."""
    return play(team)


def names(states: list[dict[str, Any]]) -> list[str]:
    """Return the names of the states."""
    return [state["name"] for state in states]


ORDINARY = ["Scheduled", "Pending", "Submitting", "Running", "Completed"]


def test_a_trigger_runs_on_the_pool(story: Story) -> None:
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


@beside
def test_the_server_wants_the_password(team: Team) -> None:
    with pytest.raises(requests.HTTPError, match="401"):
        Api(team.api.url).post("/work_pools/filter", {})
    assert team.folder.environment["PREFECT_API_AUTH_STRING"] == ":".join(LOGIN), READ
    team.folder.run("prefect work-pool ls")


@beside
def test_ten_and_eleven_say_that_they_send_no_credentials(team: Team) -> None:
    with pytest.raises(AssertionError, match="wants credentials"):
        team.folder.run(f"python {script_path('11').name}")


@pytest.mark.skipif(not postgres_programs(), reason="PostgreSQL is not installed (no initdb)")
@beside
def test_eight_threads_lose_nothing_on_postgresql(story: Story, team: Team) -> None:
    assert team.postgres
    deployment = team.api.get("/deployments/name/user-flow/user-deployment")["id"]
    trigger = f"{team.api.url}/deployments/{deployment}/create_flow_run"
    with ThreadPoolExecutor(8) as threads:
        plain = partial(requests.post, json={}, auth=LOGIN, timeout=60)
        answers = list(threads.map(plain, [trigger] * 40))
    assert {answer.status_code for answer in answers} == {201}, (
        f"plain triggers were lost on PostgreSQL; {READ}"
    )
    runs = {answer.json()["id"] for answer in answers}
    query = "SELECT id FROM flow_run"
    stored = team.postgres.psql("--dbname=prefect", "--tuples-only", "--no-align", "-c", query)
    for run in runs:
        team.api.delete(f"/flow_runs/{run}")
    assert len(runs) == 40, f"the answers name some runs twice; {READ}"
    assert runs <= set(stored.split()), f"the runs are not in PostgreSQL; {READ}"


@pytest.mark.full
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
