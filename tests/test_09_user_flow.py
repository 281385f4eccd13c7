"""Lesson 09: `.serve()` makes a deployment, and a process that runs it when asked."""

import asyncio
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import anyio
import pytest
import requests
from beside import beside, early
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from stub import Answer, stub
from support import (
    POSIX,
    STORY,
    Api,
    FlowRun,
    Served,
    TaskRun,
    assert_one_line,
    await_served,
    background,
    calm,
    changed_copy,
    children_with,
    copy_database,
    free_port,
    goes_on,
    left_behind,
    none_left,
    parse_time,
    read,
    run_script,
    script_path,
    told,
    wait_until,
)

SCALE = 1.0
READ = read("09")


@dataclass
class Evidence:
    """What was seen of a served flow from its start to its end."""

    url: str
    deployment: dict[str, Any]
    scheduled: list[dict[str, Any]]
    run: FlowRun
    task_runs: list[TaskRun]
    records: list[tuple[int, str, str | None]]
    web_page: str
    output: str
    paused: bool
    interrupted_run: str
    farewell: str
    exit_code: int
    left: list[str]
    second_output: str
    second_exit_code: int
    second_paused: bool
    second_run: str
    server_after_second: bool
    server_in_reach: bool


def exit_code_of(served: Served, signal: str) -> int:
    """Return the exit code of a process that the signal ends."""
    try:
        return served.process.wait(60)
    except subprocess.TimeoutExpired:
        said = f"{READ}\n{served.log.read_text()}"
        raise AssertionError(f"{signal} does not end it within 60 s; {said}") from None


@early
def evidence(empty_database: Path, empty_folder: Path) -> Evidence:
    """Serve the flow on a server that lesson 09 starts itself, watch it, and end it by Ctrl-C."""
    folder = empty_folder
    home = str(calm(folder) / "home")  # a server that is stuck may keep a run from ending
    copy_database(empty_database, Path(home) / "prefect.db")
    script, port = script_path("09"), str(free_port())
    endless = ("time.sleep(USER_SECONDS)", "time.sleep(300 if user_id == 103 else USER_SECONDS)")
    short = ("USER_SECONDS = 1", "USER_SECONDS = 0.1")
    copy = changed_copy(script, folder, endless, short, ("4200", port))
    api = Api(f"http://127.0.0.1:{port}/api")
    second = folder / "second"
    second.mkdir()
    changes = (
        ('"user-deployment"', '"second-deployment"'),
        ("USER_SECONDS = 0.1", "USER_SECONDS = 1"),
    )
    other_copy = changed_copy(copy, second, *changes)
    log, other_log = folder / "log", second / "log"
    command = [sys.executable, str(copy), "--interval", "60"]
    with none_left(home), background(command, log, PREFECT_HOME=home) as process:
        answers = f"lesson 09 starts a server, which answers; {READ}"
        wait_until(answers, lambda: goes_on(process, log) and api.answers(), 60)
        with background([sys.executable, str(other_copy)], other_log, PREFECT_HOME=home) as another:
            it = await_served(api, "user-deployment", process, log)
            try:
                triggered = api.trigger(it.deployment["id"], user_id=102)
                interrupted = api.trigger(it.deployment["id"], user_id=103)  # which does not end
            except requests.HTTPError as error:
                refusal = f"{error.response.text}: the flow's parameter is user_id: int; {READ}"
                raise AssertionError(refusal) from None
            other = await_served(api, "second-deployment", another, other_log)
            waited_for = api.trigger(other.deployment["id"])
            running = "a flow run is under way when SIGTERM comes"
            wait_until(running, lambda: api.flow_run(waited_for).state == "Running", 30)
            another.send_signal(signal.SIGTERM)
            second_exit_code = exit_code_of(other, "SIGTERM")
        second_deployment = api.find_deployment("user-flow/second-deployment")
        second_run = api.flow_run(waited_for).state
        server_after_second = api.find_deployment("user-flow/user-deployment") is not None
        run = api.ended(triggered)
        auto = {"deployments": {"id": {"any_": [it.deployment["id"]]}}}
        scheduled = wait_until(
            f"--interval schedules runs; {READ}",
            lambda: [run for run in api.flow_runs(**auto) if run["auto_scheduled"]],
        )
        task = f"fetch_user_info is a task, and a task run of each flow run; {READ}"
        wait_until(task, run.has_ended_task_runs)
        task_runs = run.task_runs()
        logged = f"the server has what the flow logs, by get_run_logger(); {READ}"
        records = wait_until(logged, run.logs)
        web_page = requests.get(f"http://127.0.0.1:{port}/", timeout=10).text
        output = it.log.read_text()
        (server,) = children_with("prefect server start", it.process)
        server_in_reach = os.getpgid(server.pid) == it.process.pid
        at_work = "a flow run is in its task when Ctrl-C comes"
        wait_until(at_work, lambda: api.flow_run(interrupted).recorded_task_runs(), 60)
        os.killpg(it.process.pid, signal.SIGINT)  # as a terminal does
        ctrl_c = "Ctrl-C, which must not reach the server first,"
        exit_code = exit_code_of(it, ctrl_c)
        left = left_behind(home)
    # Its server is gone, but not what it has recorded.
    with closing(sqlite3.connect(Path(home) / "prefect.db")) as database:
        ((paused,),) = database.execute(
            "SELECT paused FROM deployment WHERE name = 'user-deployment'"
        )
        ((interrupted_run,),) = database.execute(
            "SELECT state_name FROM flow_run WHERE id = ?", (interrupted,)
        )
    return Evidence(
        url=f"http://127.0.0.1:{port}",
        deployment=it.deployment,
        scheduled=scheduled,
        run=run,
        task_runs=task_runs,
        records=records,
        web_page=web_page,
        output=output,
        paused=bool(paused),
        interrupted_run=interrupted_run,
        farewell=it.log.read_text().removeprefix(output),
        exit_code=exit_code,
        left=left,
        second_output=other.log.read_text(),
        second_exit_code=second_exit_code,
        second_run=second_run,
        second_paused=bool(second_deployment and second_deployment["paused"]),
        server_after_second=server_after_second,
        server_in_reach=server_in_reach,
    )


