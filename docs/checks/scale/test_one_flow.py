"""One flow on more machines: Dask, many users; Prefect Cloud; what the pages consist of."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clone import BLOCKS, GROWING, Clone, block, make_clone, recorded
from machinery import free_port
from pages import Compare
from prefect import flow, task
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect_dask.task_runners import DaskTaskRunner
from pytest_httpserver import HTTPServer
from recorded import FlowRun

pytestmark = pytest.mark.timeout(900, func_only=True)

LESSON_08 = "08_sync_async_retry_logger.py"


@pytest.mark.parametrize("commands", BLOCKS)
def test_every_shell_block_is_run(commands: str) -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parents[1].rglob("*.py"))
    texts = re.findall(r'block\(\s*"([^"]+)"', tests)
    assert any(text in commands for text in texts), f"no test runs the block\n{commands}"


def test_the_costs_are_those_that_were_measured(compare: Compare) -> None:
    measured = json.loads((GROWING / "costs.json").read_text("utf-8"))
    for name, (head, *rows) in measured.items():
        compare(name, head, rows)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the port of a Dask scheduler with two workers, which have no Prefect settings."""
    clone, port = make_clone(tmp_path_factory.mktemp("dask")), str(free_port())
    worker = block("dask worker", ("8786", port))
    with (
        clone.terminal(block("dask scheduler", ("8786", port)), "Scheduler at"),
        clone.terminal(worker, "Registered to"),
        clone.terminal(worker, "Registered to"),
    ):
        yield port


def arrows_into_prediction(run: FlowRun) -> int:
    """Return how many arrows of the run graph lead to predict_churn."""
    return sum(target == "predict_churn" for _, target in run.edges())


def observe_processes(runner: TaskRunner[Any]) -> list[object]:
    """Return where the runner runs a submitted and a called task, and whether they share memory."""
    remembered: list[str] = []

    @task
    def remember() -> int:
        remembered.append("it ran")
        return os.getpid()

    @flow(task_runner=runner)
    def remembering_flow() -> list[object]:
        submitted, is_changed = remember.submit().result(), bool(remembered)
        processes = [submitted, remember()]
        where = ["the flow's" if it == os.getpid() else "another" for it in processes]
        return [*(f"{it} process" for it in where), "changed" if is_changed else "unchanged"]

    return remembering_flow()


def test_what_dask_changes_in_lesson_08(clone: Clone, dask: str, compare: Compare) -> None:
    on_dask = clone.run(block("on_dask.py", ("8786", dask)))
    address = f"tcp://127.0.0.1:{dask}"
    assert address in on_dask[1], "lesson 08 runs on another cluster"
    clone.change(LESSON_08, r"pipeline_flow\(\)", "pipeline_flow(102)")
    with_threads = clone.run(f"python {LESSON_08}")
    assert on_dask[0] == with_threads[0], "lesson 08 has another result on Dask"
    both = [recorded(output[1]) for output in (with_threads, on_dask)]
    threads, dasks = ({log.message for log in run.user_logs()} for run in both)
    lost = [message for message in threads - dasks if "Finished in" not in message]
    assert not lost, f"Dask's workers lose the log records {lost}"
    labels = [
        "a submitted task runs in",
        "a called task runs in",
        "a list of the flow, after a submitted task appended to it",
        "attempts of `fetch_account_balance`",
        "arrows of the run graph into `predict_churn`, which gets results",
    ]
    runners: list[TaskRunner[Any]] = [ThreadPoolTaskRunner(), DaskTaskRunner(address=address)]
    columns = [
        [
            *observe_processes(runner),
            run.task_run("fetch_account_balance").attempts,
            arrows_into_prediction(run),
        ]
        for run, runner in zip(both, runners, strict=True)
    ]
    head = ["lesson 08", "with threads", "on Dask"]
    compare("threads and Dask", head, zip(labels, *columns, strict=True))


def test_without_the_guard_a_new_process_would_start_the_flow_again(clone: Clone) -> None:
    clone.change("docs/growing/threads_or_processes.py", r'^if __name__ == "__main__":', "if True:")
    clone.change("docs/growing/threads_or_processes.py", r"^USERS = .*", "USERS = 10")
    _, stderr = clone.run("python docs/growing/threads_or_processes.py", exits=1)
    assert "bootstrapping phase" in stderr, "the page explains why a program keeps its guard"


def test_many_users_with_threads_and_on_dask(clone: Clone, dask: str, compare: Compare) -> None:
    columns, printed = [], []
    for commands in (block("many_users.py 101"), block("--dask", ("8786", dask))):
        stdout, stderr = clone.run(commands)
        run = recorded(stderr)
        runs, names = run.task_runs, run.names()
        (count,) = {names.count(name) for name in names}
        at_once = max(sum(it.start <= one.start < it.end for it in runs) for one in runs)
        sent = len([it for it in run.user_logs() if it.message.startswith("Messages delivered")])
        most = at_once if at_once <= 2 else "more than 2"
        columns.append([count, most, arrows_into_prediction(run), sent])
        printed.append(stdout)
    assert printed[0] == printed[1], "Dask has other results than threads"
    head = ["three users", "with threads", "on two Dask workers of one thread"]
    labels = [
        "task runs of each task",
        "task runs at the same time",
        "arrows of the run graph into `predict_churn`, which gets futures",
        "messages sent",
    ]
    compare("many users", head, zip(labels, *columns, strict=True))


def test_an_unknown_user_is_reported_on_dask_too(clone: Clone, dask: str) -> None:
    unknown = block("--dask", ("8786", dask), ("102 103", "999"))
    stdout, stderr = clone.run(unknown, exits=1)
    assert stdout == "user 101: 0.659\n", "the other user has no result"
    assert stderr.endswith("error: 1 of 2 failed\nuser 999: LookupError: no user 999\n"), stderr


def test_a_notification_that_is_never_sent_fails_the_flow_run(clone: Clone) -> None:
    clone.change(LESSON_08, r"^OUTAGES = .*", 'OUTAGES = {"message": 9}')
    clone.change(LESSON_08, r"retry_delay_seconds=[\d.]+", "retry_delay_seconds=0")
    stdout, stderr = clone.run(block("many_users.py 101"), exits=1)
    assert not stdout, "a user is reported as done, but was not notified"
    assert re.findall(r"(?m)^user (\d+): ConnectionError", stderr) == ["101", "102", "103"]


def test_prefect_cloud_is_another_url_and_a_key(clone: Clone, httpserver: HTTPServer) -> None:
    state = {"type": "SCHEDULED", "name": "Scheduled"}
    answer: Any = {"id": "1", "deployment_id": "1", "name": "a-run", "state": state}
    workspace = re.compile("/api/accounts/ACCOUNT_ID/workspaces/WORKSPACE_ID/.*")
    httpserver.expect_request(workspace).respond_with_json(
        answer | {"parameters": {"user_id": 102}}
    )
    here = httpserver.url_for("").rstrip("/")
    clone.run(block("PREFECT_API_KEY", ("https://api.prefect.cloud", here)))
    keys = [request.headers.get("Authorization") for request, _ in httpserver.log]
    assert keys == ["Bearer pnu_your_key"] * 2, f"lesson 12 sends {keys}"
