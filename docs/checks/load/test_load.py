"""Lesson 12 against a real server that is busy, restarted or killed.

`TRIGGERS=200 pytest docs/checks/load -k eight` is the load at its full size.
"""

import importlib
import os
import re
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from faults import deploy, forward, trigger
from machinery import NAME, Server, changed_copy, script, server, serving
from pytest_httpserver import HTTPServer
from recorded import wait_until
from werkzeug import Request, Response

TRIGGERS = int(os.environ.get("TRIGGERS", "32"))
pytestmark = pytest.mark.timeout(600 + 5 * TRIGGERS)  # most of it is waiting, on a busy machine

PROCESSES = 8
lesson = importlib.import_module(script("12").stem)


@pytest.fixture(scope="session", autouse=True)
def harness() -> None:
    """Take the place of the harness: no check here runs a flow in this process."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a Prefect server as it comes, on SQLite, with lesson 09 serving on it."""
    log = tmp_path_factory.mktemp("served") / "09.log"
    with server() as running, serving(running.api_url, script("09"), log):
        yield running


def flow_runs(api_url: str, **wanted: Any) -> list[dict[str, Any]]:
    """Return the flow runs of these keys or ids, or none if the server does not answer now."""
    body = {"flow_runs": {name: {"any_": values} for name, values in wanted.items()}}
    answer = requests.post(f"{api_url}/flow_runs/filter", json=body, timeout=60)
    return list(answer.json()) if answer.ok else []


def states(api_url: str, ids: list[str]) -> Counter[str]:
    """Return how many of these flow runs are in which state."""
    return Counter(run["state_name"] for run in flow_runs(api_url, id=ids))


def trigger_all(pool: ThreadPoolExecutor, api_url: str, keys: list[str], *options: str) -> Any:
    """Start a process of lesson 12 for each key; return what will tell how it ended."""
    return pool.map(lambda key: trigger(api_url, "--idempotency-key", key, *options), keys)


def assert_one_run_for_each(api_url: str, keys: list[str], results: list[Any]) -> None:
    """Check that every process exited 0, and printed the id of the one flow run of its key."""
    failed = [result.stderr for result in results if result.returncode]
    assert failed == [], f"{len(failed)} of {len(results)} triggers were given up"
    told = sorted({(key, it.stdout.strip()) for key, it in zip(keys, results, strict=True)})
    runs = wait_until("the server answers", lambda: flow_runs(api_url, idempotency_key=keys))
    stored = sorted((run["idempotency_key"], run["id"]) for run in runs)
    assert stored == told, "not one flow run for each key, whose id was told"


def test_eight_processes_at_a_time_lose_nothing_and_double_nothing(served: Server) -> None:
    keys = [str(uuid.uuid4()) for _ in range(TRIGGERS // 2)] * 2  # each is asked for twice
    with ThreadPoolExecutor(PROCESSES) as pool:
        results = list(trigger_all(pool, served.api_url, keys))
    assert_one_run_for_each(served.api_url, keys, results)


def test_threads_of_one_program_lose_nothing_and_double_nothing(served: Server) -> None:
    def call(user: int) -> Any:
        return lesson.trigger(NAME, {"user_id": user}, api_url=served.api_url)

    with ThreadPoolExecutor(PROCESSES) as pool:
        runs = list(pool.map(call, [101, 102, 103] * 5))
    assert [run["parameters"]["user_id"] for run in runs] == [101, 102, 103] * 5
    assert len({run["id"] for run in runs}) == 15, "two calls got the same flow run"


def test_an_answer_that_gets_lost_does_not_trigger_twice(
    served: Server, httpserver: HTTPServer
) -> None:
    lost: list[int] = []

    def proxy(request: Request) -> Response:
        answer = forward(request, served)
        if request.path.endswith("/create_flow_run") and answer.status_code == 201:
            lost.append(answer.status_code)
            request.environ["werkzeug.socket"].close()  # no answer, but the run is there
        return answer

    httpserver.expect_request(re.compile(".*")).respond_with_handler(proxy)
    key = str(uuid.uuid4())
    result = trigger(httpserver.url_for("/api"), "--idempotency-key", key)
    assert lost == [201], "the server did not act before its answer was lost"
    assert_one_run_for_each(served.api_url, [key], [result])


def test_a_restart_of_the_server_costs_time_and_no_trigger(tmp_path: Path) -> None:
    keys = [str(uuid.uuid4()) for _ in range(6)]
    with server() as restarted, ThreadPoolExecutor(2 * PROCESSES) as pool:
        api_url = restarted.api_url
        deploy(api_url)
        before = trigger_all(pool, api_url, keys[:3], "--wait", "--timeout=500")
        wait_until("a trigger arrived", lambda: flow_runs(api_url, idempotency_key=keys), 60)
        restarted.stop(signal.SIGKILL)
        meanwhile = trigger_all(pool, api_url, keys[3:], "--wait", "--timeout=500")
        restarted.start()
        with serving(api_url, script("09"), tmp_path / "09.log"):
            results = [*before, *meanwhile]
            # Now, for the end of serving cancels a run whose process has not ended yet.
            ended = states(api_url, [result.stdout.strip() for result in results])
        assert_one_run_for_each(api_url, keys, results)
    assert ended == {"Completed": 6}, "--wait exits 0 before the run completes"


def test_a_paused_deployment_runs_what_is_triggered(served: Server) -> None:
    deployment = requests.get(f"{served.api_url}/deployments/name/{NAME}", timeout=60).json()
    url = f"{served.api_url}/deployments/{deployment['id']}"
    assert requests.post(f"{url}/pause_deployment", timeout=60).ok
    try:
        assert requests.get(url, timeout=60).json()["paused"], "it is not paused"
        result = trigger(served.api_url, "--wait")
        assert result.returncode == 0, f"a pause stops more than schedules: {result.stderr}"
    finally:
        requests.post(f"{url}/resume_deployment", timeout=60)


def test_a_killed_serving_process_loses_no_queued_run(served: Server, tmp_path: Path) -> None:
    api_url, name = served.api_url, "user-flow/killed"
    one_by_one = (("limit=5", "limit=1"), ('"user-deployment"', '"killed"'))
    endless = ("USER_SECONDS = 1", "USER_SECONDS = 300")
    script_09 = changed_copy(script("09"), tmp_path, endless, *one_by_one)
    with serving(api_url, script_09, tmp_path / "1.log", name, signal.SIGKILL):
        ids = [trigger(api_url, name=name).stdout.strip() for _ in range(3)]
        wait_until("a run is running", lambda: states(api_url, ids)["Running"], 120)
    after_the_kill = states(api_url, ids)
    assert after_the_kill["Running"] == 1, f"nobody could tell the server: {after_the_kill}"
    changed_copy(script_09, tmp_path, ("USER_SECONDS = 300", "USER_SECONDS = 0.1"))
    with serving(api_url, script_09, tmp_path / "2.log", name):
        done = {"Running": 1, "Completed": 2}
        wait_until("the queued runs complete", lambda: states(api_url, ids) == done, 180)