@POSIX
def test_it_serves_a_deployment_with_the_flows_parameters(evidence: Evidence) -> None:
    deployment = evidence.deployment
    assert deployment["name"] == "user-deployment", f"the deployment has another name; {READ}"
    assert deployment["entrypoint"].endswith("09_user_flow.py:user_flow"), READ
    assert deployment["parameter_openapi_schema"]["properties"]["user_id"] == {
        "default": 101,
        "position": 0,
        "title": "user_id",
        "type": "integer",
    }, f"the flow's parameter is not user_id: int = 101; {READ}"
    assert deployment["status"] == "READY", f"nothing polls for it; {READ}"


@POSIX
def test_a_trigger_runs_the_flow_with_its_parameters(evidence: Evidence) -> None:
    run = evidence.run
    assert run.state == "Completed", f"the triggered run is {run.state}; {READ}"
    assert run.data["parameters"] == {"user_id": 102}, f"the parameters got lost; {READ}"
    assert evidence.records == [(20, "User 102 is Alan Turing", None)], (
        f"the served flow logs something else; {READ}"
    )
    assert [run.task for run in evidence.task_runs] == ["fetch_user_info"], (
        f"the step is another; {READ}"
    )


def test_the_step_returns_the_user_and_refuses_an_unknown_one(
    lesson: ModuleType, slept: list[float]
) -> None:
    with pytest.raises(LookupError, match="no user 999"):
        lesson.fetch_user_info.fn(999)
    assert lesson.fetch_user_info.fn(103) == {"user_id": 103, "name": "Grace Hopper"}, READ
    assert slept == [lesson.USER_SECONDS] * 2, f"the lookup takes another time; {READ}"


