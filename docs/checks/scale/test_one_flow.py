"""One flow on more cores and machines: Dask, threads and processes, many users at once."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clone import BLOCKS, PAGE, Clone, block, make_clone, recorded
from machinery import free_port
from prefect import flow, task
from prefect.exceptions import UnfinishedRun
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner
from prefect_dask.task_runners import DaskTaskRunner
from pytest_httpserver import HTTPServer
from recorded import FlowRun

pytestmark = pytest.mark.timeout(900, func_only=True)

FACTOR = 0.3  # of the lessons' seconds: steps so short that they end before the next starts


def test_every_block_of_the_page_is_run() -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("*.py"))
    texts = re.findall(r'block\(\s*"([^"]+)"', tests)
    for commands in BLOCKS:
        assert any(text in commands for text in texts), f"no test runs the block\n{commands}"


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """Return a clone with short seconds, on the harness's server."""
    return make_clone(tmp_path, FACTOR, PREFECT_API_URL=str(PREFECT_API_URL.value()))


@pytest.fixture(scope="module")
def with_threads(tmp_path_factory: pytest.TempPathFactory, harness: None) -> tuple[str, FlowRun]:
    """Return what lesson 08 prints for the user of the page's programs, and what is recorded."""
    url = str(PREFECT_API_URL.value())
    clone = make_clone(tmp_path_factory.mktemp("threads"), FACTOR, PREFECT_API_URL=url)
    clone.change("08_sync_async_retry_logger.py", r"pipeline_flow\(\)", "pipeline_flow(102)")
    stdout, stderr = clone.run("python 08_sync_async_retry_logger.py")
    return stdout, recorded(stderr)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the port of a Dask scheduler with two workers, who have no Prefect settings."""
    clone, port = make_clone(tmp_path_factory.mktemp("dask"), FACTOR), str(free_port())
    worker = block("dask worker", ("8786", port))
    with (
        clone.terminal(block("dask scheduler", ("8786", port)), "Scheduler at"),
        clone.terminal(worker, "Registered to"),
        clone.terminal(worker, "Registered to"),
    ):
        yield port


def at_once(run: FlowRun) -> int:
    """Return how many of the task runs ran at the same time at most."""
    runs = run.task_runs
    return max(sum(other.start <= one.start < other.end for other in runs) for one in runs)


def assert_like_threads(output: tuple[str, str], with_threads: tuple[str, FlowRun]) -> None:
    """Check that Dask changed nothing but the arrows that the page names."""
    run, (printed, threads) = recorded(output[1]), with_threads
    assert output[0] == printed, "lesson 08 has another result on Dask"
    assert "prefect.task_runner.dask" in output[1], "lesson 08 did not run on Dask"
    for each in threads.task_runs:
        attempts = run.task_run(each.name).attempts
        assert attempts == each.attempts, f"{each.name}: {attempts} attempts on Dask"
    messages = [{log.message for log in each.user_logs()} for each in (threads, run)]
    lost = {message for message in messages[0] - messages[1] if "Finished in" not in message}
    assert not lost, "log records from Dask's workers are lost"
    assert threads.edges() - run.edges() == {
        ("fetch_account_balance", "predict_churn"),
        ("fetch_recent_activity", "predict_churn"),
    }, "the page says which two arrows of the run graph Dask does not draw"


def test_lesson_08_runs_unchanged_on_a_dask_cluster(
    clone: Clone, with_threads: tuple[str, FlowRun]
) -> None:
    output = clone.run(block("on_dask.py"))
    assert "Creating a new Dask cluster" in output[1]
    assert_like_threads(output, with_threads)


def test_lesson_08_runs_unchanged_on_a_dask_scheduler(
    clone: Clone, dask: str, with_threads: tuple[str, FlowRun]
) -> None:
    output = clone.run(block("on_scheduler.py", ("8786", dask)))
    assert f"tcp://127.0.0.1:{dask}" in output[1], "it runs on another cluster"
    assert_like_threads(output, with_threads)


def test_only_a_submitted_task_goes_to_a_worker_which_has_its_own_memory(dask: str) -> None:
    remembered = []

    @task
    def remember() -> int:
        remembered.append(os.getpid())
        return os.getpid()

    runner: TaskRunner[Any] = DaskTaskRunner(address=f"tcp://127.0.0.1:{dask}")

    @flow(task_runner=runner)
    def remembering_flow() -> tuple[int, int]:
        return remember.submit().result(), remember()

    submitted, called = remembering_flow()
    assert called == os.getpid() != submitted
    assert remembered == [called], "the page says that Dask's workers share no memory"


def test_without_the_guard_a_new_process_would_start_the_flow_again(clone: Clone) -> None:
    clone.change("docs/growing/threads_or_processes.py", r'^if __name__ == "__main__":', "if True:")
    clone.change("docs/growing/threads_or_processes.py", r"^USERS = .*", "USERS = 10")
    _, stderr = clone.run(block("threads_or_processes.py"), exits=1)
    assert "bootstrapping phase" in stderr, "the page says why a program keeps its guard"


def test_processes_compute_outside_the_flows_own_process(clone: Clone) -> None:
    clone.change("docs/growing/threads_or_processes.py", r"^USERS = .*", "USERS = 10_000")
    lines = clone.run(block("threads_or_processes.py"))[0].splitlines()
    found = [re.fullmatch(r"(.+): [\d.]+ s, (\d) worker process\(es\)", line) for line in lines]
    threads, processes = [each.groups() for each in found if each]
    assert threads == (processes[0], "0"), f"threads share the flow's process: {lines}"
    assert processes[1] in ("1", "2"), f"processes are others than the flow's: {lines}"


def assert_mapped(run: FlowRun, users: int) -> None:
    """Check that each of lesson 08's five steps ran for each user, with its arrows."""
    steps = {name: run.names().count(name) for name in run.names()}
    assert len(steps) == 5, f"these are not lesson 08's five steps: {steps}"
    assert set(steps.values()) == {users}, f"not every step ran for every user: {steps}"
    for name in ("fetch_account_balance", "fetch_recent_activity"):
        assert (name, "predict_churn") in run.edges(), "a future that is passed on draws an arrow"
    delivered = [log for log in run.user_logs() if log.message.startswith("Sent: ")]
    assert len(delivered) == users, "each user gets a message, under a key of their own"


