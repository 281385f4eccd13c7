"""The page's table "When something looks wrong": each symptom is caused, and then cured.

A test has the name of its symptom. Where Prefect surprises, exactly that is held here, so that a
change in Prefect is noticed; `tells` compares what was observed with what the row says.
"""

import asyncio
import contextvars
import os
import re
import signal
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests
from machinery import ROOT, Server, background, end, run, script, server
from pages import symptoms, tells
from prefect import Task, flow, get_client, get_run_logger, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import State
from prefect.exceptions import (
    MappingLengthMismatch,
    MissingContextError,
    ObjectNotFound,
    UnfinishedRun,
)
from prefect.futures import wait
from prefect.runtime import flow_run, task_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed
from prefect.task_runners import ThreadPoolTaskRunner
from recorded import FlowRun, read_ended, read_flow_run, record_flow, wait_until


@pytest.fixture
def row(request: pytest.FixtureRequest) -> str:
    """Return the row about the symptom that the test is named after."""
    return symptoms()[request.node.name]


# Symptoms that are caused in other checks: by which test.
ELSEWHERE = {
    "test_an_edit_is_not_seen_by_the_serving_process": "test_an_edit_is_seen_only_after_a_restart",
    "test_the_serving_process_ended_because_its_server_was_away": (
        "test_a_server_that_stays_away_ends_it_with_1"
    ),
    "test_a_run_is_crashed_or_cancelled_because_its_service_was_restarted": (
        "test_how_it_ends_decides_about_the_runs"
    ),
}


def test_every_symptom_has_a_check_and_every_check_a_symptom() -> None:
    tests = {
        path: re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        for path in ROOT.glob("docs/checks/**/test_*.py")
    }
    here = tests.pop(Path(__file__))[1:]
    assert sorted([*here, *ELSEWHERE]) == sorted(symptoms()), (
        "a symptom without a check, or the reverse"
    )
    assert set(ELSEWHERE.values()) <= {name for names in tests.values() for name in names}


def ran(body: Callable[..., Any], *arguments: Any, **options: Any) -> FlowRun:
    """Run a flow with this body and these options, and return what was recorded."""
    return record_flow(flow(name="symptom", **options)(body), *arguments)


def last_states(run: FlowRun) -> list[str]:
    """Return the last state of each task run that started, in order of start."""
    return [each.state_names()[-1] for each in run.task_runs]


@task
def work(seconds: float = 0.3) -> str:
    time.sleep(seconds)
    return "done"


@task
def fail() -> None:
    raise LookupError("no user 999")


def test_tasks_do_not_run_at_the_same_time() -> None:
    first, second = ran(lambda: [work.submit().result() for _ in "12"]).task_runs
    assert first.end <= second.start
    first, second = ran(lambda: [each.result() for each in [work.submit() for _ in "12"]]).task_runs
    assert second.start < first.end


def test_a_flow_hangs_when_its_tasks_submit_tasks() -> None:
    submits = task(lambda: work.submit().result())
    calls = task(lambda: work())

    def outer(inner: Task[[], str]) -> str | None:
        future = inner.submit()
        future.wait(timeout=3)
        return future.result() if future.state.is_final() else None

    hung = ran(outer, submits, task_runner=ThreadPoolTaskRunner(max_workers=1))
    assert hung.result is None, "a pool of one thread ran a task and the one that it waits for"
    assert "work" not in hung.names()
    assert ran(outer, submits, task_runner=ThreadPoolTaskRunner(max_workers=2)).result == "done"
    assert ran(outer, calls, task_runner=ThreadPoolTaskRunner(max_workers=1)).result == "done"


def test_map_takes_a_dict_apart() -> None:
    show = task(lambda user, options: options)
    options = {"a": 1, "b": 2}
    assert ran(lambda: show.map([1, 2], options).result()).result == ["a", "b"]
    assert isinstance(ran(lambda: show.map([1], options)).result, MappingLengthMismatch)
    assert ran(lambda: show.map([1], unmapped(options)).result()).result == [options]