@POSIX
def test_the_interval_schedules_runs(evidence: Evidence) -> None:
    (schedule,) = evidence.deployment["schedules"]
    assert schedule["schedule"]["interval"] == 60, f"--interval 60 is not the schedule; {READ}"
    times = sorted(parse_time(run["expected_start_time"]) for run in evidence.scheduled)
    gaps = {(second - first).total_seconds() for first, second in pairwise(times)}
    assert gaps <= {60}, f"the runs are not 60 s apart but {gaps}; {READ}"


@POSIX
def test_it_says_where_it_serves_and_what_to_do_next(evidence: Evidence) -> None:
    assert evidence.output.splitlines()[:5] == [
        f"Serving user-flow/user-deployment at {evidence.url}/api, web page {evidence.url}",
        "Next, in another terminal:",
        "  python 11_get_deployment_id_by_name.py",
        '  python 10_trigger_deployment_by_id.py "$(python 11_get_deployment_id_by_name.py)"',
        "  python 12_trigger_deployment_by_id_name_lookup.py",
    ], f"it does not say where it serves and what to do next; {READ}"


@POSIX
def test_it_starts_a_server_with_the_web_page(evidence: Evidence) -> None:
    assert "<html" in evidence.web_page.lower(), f"there is no web page; {READ}"


@POSIX
def test_a_running_server_is_used_and_left_running(evidence: Evidence) -> None:
    assert f"at {evidence.url}/api" in evidence.second_output, f"it serves elsewhere; {READ}"
    assert evidence.server_after_second, f"it stopped a server that it did not start; {READ}"


@POSIX
def test_sigterm_pauses_the_deployment_and_exits_with_0(evidence: Evidence) -> None:
    assert evidence.second_exit_code == 0, f"{evidence.second_output}; {READ}"
    assert evidence.second_paused, f"the deployment still takes runs that nobody serves; {READ}"
    assert evidence.second_run == "Completed", (
        f"the run that was under way is {evidence.second_run}: it was not waited for; {READ}"
    )


@POSIX
def test_ctrl_c_pauses_the_deployment_and_leaves_no_process(evidence: Evidence) -> None:
    ended = f"exit {evidence.exit_code}: {evidence.farewell}"
    assert evidence.exit_code == 0, f"Ctrl-C is no failure, but {ended}; {READ}"
    assert not evidence.server_in_reach, (
        f"Ctrl-C reaches the server, too: it may end before the deployment is paused; {READ}"
    )
    assert evidence.paused, f"the server stopped before the deployment was paused; {READ}"
    assert evidence.interrupted_run == "Crashed", (
        f"the run that was under way is {evidence.interrupted_run}: it was not waited for; {READ}"
    )
    assert "Traceback" not in evidence.farewell, f"Ctrl-C is no error; {READ}"
    assert evidence.left == [], f"processes are left behind; {READ}"
    port = int(evidence.url.rsplit(":", 1)[1])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, f"the server still runs; {READ}"


@pytest.mark.parametrize("interval", ["soon", "0", "-1", "0.5", "nan", "inf", "1e15", "9" * 9, ""])
def test_a_bad_interval_is_one_clear_line(refusal: Callable[..., str], interval: str) -> None:
    assert refusal(f"--interval={interval}") == (
        f"--interval takes a whole number of seconds, such as 60, not {interval!r}"
    ), READ


