"""Going live with a copy of docs/starter: units, a new version, the cron line, the web handler."""

import importlib
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from wsgiref.validate import validator

import pytest
from machinery import ROOT, Server, background, changed_copy, script, server
from recorded import wait_until
from werkzeug.test import Client

pytestmark = pytest.mark.timeout(600)

STARTER = ROOT / "docs/starter"
DEPLOY = STARTER / "deploy"
BIN = "/opt/pipelines/.venv/bin/"
NAME = "churn-flow/nightly"
PIPELINE = '''
import time
from datetime import date

import words
from prefect import flow, get_run_logger

VERSION = "constant old"

def plain() -> str:
    return "function old"

@flow
def churn_flow(user_id: int = 101, day: date | None = None) -> None:
    """Take as many seconds as the user's id, less 101."""
    get_run_logger().info(f"flow old, {VERSION}, {plain()}, {words.WORD}")
    time.sleep(user_id - 101)
'''


def read_unit(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the settings of a unit, and the variables of its Environment lines."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    words = shlex.split(" ".join(re.findall(r"(?m)^Environment=(.+)", text)))
    return dict(re.findall(r"(?m)^(\w+)=(.+)", text)), dict(word.split("=", 1) for word in words)


UNIT, VARIABLES = read_unit("churn-flow.service")


@pytest.fixture(scope="module")
def api() -> Iterator[Server]:
    """Return a server that removes old flow runs as its unit says, but looks for them often."""
    _, variables = read_unit("prefect-server.service")
    vacuum = {name: value for name, value in variables.items() if "VACUUM" in name}
    with server(**vacuum, PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS="2") as running:
        yield running


def copy_starter(parent: Path, api: Server) -> Path:
    """Return a copy of the starter, as /opt/pipelines is one, with a small pipeline in it."""
    folder = shutil.copytree(STARTER, parent / "pipelines", ignore=shutil.ignore_patterns(".*"))
    (folder / "pipeline.py").write_text(PIPELINE, encoding="utf-8")
    (folder / "words.py").write_text('WORD = "helper old"\n', encoding="utf-8")
    (folder / ".venv").symlink_to(sys.prefix)
    changed_copy(DEPLOY / "churn-flow.env", folder, ("http://127.0.0.1:4200/api", api.api_url))
    return folder


@contextmanager
def unit_started(folder: Path, api: Server) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program of churn-flow.service in the folder during the block, as systemd does."""
    program, *words = shlex.split(UNIT["ExecStart"])
    assert program == f"{BIN}python", f"the unit starts {program}, which is not the .venv's Python"
    settings: dict[str, Any] = {
        **VARIABLES,
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": api.api_url,
    }
    log = folder / "service.log"
    with background(*words, cwd=folder, log=log, stop=signal.SIGINT, **settings) as process:
        yield process


def stop_unit(process: subprocess.Popen[bytes]) -> int:
    """Stop the program as systemd does, by the unit's settings; return its exit code."""
    to_all = UNIT.get("KillMode", "control-group") == "control-group"
    sent = signal.Signals[UNIT.get("KillSignal", "SIGTERM")]
    (os.killpg if to_all else os.kill)(process.pid, sent)
    with suppress(subprocess.TimeoutExpired):
        process.wait(float(UNIT.get("TimeoutStopSec", "90")))
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def await_served(folder: Path) -> None:
    """Wait until the program in the folder serves the flow for the first time."""
    log = folder / "service.log"
    wait_until(f"{NAME} is served (see {log})", lambda: "being served" in log.read_text(), 120)


@pytest.fixture(scope="module")
def folder(api: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a copy of the starter whose flow is served."""
    folder = copy_starter(tmp_path_factory.mktemp("opt"), api)
    with unit_started(folder, api):
        await_served(folder)
        yield folder


def trigger(api: Server, seconds: int = 0) -> str:
    """Trigger a run that takes so many seconds, and return its id."""
    deployment = api.ask("GET", f"/deployments/name/{NAME}")
    body = {"parameters": {"user_id": 101 + seconds}}
    return str(api.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", **body)["id"])


def await_state(api: Server, flow_run_id: str, name: str) -> None:
    """Wait until the run is in this state."""
    wait_until(f"the run is {name}", lambda: api.state(flow_run_id) == name, 90)


# --- the copies of lessons 09 and 12


@pytest.mark.parametrize(
    ("number", "name", "begin"), [("09", "serve.py", "def check_server"), ("12", "trigger.py", "")]
)
def test_a_copy_is_its_lesson_but_for_the_names(number: str, name: str, begin: str) -> None:
    lesson = script(number)
    text = lesson.read_text(encoding="utf-8").replace(lesson.name, name)
    text = text.replace("user-flow/user-deployment", NAME)
    text = text.replace('user_flow.serve("user-deployment"', 'churn_flow.serve("nightly"')
    copy = (STARTER / name).read_text(encoding="utf-8")
    assert copy[copy.index(begin) :].splitlines() == text[text.index(begin) :].splitlines(), (
        f"{name} and {lesson.name} have drifted apart: see CONTRIBUTING.md"
    )


# --- the units


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    here = (BIN, f"{sys.prefix}/bin/")  # it checks that the programs exist
    units = [changed_copy(path, tmp_path, here) for path in DEPLOY.glob("*.service")]
    result = subprocess.run(
        ["systemd-analyze", "verify", *units], check=False, capture_output=True, encoding="utf-8"
    )
    assert (result.returncode, result.stderr) == (0, ""), f"systemd complains: {result.stderr}"


def test_at_a_shutdown_the_server_stops_last_and_a_restart_of_it_stops_nothing() -> None:
    assert "prefect-server.service" in UNIT["After"].split(), "the server may stop first"
    assert "prefect-server.service" in UNIT["Wants"].split(), "the server is not started"
    bound = {"Requires", "BindsTo", "PartOf"} & set(UNIT)
    assert not bound, f"{bound}: a restart of the server stops the runs in progress"


def test_the_servers_unit_removes_old_flow_runs(api: Server) -> None:
    _, variables = read_unit("prefect-server.service")
    days = int(variables["PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"]) / 86_400
    flow = api.ask("POST", "/flows/", name="old")
    ended = {"flow_id": flow["id"], "state": {"type": "COMPLETED"}}
    old, new = [api.ask("POST", "/flow_runs/", **ended)["id"] for _ in range(2)]
    with closing(sqlite3.connect(api.home / "prefect.db", timeout=60)) as database, database:
        for id, age in ((old, days + 1), (new, days - 1)):
            database.execute(
                "UPDATE flow_run SET end_time = datetime('now', ?) WHERE id = ?",
                (f"-{age} days", id),
            )

    def left() -> list[str]:
        return [run["id"] for run in api.ask("POST", "/flow_runs/filter")]

    wait_until("the run that ended too long ago is removed", lambda: old not in left(), 60)
    assert new in left(), "a newer flow run was removed, too"


def test_a_restart_loses_no_run_and_a_missing_server_is_waited_for(
    api: Server, tmp_path: Path
) -> None:
    folder = copy_starter(tmp_path, api)
    with unit_started(folder, api) as process:
        await_served(folder)
        running = trigger(api, seconds=10)
        await_state(api, running, "Running")
        code = stop_unit(process)
    state = api.state(running)
    assert state == "Completed", f"a stop leaves the run in progress {state}, expected Completed"
    assert code == 0, f"expected exit code 0 from a stop, got {code}"
    queued = trigger(api)
    api.stop()
    with unit_started(folder, api) as process:
        code = process.wait(60)
    restart = UNIT.get("Restart", "no")
    assert restart == "always" or (restart == "on-failure" and code), (
        f"without a server, the program exits with {code}, and Restart={restart} leaves it so"
    )
    api.start()
    with unit_started(folder, api):
        await_state(api, queued, "Completed")


def test_a_new_version_under_a_serving_process_mixes_with_it(api: Server, tmp_path: Path) -> None:
    folder = copy_starter(tmp_path, api)
    with unit_started(folder, api):
        await_served(folder)
        for path in (folder / "pipeline.py", folder / "words.py"):
            changed_copy(path, folder, ("old", "new"))
        await_state(api, trigger(api), "Completed")
        (folder / "words.py").unlink()
        await_state(api, trigger(api), "Crashed")
    log = (folder / "service.log").read_text(encoding="utf-8")
    assert "flow old, constant old, function new, helper new" in log, "README.md says so"
    assert "No module named 'words'" in log, "the service's log does not say why"


# --- cron


def run_cron_line(folder: Path, *changes: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the crontab's line as cron does, in this copy of the starter, with changes to its job."""
    (line,) = re.findall(r"(?m)^\d.*", (DEPLOY / "crontab").read_text(encoding="utf-8"))
    command = line.split(maxsplit=5)[5]
    assert "%" not in command, "cron reads a % as a new line: put it into nightly.sh"
    here = ("/etc/churn-flow.env", f"{folder}/churn-flow.env")
    changed_copy(DEPLOY / "nightly.sh", folder / "deploy", here, *changes)
    return subprocess.run(
        ["sh", "-c", command.replace("/opt/pipelines", str(folder))],
        check=False,
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        encoding="utf-8",
        timeout=180,
    )


def test_the_cron_job_triggers_one_run_a_day_and_prints_nothing(api: Server, folder: Path) -> None:
    before = api.ask("POST", "/flow_runs/count")
    for _ in range(2):
        result = run_cron_line(folder)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), "cron would mail"
    lines = (folder / "nightly.log").read_text(encoding="utf-8").splitlines()
    assert sum(line.endswith("exit code 0") for line in lines) == 2, lines
    for line in lines:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line), f"no date: {line}"
    count = api.ask("POST", "/flow_runs/count") - before
    assert count == 1, f"the key does not name the day: it triggered {count} runs"


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ([("user_id=101", "user_id=100")], 1, "sleep length must be non-negative"),
        ([("user_id=", "user=")], 2, "user_id"),
        ([("3600", "3"), ("user_id=101", "user_id=110")], 3, "goes on"),
        ([("3600", "1"), ("set +a", "PREFECT_API_URL=http://127.0.0.1:1/api")], 4, "refused"),
    ],
)
def test_the_cron_jobs_alarm_has_the_reason(
    folder: Path, changes: list[tuple[str, str]], code: int, reason: str
) -> None:
    result = run_cron_line(folder, *changes, ("churn-101", f"churn-case-{code}"))
    assert result.returncode == 1
    assert result.stdout, "nothing is printed, so cron mails no alarm"
    assert f" exit code {code}\n" in result.stdout, f"another trouble: {result.stdout}"
    assert reason in result.stdout, f"cron does not mail why: {result.stdout}"
    is_retried = "prefect flow-run retry" in result.stdout
    assert is_retried == (code == 1), f"how to run a failed night again: {result.stdout}"
    assert result.stdout.splitlines()[1] in (folder / "nightly.log").read_text(encoding="utf-8")