def test_a_flow_is_green_though_a_task_failed(row: str) -> None:
    green = ran(lambda: fail.submit().wait())
    assert (green.state, last_states(green)) == ("Completed", ["Failed"])
    tells(row, ran(lambda: fail.submit().result()).state, ran(lambda: fail.submit()).state)


def test_unfinishedrun_run_is_in_pending_state(row: str) -> None:
    needs = task(lambda value: value)

    @flow
    def asks(first_first: bool) -> None:
        first = fail.submit()
        second = needs.submit(first)
        if first_first:
            first.result()
        second.wait()
        tells(row, second.state.name)
        second.result()

    error = asks(False, return_state=True).result(raise_on_failure=False)
    assert f"{UnfinishedRun.__name__}: {error}".startswith(row.split("`")[1])
    error = asks(True, return_state=True).result(raise_on_failure=False)
    assert isinstance(error, LookupError), "the first future hides its error"


def test_a_task_is_crashed_with_a_cancellederror(row: str) -> None:
    @task(retries=1, retry_delay_seconds=1)
    def flaky() -> None:
        if task_run.run_count == 1:
            raise ConnectionError("down")

    def one_branch_fails(patient: bool) -> None:
        futures: list[Any] = [fail.submit(), flaky.submit(), work.submit()]
        if patient:
            wait(futures)
        futures[0].result()

    hasty, patient = ran(one_branch_fails, False), ran(one_branch_fails, True)
    tells(row, hasty.task_run("flaky").states[-1].name)
    assert "CancelledError" in str(hasty.task_run("flaky").states[-1].message)
    assert hasty.task_run("work").state_names()[-1] == "Completed", "a task at work was given up"
    assert patient.task_run("flaky").state_names()[-1] == "Completed"


def test_a_hundred_lines_of_traceback() -> None:
    @task
    def reads() -> None:
        UUID("no id")  # the line to find

    error = ran(lambda: reads.submit().result()).result
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if frame.filename == __file__]
    assert len(mine) < len(frames) / 4, "most of the lines are no longer Prefect's"
    assert "the line to find" in str(mine[-1].line), "the lowest line of your own is another one"
    assert str(error) in traceback.format_exception(error)[-1]


@pytest.mark.filterwarnings("ignore:coroutine 'State.aresult' was never awaited")
def test_retries_never_fire() -> None:
    calls = []

    def ask() -> None:
        calls.append("asked")
        raise requests.ConnectionError("down")

    async def ask_async() -> None:
        ask()

    def ask_and_catch() -> None:
        with suppress(requests.ConnectionError):
            ask()

    def builtin(_task: object, _run: object, state: State[Any]) -> bool:
        return isinstance(state.result(raise_on_failure=False), ConnectionError)

    def of_requests(_task: object, _run: object, state: State[Any]) -> bool:
        return isinstance(state.result(raise_on_failure=False), requests.ConnectionError)

    def raises(_task: object, _run: object, state: State[Any]) -> bool:
        return isinstance(state.result(), requests.ConnectionError)

    async def awaits(_task: object, _run: object, state: State[Any]) -> bool:
        return isinstance(await state.aresult(raise_on_failure=False), requests.ConnectionError)

    def attempts(body: Callable[[], Any], condition: Any = None) -> int:
        calls.clear()
        tried: Any = task(retries=1, retry_condition_fn=condition)(body)
        ran(lambda: asyncio.run(tried()) if tried.isasync else tried())
        return len(calls)

    assert attempts(ask) == 2
    assert attempts(ask, builtin) == 1, "the built-in ConnectionError is that of requests, too"
    assert attempts(ask, of_requests) == 2
    assert attempts(ask, raises) == 1, "a condition that raises no longer counts as no"
    assert attempts(ask_async, of_requests) == 1, "a plain condition serves an async task"
    assert attempts(ask_async, awaits) == 2
    assert attempts(ask_and_catch) == 1
    calls.clear()
    ran(task(retries=1)(ask).fn)
    assert len(calls) == 1, ".fn() is no longer the plain function"


