"""One flow on more machines: Dask, many users; Prefect Cloud; what the pages consist of."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clone import BLOCKS, GROWING, README, Clone, block, check_table, make_clone, recorded
from machinery import free_port
from prefect import flow, task
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect_dask.task_runners import DaskTaskRunner
from pytest_httpserver import HTTPServer
from recorded import FlowRun

pytestmark = pytest.mark.timeout(900, func_only=True)

FACTOR = 0.3  # of the lessons' seconds: tasks so short that they end before the next one starts
LESSON_08 = "08_sync_async_retry_logger.py"


@pytest.mark.parametrize("commands", BLOCKS)
def test_every_shell_block_is_run(commands: str) -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("*.py"))
    texts = re.findall(r'block\(\s*"([^"]+)"', tests)
    assert any(text in commands for text in texts), f"no test runs the block\n{commands}"


@pytest.mark.parametrize("page", sorted(GROWING.glob("*.md")), ids=lambda page: page.name)
def test_the_code_on_a_page_stands_in_its_program(page: Path) -> None:
    for name, code in re.findall(
        r"(?ms)^```python lesson (\S+)\n(.*?)^```", page.read_text("utf-8")
    ):
        lines = [*map(str.strip, (GROWING / name).read_text("utf-8").splitlines())]
        for line in map(str.strip, code.splitlines()):
            if line not in ("", "..."):
                assert line in lines, f"{name} has no line {line!r} after the ones before it"
                lines = lines[lines.index(line) + 1 :]


def test_the_costs_are_consistent() -> None:
    text = (GROWING / "costs.md").read_text("utf-8")
    for rows in re.findall(r"(?m)^<!-- benchmark: .*\n((?:\|.*\n)+)", text):
        first = 0.0  # what the ratios of the table are to: its first median, or the cell before
        for row in rows.splitlines()[2:]:
            for middle, low, high in re.findall(r"([\d.]+)(?: s)? \(([\d.]+) to ([\d.]+)\)", row):
                assert float(low) <= float(middle) <= float(high), f"no median: {row}"
            found = re.search(r"\| ([\d.]+)(?: s)? \(.*\| ([\d.]+) \|$", row)
            if found and "critical" not in rows:
                first = first or float(found[1])
                assert float(found[1]) / first == pytest.approx(float(found[2]), rel=0.05), row


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """Return a clone with short seconds, on the harness's server."""
    return make_clone(tmp_path, FACTOR, PREFECT_API_URL=str(PREFECT_API_URL.value()))


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the port of a Dask scheduler with two workers, which have no Prefect settings."""
    clone, port = make_clone(tmp_path_factory.mktemp("dask"), FACTOR), str(free_port())
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


def test_what_dask_changes_in_lesson_08(clone: Clone, dask: str) -> None:
    on_dask = clone.run(block("on_dask.py", ("8786", dask)))
    assert f"tcp://127.0.0.1:{dask}" in on_dask[1], "lesson 08 runs on another cluster"
    clone.change(LESSON_08, r"pipeline_flow\(\)", "pipeline_flow(102)")
    with_threads = clone.run(f"python {LESSON_08}")
    assert on_dask[0] == with_threads[0], "lesson 08 has another result on Dask"
    both = [recorded(output[1]) for output in (with_threads, on_dask)]
    threads, dasks = ({log.message for log in run.user_logs()} for run in both)
    lost = [message for message in threads - dasks if "Finished in" not in message]
    assert not lost, f"Dask's workers lose the log records {lost}"

    remembered: list[str] = []

    @task
    def remember() -> int:
        remembered.append("this")
        return os.getpid()

    @flow
    def remembering_flow() -> list[object]:
        submitted, is_changed = remember.submit().result(), bool(remembered)
        processes = [submitted, remember()]
        where = ["the flow's" if it == os.getpid() else "another" for it in processes]
        return [*(f"{it} process" for it in where), "changed" if is_changed else "unchanged"]

    seen = []
    runners: list[TaskRunner[Any]] = [ThreadPoolTaskRunner()]
    runners.append(DaskTaskRunner(address=f"tcp://127.0.0.1:{dask}"))
    for runner in runners:
        remembered.clear()
        seen.append(remembering_flow.with_options(task_runner=runner)())
    names = ["a submitted task runs in", "a called task, such as predict_churn, runs in"]
    names += ["a list of the flow, after a submitted task appended to it"]
    names += ["attempts of fetch_account_balance", "arrows into predict_churn in the run graph"]
    attempts = [run.task_run("fetch_account_balance").attempts for run in both]
    columns = [
        [*it, count, arrows_into_prediction(run)]
        for it, count, run in zip(seen, attempts, both, strict=True)
    ]
    check_table(README, "threads and Dask", *zip(names, *columns, strict=True))


def test_without_the_guard_a_new_process_would_start_the_flow_again(clone: Clone) -> None:
    clone.change("docs/growing/threads_or_processes.py", r'^if __name__ == "__main__":', "if True:")
    clone.change("docs/growing/threads_or_processes.py", r"^USERS = .*", "USERS = 10")
    _, stderr = clone.run("python docs/growing/threads_or_processes.py", exits=1)
    assert "bootstrapping phase" in stderr, "the page explains why a program keeps its guard"


def test_many_users_with_threads_and_on_dask(clone: Clone, dask: str) -> None:
    columns, printed = [], []
    for commands in (block("many_users.py 101"), block("--dask", ("8786", dask))):
        stdout, stderr = clone.run(commands)
        run = recorded(stderr)
        runs, names = run.task_runs, run.names()
        (count,) = {names.count(name) for name in names}
        at_once = max(sum(it.start <= one.start < it.end for it in runs) for one in runs)
        arrows = arrows_into_prediction(run)
        sent = len([it for it in run.user_logs() if it.message.startswith("Messages delivered")])
        columns.append([count, at_once if at_once <= 2 else "more than 2", arrows, sent])
        printed.append(stdout)
    assert printed[0] == printed[1], "Dask has other results than threads"
    rows = ["task runs of each task", "task runs at the same time"]
    rows += ["arrows into predict_churn", "messages sent"]
    check_table(README, "many users", *zip(rows, *columns, strict=True))


def test_an_unknown_user_on_dask_is_reported_as_the_transcript_shows(
    clone: Clone, dask: str
) -> None:
    shown = re.search(
        r"(?ms)^```console\n\$ (python docs/growing/many_users.py[ \d]+) 2>&1 .*?\n(.*?)^```",
        README.read_text("utf-8"),
    )
    assert shown, "the page no longer shows many_users.py with an unknown user"
    stdout, stderr = clone.run(f"{shown[1]} --dask tcp://127.0.0.1:{dask}", exits=1)
    assert stdout + stderr[stderr.find("error: ") :] == shown[2], "the other users, and the error"
    assert recorded(stderr).state == "Failed", "a task failed, and the flow run is not Failed"


def test_a_notification_that_is_never_sent_fails_the_flow_run(clone: Clone) -> None:
    clone.change(LESSON_08, r"^OUTAGES = .*", 'OUTAGES = {"message": 9}')
    clone.change(LESSON_08, r"retry_delay_seconds=[\d.]+", "retry_delay_seconds=0")
    stdout, stderr = clone.run(block("many_users.py 101"), exits=1)
    assert not stdout, "a user is reported as done, but was not notified"
    assert re.findall(r"(?m)^user (\d+): ConnectionError", stderr) == ["101", "102", "103"]


def test_prefect_cloud_is_another_url_and_a_key(clone: Clone, httpserver: HTTPServer) -> None:
    deployment = {"id": "11111111-1111-1111-1111-111111111111", "parameter_openapi_schema": {}}
    flow_run = {
        "id": "22222222-2222-2222-2222-222222222222",
        "name": "a-run",
        "deployment_id": deployment["id"],
        "parameters": {"user_id": 102},
        "state": {"type": "SCHEDULED", "name": "Scheduled"},
    }
    base = "/api/accounts/ACCOUNT_ID/workspaces/WORKSPACE_ID/deployments"
    look_up, create = f"{base}/name/user-flow/user-deployment", f"{base}/{deployment['id']}"
    httpserver.expect_request(look_up, "GET").respond_with_json(deployment)
    httpserver.expect_request(f"{create}/create_flow_run", "POST").respond_with_json(flow_run, 201)
    here = httpserver.url_for("").rstrip("/")
    commands = block("PREFECT_API_KEY", ("https://api.prefect.cloud", here))
    lessons = ["12_trigger_deployment_by_id_name_lookup.py", "11_get_deployment_id_by_name.py"]
    eleven = commands.replace(lessons[0], lessons[1]).replace(" -p user_id=102", "")
    rows: list[list[object]] = []
    for lesson, words in zip(lessons, (commands, eleven), strict=True):
        httpserver.clear_log()
        assert clone.run(words)[0].strip() in (flow_run["id"], deployment["id"])
        keys = {request.headers.get("Authorization") for request, _ in httpserver.log}
        assert keys in ({"Bearer pnu_your_key"}, {None}), f"{lesson} sends {keys}"
        rows.append([lesson, "no" if keys == {None} else "yes"])
    check_table(README, "Cloud", *rows)
