"""Lesson 12 against a real server that is busy or killed.

`TRIGGERS=200 pytest docs/checks/load -k eight` is the load at its full size.
"""

import importlib
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from machinery import ENDS, NAME, Server, changed_copy, run, script, server, serving
from recorded import wait_until

TRIGGERS = int(os.environ.get("TRIGGERS", "32"))
pytestmark = pytest.mark.timeout(600 + 5 * TRIGGERS)  # most of it is waiting, on a busy machine

PROCESSES = 8
lesson = importlib.import_module(script("12").stem)

Results = list[subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a Prefect server as it comes, on SQLite, on which lesson 09 runs one run at a time."""
    folder = tmp_path_factory.mktemp("served")
    path = changed_copy(script("09"), folder, ("limit=5", "limit=1"))
    with server() as running, serving(running.api_url, path, folder / "log"):
        yield running


def test_a_paused_deployment_runs_what_is_triggered(served: Server) -> None:
    path = f"/deployments/{served.deployment()['id']}"
    served.ask("POST", f"{path}/pause_deployment")
    try:
        assert served.deployment()["paused"], "it is not paused"
        ended = served.wait_for(served.trigger(), *ENDS)
        assert ended == "Completed", f"a pause stops more than schedules: the run is {ended}"
    finally:
        served.ask("POST", f"{path}/resume_deployment")


def trigger_all(pool: ThreadPoolExecutor, at: Server, keys: list[str], *options: str) -> Any:
    """Start a process of lesson 12 for each key; return an iterator of how they ended."""

    def trigger(key: str) -> subprocess.CompletedProcess[str]:
        one_event = ("--idempotency-key", key)
        url = at.api_url
        return run(script("12"), NAME, *one_event, *options, seconds=600, PREFECT_API_URL=url)

    return pool.map(trigger, keys)


def flow_runs(at: Server, keys: list[str]) -> list[Any]:
    """Return the flow runs with these idempotency keys."""
    chosen = {"idempotency_key": {"any_": keys}}
    return list(at.ask("POST", "/flow_runs/filter", flow_runs=chosen))


def assert_one_run_for_each(at: Server, keys: list[str], results: Results) -> None:
    """Check that every process exited 0, and printed the id of the one flow run of its key."""
    failed = [result.stderr for result in results if result.returncode]
    assert failed == [], f"{len(failed)} of {len(results)} triggers were given up"
    told = sorted({(key, it.stdout.strip()) for key, it in zip(keys, results, strict=True)})
    stored = sorted((run["idempotency_key"], run["id"]) for run in flow_runs(at, keys))
    assert stored == told, "not one flow run for each key, whose id was printed"


def test_eight_processes_at_a_time_lose_nothing_and_double_nothing(served: Server) -> None:
    keys = [str(uuid.uuid4()) for _ in range(TRIGGERS // 2)] * 2  # each is asked for twice
    with ThreadPoolExecutor(PROCESSES) as pool:
        results = list(trigger_all(pool, served, keys))
    assert_one_run_for_each(served, keys, results)


def test_threads_of_one_program_lose_nothing_and_double_nothing(served: Server) -> None:
    def call(user: int) -> Any:
        return lesson.trigger(NAME, {"user_id": user}, api_url=served.api_url)

    with ThreadPoolExecutor(PROCESSES) as pool:
        runs = list(pool.map(call, [101, 102, 103] * 5))
    assert [run["parameters"]["user_id"] for run in runs] == [101, 102, 103] * 5
    assert len({run["id"] for run in runs}) == 15, "two calls got the same flow run"


def test_a_restart_of_the_server_costs_time_and_no_trigger(tmp_path: Path) -> None:
    keys = [str(uuid.uuid4()) for _ in range(4)]
    with server() as restarted, ThreadPoolExecutor(2 * PROCESSES) as pool:
        restarted.deploy()
        before = trigger_all(pool, restarted, keys[:2], "--wait", "--timeout=500")
        wait_until("a trigger arrived", lambda: flow_runs(restarted, keys), 60)
        restarted.stop(signal.SIGKILL)
        meanwhile = trigger_all(pool, restarted, keys[2:], "--wait", "--timeout=500")
        restarted.start()
        with serving(restarted.api_url, script("09"), tmp_path / "09.log"):
            results = [*before, *meanwhile]
            # Now, for the end of serving cancels a run whose process has not ended yet.
            ended = [restarted.state(result.stdout.strip()) for result in results]
        assert_one_run_for_each(restarted, keys, results)
    assert ended == ["Completed"] * 4, "--wait exits 0 before the run completes"