def test_a_retry_of_the_flow_runs_everything_again(row: str) -> None:
    def again() -> None:
        work()
        if flow_run.run_count == 1:
            raise ConnectionError("down")

    assert last_states(ran(again, retries=1)) == ["Completed", "Completed"]
    first, second = last_states(ran(again, retries=1, persist_result=True))
    assert first == "Completed"
    tells(row, second)


# Prefect's limit and pytest-timeout's would both want the one alarm of the process.
@pytest.mark.timeout(300, method="thread")
def test_a_time_limit_does_not_stop_a_task(row: str) -> None:
    ((limit, blocked),) = re.findall(r"`timeout_seconds=(\d)`\D+(\d) s", row)
    seconds: list[float] = []

    def block() -> None:
        started = time.monotonic()
        try:
            time.sleep(int(blocked))
        finally:
            seconds.append(time.monotonic() - started)

    async def block_async() -> None:
        block()

    limited = task(name="limited", timeout_seconds=int(limit))(block)
    limited_async: Any = task(name="limited", timeout_seconds=int(limit))(block_async)
    ways: dict[str, Callable[[], Any]] = {
        "called": limited,
        "submitted": lambda: limited.submit().result(),
        "`async def`": lambda: asyncio.run(limited_async()),
    }
    for way, body in ways.items():
        state = ran(lambda body=body: body()).task_run("limited").state_names()[-1]
        ended_after = limit if seconds[-1] < int(blocked) else blocked
        (said,) = re.findall(rf"{way}, [a-z ]+ is `(\w+)` after (\d) s", row)
        assert said == (state, ended_after), f"{way}: {state} after {seconds[-1]:.1f} s"


def test_print_is_not_among_the_logs() -> None:
    for log_prints in (False, True):
        logs = ran(lambda: print("printed"), log_prints=log_prints).logs
        assert ("printed" in [log.message for log in logs]) == log_prints


def test_records_of_logging_getlogger_are_not_among_the_logs(tmp_path: Path, row: str) -> None:
    program = tmp_path / "program.py"
    program.write_text("""
import logging, prefect
@prefect.flow
def logs():
    logging.getLogger("library").warning("a warning")
    logging.getLogger("__main__").info("too low")
    logging.getLogger("__main__").setLevel(logging.INFO)
    logging.getLogger("__main__").info("an info")
print(logs(return_state=True).state_details.flow_run_id)
""")
    ((name, value),) = re.findall(r"`(PREFECT_\w+)=([\w,]+)`", row)
    for more, expected in (({}, set()), ({name: value}, {"a warning", "an info"})):
        settings: dict[str, Any] = {"PREFECT_API_URL": PREFECT_API_URL.value(), **more}
        flow_run_id = UUID(run(program, cwd=tmp_path, **settings).stdout.strip())
        messages = {log.message for log in read_ended(flow_run_id).logs}
        assert messages & {"a warning", "too low", "an info"} == expected


def test_missingcontexterror_in_a_thread_of_your_own() -> None:
    errors = []

    def log(words: str, logger: Any = None) -> None:
        try:
            (logger or get_run_logger()).info(words)
        except MissingContextError as error:
            errors.append(error)

    def in_a_thread(target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments)
        thread.start()
        thread.join()

    def starts_threads() -> None:
        in_a_thread(log, "nothing")
        in_a_thread(log, "the logger", get_run_logger())
        in_a_thread(contextvars.copy_context().run, log, "the context")

    messages = {each.message for each in ran(starts_threads).logs}
    assert len(errors) == 1, "a new thread knows of the run"
    assert messages & {"nothing", "the logger", "the context"} == {"the logger", "the context"}


def test_error_encountered_when_computing_cache_key(row: str) -> None:
    takes = task(lambda lock: "done")
    symptom = row.split("|")[1].strip()
    for each, complains in ((takes, True), (takes.with_options(cache_policy=NO_CACHE), False)):
        flow_run = ran(lambda each=each: each(threading.Lock()))
        assert flow_run.result == "done"
        assert any(symptom in log.message for log in flow_run.logs) == complains