@pytest.fixture
def asked(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return how the lesson, in this process, asked Prefect to serve the flow, if it did."""
    asked: dict[str, Any] = {}

    def serve(name: str, **options: Any) -> None:
        asked.update(options, name=name, api_url=PREFECT_API_URL.value())

    # The filter that the lesson adds goes with the test.
    monkeypatch.setattr(logging.getLogger("asyncio"), "filters", [])
    monkeypatch.setattr(lesson.user_flow, "serve", serve)
    monkeypatch.setattr(lesson, "finish", lambda url: asked.update(finished=url))
    return asked


@pytest.fixture
def no_signals(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the lesson set no handler; `signal` itself is Prefect's, too, in other threads."""
    quiet = SimpleNamespace(**{**vars(signal), "signal": Mock()})
    monkeypatch.setattr(lesson, "signal", quiet)


@pytest.fixture
def refusal(
    lesson: ModuleType, asked: dict[str, Any], no_signals: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return a function that runs the lesson with these options, and what it says when it ends."""

    def refusal(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["09_user_flow.py", *options])
        try:
            lesson.main()
        except SystemExit as end:
            return str(end)
        pytest.fail(f"it serves all the same: {asked}; {READ}")

    return refusal


@pytest.fixture
def programs(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Return what stands for the start of a program, which runs until it is ended."""
    start = Mock(**{"return_value.poll.return_value": None})
    monkeypatch.setattr(lesson, "subprocess", SimpleNamespace(Popen=start, DEVNULL=None))
    monkeypatch.setattr(sys, "argv", ["09_user_flow.py"])
    return start


@pytest.mark.usefixtures("no_signals")
def test_with_a_server_at_port_4200_it_starts_none(
    lesson: ModuleType, programs: Mock, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson, "is_prefect", Mock(return_value=True))
    with temporary_settings({PREFECT_API_URL: None}):
        lesson.main()
    assert not programs.called, f"it starts a second server beside the one that runs; {READ}"
    assert asked.get("name") == "user-deployment", f"the deployment has another name; {READ}"
    assert asked["api_url"] == "http://127.0.0.1:4200/api", (
        f"the URL is not pinned: every flow run starts a temporary server of its own; {READ}"
    )
    assert asked.get("finished") == asked["api_url"], (
        f"it ends with the deployment as `.serve()` left it; {READ}"
    )
    assert asked.get("interval") is None, f"nobody asked for an interval; {READ}"
    assert asked.get("limit") == 5, f"without a limit, all runs that are due start at once; {READ}"


@POSIX
def test_sigterm_and_a_closed_terminal_end_it_before_it_serves(
    lesson: ModuleType, programs: Mock, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody answers before the server is started, and then, while it starts, comes the end.
    monkeypatch.setattr(lesson, "is_prefect", Mock(side_effect=[False, KeyboardInterrupt]))
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        with temporary_settings({PREFECT_API_URL: None}):
            lesson.main()
    except KeyboardInterrupt:
        pytest.fail(f"Ctrl-C is no failure, also while the server starts; {READ}")
    else:
        handlers = {signal.getsignal(each) for each in before}
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    server = programs.return_value
    assert programs.called, f"with no server running it starts none; {READ}"
    assert asked == {}, f"it serves on a server that has not answered; {READ}"
    assert handlers == {signal.default_int_handler}, f"not each of them is like Ctrl-C; {READ}"
    assert server.terminate.called, f"the server that it has started stays behind; {READ}"
    assert server.wait.called, f"it does not wait for the end of the server; {READ}"


@pytest.mark.usefixtures("no_signals", "programs", "asked")
@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_an_end_amid_prefects_own_work_is_not_logged_as_an_error(
    lesson: ModuleType,
    end: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    interrupted = Mock(side_effect=end)  # as by a signal's handler

    async def poll() -> None:
        interrupted()

    async def run() -> None:
        async with anyio.create_task_group() as loops:
            loops.start_soon(poll)

    monkeypatch.setattr(lesson.user_flow, "serve", lambda *_, **__: asyncio.run(run()))
    monkeypatch.setattr(lesson, "is_prefect", Mock(return_value=True))
    with suppress(SystemExit):
        lesson.main()
    assert interrupted.called, f"it ends before it serves; {READ}"
    assert "Traceback" not in caplog.text, f"it ends as it was told to, which is no error; {READ}"


@pytest.fixture
def client(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Return what stands for Prefect's client, which reaches a server at port 4200."""
    get_client = MagicMock()
    monkeypatch.setattr(lesson, "get_client", get_client)
    monkeypatch.setattr(lesson, "is_prefect", Mock(return_value=True))
    client: Mock = get_client.return_value.__enter__.return_value
    return client


def test_the_end_waits_for_the_runs_that_are_under_way(
    lesson: ModuleType, client: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_run = Mock()
    children = SimpleNamespace(active_children=Mock(return_value=[flow_run]))
    monkeypatch.setattr(lesson, "multiprocessing", children)
    lesson.finish(lesson.LOCAL_API_URL)
    assert client.pause_deployment.called, f"the deployment is not paused; {READ}"
    assert flow_run.join.called, f"a run cannot tell a server its end that has stopped; {READ}"


def test_a_deployment_that_was_deleted_need_not_be_paused(lesson: ModuleType, client: Mock) -> None:
    client.read_deployment_by_name.side_effect = ObjectNotFound(Exception())
    try:
        lesson.finish(lesson.LOCAL_API_URL)
    except ObjectNotFound:
        pytest.fail(f"what was deleted meanwhile is taken for an error; {READ}")
    assert client.read_deployment_by_name.called, f"it pauses another one; {READ}"


def test_a_server_that_has_gone_away_is_one_clear_line(
    lesson: ModuleType,
    as_written: ModuleType,
    refusal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_vain = f"Prefect's client tries for a minute to reach a server that has gone away; {READ}"
    get_client = Mock(side_effect=TimeoutError(in_vain))
    monkeypatch.setattr(as_written, "get_client", get_client)
    monkeypatch.setattr(lesson, "finish", as_written.finish)
    monkeypatch.setattr(lesson, "is_prefect", Mock(side_effect=[True, False]))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        line = refusal()
    gone = "The server at http://127.0.0.1:1/api has gone away"
    assert line == f"{gone}: user-flow/user-deployment is not paused", READ
    assert not get_client.called, in_vain


def test_another_error_is_not_taken_for_a_server_that_has_gone_away(
    lesson: ModuleType, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson, "finish", Mock(side_effect=ZeroDivisionError))
    monkeypatch.setattr(lesson, "is_prefect", Mock(return_value=True))
    with pytest.raises(ZeroDivisionError):
        refusal()


def test_a_configured_server_that_does_not_answer_is_one_clear_line(
    refusal: Callable[..., str],
) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        line = refusal()
    assert line == (
        "No Prefect server at http://127.0.0.1:1/api: start one, or unset PREFECT_API_URL"
    ), READ


def test_a_web_page_is_no_prefect_server(refusal: Callable[..., str]) -> None:
    page = Answer(200, "<html>", {"Content-Type": "text/html"})
    with stub(lambda _: page) as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        line = refusal()
    assert line.startswith(f"No Prefect server at {server.api_url}: "), READ


@beside
def test_a_server_that_wants_other_credentials_is_one_clear_line() -> None:
    # As a program: .serve() in a process where other threads run flows can bring Prefect to a halt.
    refused = Answer(401, {"exception_message": "Unauthorized"})
    with stub(lambda _: refused) as server:
        result = run_script(script_path("09"), PREFECT_API_URL=server.api_url)
    assert result.stderr == f"The server at {server.api_url} refused: 401\n", READ
    assert result.returncode == 1, f"a refusal is a failure; {READ}"


@beside
def test_a_port_taken_by_another_program_is_one_clear_line(empty_folder: Path) -> None:
    with stub(lambda _: Answer(404, "nothing here")) as server:
        port = server.url.rsplit(":", 1)[1]
        result = run_script(changed_copy(script_path("09"), empty_folder, ("4200", port)))
    assert_one_line(result, f"No server on port {port}: is it taken, or slow?")


def test_the_story_is_the_common_one(path: Path) -> None:
    assert told(path) == {name: STORY[name] for name in ("USER_SECONDS", "USERS")}, READ