# --- the web handler


@pytest.fixture
def web(api: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module deploy/web.py of the copy, with less patience."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PREFECT_API_URL", api.api_url)
    module = importlib.import_module("deploy.web")
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 5)
    return module


def call(
    web: ModuleType, caller: str, key: str, path: str = "/churn/101", method: str = "POST"
) -> tuple[int, dict[str, Any]]:
    """Send the request for the caller, and return the answer's status and JSON."""
    answer = Client(validator(web.application)).open(
        path,
        method=method,
        headers={"Idempotency-Key": key},
        environ_overrides={"REMOTE_USER": caller},
        buffered=True,
    )
    return answer.status_code, answer.get_json()


def test_a_caller_triggers_one_run_for_each_key(api: Server, web: ModuleType) -> None:
    requests = [("ada", "1"), ("ada", "1"), ("ada", "2"), ("alan", "1")]
    answers = [call(web, caller, key) for caller, key in requests]
    assert [status for status, _ in answers] == [202] * 4, answers
    first, again, second, other = [json["id"] for _, json in answers]
    assert first == again != second, "a key is not one run"
    assert other != first, "the key does not name the caller: alan gets the run of ada"
    await_state(api, first, "Completed")


def test_the_web_handlers_errors_go_to_the_log_and_not_to_the_caller(
    web: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = call(web, "grace", "1")[1]["id"]
    answers = [call(web, "grace", "1", "/churn/102")]
    monkeypatch.setattr(web, "DEPLOYMENT", "churn-flow/daily")
    answers += [call(web, "grace", "2")]
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    answers += [call(web, "grace", "3")]
    assert [status for status, _ in answers] == [409, 503, 503]
    for secret in (run_id, "churn-flow", "nightly", "127.0.0.1", "/api"):
        assert secret not in str(answers), f"the caller reads {secret}: {answers}"
    logged = " ".join(log.getMessage() for log in caplog.records if log.name == "deploy.web")
    for detail in (run_id, "churn-flow/daily", "127.0.0.1:1/api"):
        assert detail in logged, f"the log does not name {detail}: {logged}"


def test_the_web_handler_rejects_what_is_no_request_of_a_known_caller(web: ModuleType) -> None:
    answers = {
        "no caller": call(web, "", "1"),
        "no key": call(web, "ada", ""),
        "no user": call(web, "ada", "1", "/churn/x"),
        "no digit": call(web, "ada", "1", "/churn/²"),
        "no POST": call(web, "ada", "1", method="GET"),
    }
    statuses = {name: status for name, (status, _) in answers.items()}
    expected = {"no caller": 401, "no key": 400, "no user": 404, "no digit": 404, "no POST": 405}
    assert statuses == expected