def test_a_run_is_on_another_server_than_you_think_or_on_none(tmp_path: Path, row: str) -> None:
    def url(**settings: Any) -> str:
        code = "from prefect.settings import PREFECT_API_URL as url; print(url.value())"
        return run("-c", code, cwd=tmp_path, PREFECT_HOME=str(tmp_path), **settings).stdout.strip()

    places = {
        "profile": ("profiles.toml", 'active = "p"\n[profiles.p]\nPREFECT_API_URL = "{}"'),
        "`pyproject.toml`": ("pyproject.toml", '[tool.prefect]\napi.url = "{}"'),
        "`prefect.toml`": ("prefect.toml", '[api]\nurl = "{}"'),
        "`.env`": (".env", 'PREFECT_API_URL = "{}"'),
    }
    assert url() == "None"
    for name, (file, text) in places.items():
        (tmp_path / file).write_text(text.format(f"http://{file}/api"))
        assert url() == f"http://{file}/api", f"{name} counts less than what was there before"
    outside: dict[str, Any] = {"PREFECT_API_URL": "http://outside/api"}
    assert url(**outside) == "http://outside/api"
    order = sorted([*places, "the environment"], key=row.index)
    assert order == ["the environment", *reversed(places)], "the page gives another order"
    view = run("-m", "prefect", "config", "view", cwd=tmp_path, **outside).stdout
    assert "PREFECT_API_URL='http://outside/api' (from env)" in view


# From here on, the symptoms are those of a server and of a process that serves.

SERVED = """
import time
from prefect import flow

@flow
def served(seconds: float = 0):
    time.sleep(seconds)

if __name__ == "__main__":
    served.serve("d", interval=3600, limit=1)
"""


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """Run a server that calls a run Late after a second."""
    late = "PREFECT_SERVER_SERVICES_LATE_RUNS"
    with server(**{f"{late}_AFTER_SECONDS": "1", f"{late}_LOOP_SECONDS": "1"}) as running:
        yield running


@pytest.fixture
def api_url(own_server: Server) -> Iterator[str]:
    """Use that server, and return the URL of its API."""
    with temporary_settings({PREFECT_API_URL: own_server.api_url}):
        yield own_server.api_url


@contextmanager
def serve(folder: Path, name: str, *changes: tuple[str, str]) -> Iterator[tuple[Any, Path]]:
    """Serve SERVED, with these changes, as NAME/d; yield the process and its log once it serves."""
    text = SERVED
    for old, new in [("served", name), *changes]:
        text = text.replace(old, new)
    (folder / "flows.py").write_text(text)
    log = folder / f"{len(list(folder.iterdir()))}.log"
    url = PREFECT_API_URL.value() or ""
    with background(folder / "flows.py", cwd=folder, log=log, PREFECT_API_URL=url) as process:
        wait_until("it serves", lambda: "being served" in log.read_text(), 60)
        yield process, log


def deployment(name: str) -> Any:
    """Return the server's record of NAME/d."""
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(f"{name}/d")


def deploy(name: str, **options: Any) -> None:
    """Create the deployment NAME/d, which nothing serves."""
    with get_client(sync_client=True) as client:
        client.create_deployment(client.create_flow_from_name(name), "d", **options)


def trigger(name: str, **parameters: Any) -> UUID:
    """Ask for a run of NAME/d, and return its id."""
    with get_client(sync_client=True) as client:
        made = client.create_flow_run_from_deployment(deployment(name).id, parameters=parameters)
    return made.id