def test_many_users_run_at_once_with_threads_and_share_the_workers_of_dask(
    clone: Clone, dask: str
) -> None:
    stdout, stderr = clone.run(block("many_users.py 101"))
    run = recorded(stderr)
    assert_mapped(run, 3)
    assert at_once(run) > 2, "threads wait for all users at once"
    on_dask = clone.run(block("--dask", ("8786", dask)))
    assert on_dask[0] == stdout, "Dask has other results than threads"
    assert_mapped(recorded(on_dask[1]), 3)
    assert at_once(recorded(on_dask[1])) == 2, "a step that waits keeps its place in a worker"


@pytest.mark.parametrize("where", ["", " --dask tcp://127.0.0.1:{}"], ids=["threads", "dask"])
def test_an_unknown_user_is_named_and_the_others_keep_their_result(
    clone: Clone, dask: str, where: str
) -> None:
    shown = re.search(
        r"(?ms)^```console\n\$ (python docs/growing/many_users.py[ \d]+) 2>&1 .*?\n(.*?)^```", PAGE
    )
    assert shown, "the page no longer shows many_users.py with an unknown user"
    stdout, stderr = clone.run(shown[1] + where.format(dask), exits=1)
    expected, printed = shown[2].splitlines(), stdout.splitlines()
    printed += stderr.splitlines()[len(printed) - len(expected) :]  # behind Prefect's log
    assert printed == expected, "many_users.py tells something else"
    assert "UnfinishedRun" not in stdout + stderr, "a step that never ran has no error of its own"
    assert recorded(stderr).state == "Failed", "a failed step is never a green flow"


def test_a_notification_that_never_goes_out_is_no_success(clone: Clone) -> None:
    clone.change("08_sync_async_retry_logger.py", r"^OUTAGES = .*", 'OUTAGES = {"messages": 9}')
    clone.change(
        "08_sync_async_retry_logger.py", r"retry_delay_seconds=[\d.]+", "retry_delay_seconds=0"
    )
    stdout, stderr = clone.run(block("many_users.py 101"), exits=1)
    assert not stdout, "nobody was notified"
    assert re.findall(r"(?m)^user (\d+): HTTPError: 503", stderr) == ["101", "102", "103"]
    assert recorded(stderr).state == "Failed", "a failed step is never a green flow"


def test_the_two_mistakes_of_many_users_hide_what_went_wrong() -> None:
    @task
    def fail() -> None:
        raise LookupError("no user 999")

    @task
    def go_on(_: Any) -> None:
        pass

    @flow
    def careless_flow() -> str:
        behind = go_on.submit(fail.submit())
        behind.wait()
        with pytest.raises(UnfinishedRun):
            behind.result()
        return f"{behind.state.name} {behind.state.type.value}"

    state = careless_flow(return_state=True)
    assert state.is_completed(), "wait() raises nothing, so the flow is green"
    told = re.findall(r"is `(NotReady)`, of the type `(\w+)`", " ".join(PAGE.split()))
    assert told == [tuple(state.result().split())], "the page names another state"


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
    key = {"Authorization": "Bearer pnu_your_key"}
    look_up, create = (
        f"{base}/name/user-flow/user-deployment",
        f"{base}/{deployment['id']}/create_flow_run",
    )
    httpserver.expect_ordered_request(look_up, "GET", headers=key).respond_with_json(deployment)
    httpserver.expect_ordered_request(create, "POST", headers=key).respond_with_json(flow_run, 201)
    here = httpserver.url_for("").rstrip("/")
    commands = block("PREFECT_API_KEY", ("https://api.prefect.cloud", here))
    assert clone.run(commands)[0].strip() == flow_run["id"]
    httpserver.check()
    assert len(httpserver.log) == 2, "script 12 needs the URL and the key, and no edit"
    httpserver.expect_request(look_up).respond_with_data("Unauthorized", 401)
    eleven = commands.replace(
        "12_trigger_deployment_by_id_name_lookup.py", "11_get_deployment_id_by_name.py"
    )
    assert "401" in clone.run(eleven.replace(" -p user_id=102", ""), exits=1)[1]
    assert "Authorization" not in httpserver.log[-1][0].headers, (
        "the page says that 11 sends no key"
    )