def state(flow_run_id: UUID) -> str | None:
    """Return the name of the run's state."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(flow_run_id).state_name


def becomes(flow_run_id: UUID, *states: str) -> str | None:
    """Wait until the run has one of the states, and return it."""
    wait_until(f"the run is {states}", lambda: state(flow_run_id) in states, 60)
    return state(flow_run_id)


@pytest.mark.usefixtures("api_url")
def test_a_run_stays_scheduled_or_late(tmp_path: Path, row: str) -> None:
    deploy("waiting")
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
        deploy("pooled", work_pool_name="pool")
        runs = [trigger("waiting", seconds=4), trigger("waiting", seconds=4)]
        pooled = trigger("pooled")
        for each in (*runs, pooled):
            tells(row, becomes(each, "Late", "Pending", "Running", "Completed"))

        def offered() -> list[UUID]:
            found = client.get_scheduled_flow_runs_for_work_pool("pool")
            return [each.flow_run.id for each in found]

        client.update_work_pool("pool", WorkPoolUpdate(is_paused=True))
        assert offered() == [], "a paused pool offers its runs to a worker"
        client.update_work_pool("pool", WorkPoolUpdate(is_paused=False))
        assert offered() == [pooled]
    with serve(tmp_path, "waiting"):
        wait_until("one of them runs", lambda: any(state(each) == "Running" for each in runs))
        assert any(state(each) == "Late" for each in runs), "limit=1 let both runs start"
        for each in runs:
            assert becomes(each, "Completed")


def test_a_run_stays_running_or_submitting(api_url: str, tmp_path: Path, row: str) -> None:
    with serve(tmp_path, "killed", ("limit=1", "limit=2")) as (process, _):
        running = trigger("killed", seconds=600)
        becomes(running, "Running")
        starting = trigger("killed", seconds=600)
        becomes(starting, "Submitting")
        os.killpg(process.pid, signal.SIGKILL)
    run("-m", "prefect", "flow-run", "cancel", str(running), PREFECT_API_URL=api_url)
    assert state(starting) == "Submitting", "somebody has told the server"
    tells(row, state(running))
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(running, Crashed(), force=True)
    tells(row, state(running))
    run("-m", "prefect", "flow-run", "delete", str(starting), PREFECT_API_URL=api_url)
    with pytest.raises(ObjectNotFound):
        state(starting)


@pytest.mark.usefixtures("api_url")
def test_a_schedule_is_off_after_a_restart(tmp_path: Path) -> None:
    with serve(tmp_path, "restarted") as (old, _):
        wait_until("it asks for runs", lambda: deployment("restarted").status == "READY")
        with serve(tmp_path, "restarted") as (new, _):
            end(old)
            assert new.poll() is None
            assert deployment("restarted").paused, "the old process left the schedule on"
    with serve(tmp_path, "restarted", ("limit=1", "pause_on_shutdown=False")):
        assert not deployment("restarted").paused, "to serve again does not switch it on"
    assert not deployment("restarted").paused


def test_a_parameter_is_accepted_and_the_run_crashes(
    api_url: str, tmp_path: Path, row: str
) -> None:
    with serve(tmp_path, "accepted") as (_, log):
        flow_run_id = trigger("accepted", secnds=1)
        tells(row, becomes(flow_run_id, "Crashed", "Failed", "Completed"))
        (error,) = set(re.findall(r"exceptions\.(\w+Error)", log.read_text()))
        tells(row, error)
        assert not any(error in each.message for each in read_flow_run(flow_run_id).logs)
        words = ("accepted/d", "-p", "secnds=1")
        assert run(script("12"), *words, PREFECT_API_URL=api_url).returncode != 0


def test_503_and_database_is_locked(own_server: Server, api_url: str, row: str) -> None:
    deploy("locked")
    create = f"{api_url}/deployments/{deployment('locked').id}/create_flow_run"

    def post() -> int:
        return requests.post(create, json={"idempotency_key": "k"}, timeout=100).status_code

    writer = sqlite3.connect(own_server.home / "prefect.db", timeout=60, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert f"{post()} and" in row
    writer.execute("ROLLBACK")
    writer.close()
    assert row.split("`")[1] in (own_server.home / "server.log").read_text(encoding="utf-8")
    wait_until("it is taken", lambda: post() == 201)
    wait_until("it is known, and not taken again", lambda: post() == 200)
