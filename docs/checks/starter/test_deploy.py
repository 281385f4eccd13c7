"""Going live with a copy of docs/starter: the cron line, the web handler, the units."""

import importlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from wsgiref.validate import validator

import psutil
import pytest
from machinery import ROOT, Server, changed_copy, run, script, serving
from prefect.settings import Settings
from werkzeug.test import Client, TestResponse

pytestmark = pytest.mark.timeout(600)

STARTER = ROOT / "docs/starter"
DEPLOY = STARTER / "deploy"
BIN = "/opt/pipelines/.venv/bin/"
NAME = "churn-flow/nightly"
UNSERVED = "churn-flow/unserved"  # nothing serves this one, so its runs stay Scheduled
PIPELINE = """
import time

from prefect import flow

@flow
def churn_flow(user_id: int = 101, day: str = "") -> None:
    time.sleep(user_id - 101)
"""


def read_unit(name: str) -> dict[str, str]:
    """Return the settings of a unit, and the first variable of each of its Environment lines."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    return dict(re.findall(r"(?m)^(?:Environment=)?(\w+)=(.+)", text))


UNIT, SERVER_UNIT = read_unit("churn-flow.service"), read_unit("prefect-server.service")


@pytest.fixture(scope="module")
def folder(own_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the starter, as /opt/pipelines is one, with a small pipeline in it."""
    parent = tmp_path_factory.mktemp("opt")
    folder = shutil.copytree(STARTER, parent / "pipelines", ignore=shutil.ignore_patterns(".*"))
    (folder / "pipeline.py").write_text(PIPELINE, encoding="utf-8")
    (folder / ".venv").symlink_to(sys.prefix)
    default = "http://127.0.0.1:4200/api"
    changed_copy(DEPLOY / "churn-flow.env", folder, (default, own_server.api_url))
    own_server.deploy(UNSERVED)
    return folder


@pytest.fixture(scope="module")
def unit(own_server: Server, folder: Path) -> Iterator[psutil.Popen]:
    """Run the program of churn-flow.service in the copy. The last test that uses it stops it."""
    program, file = UNIT["ExecStart"].split()
    assert program == f"{BIN}python", f"the unit starts {program}, which is not the .venv's Python"
    with serving(own_server, folder / file, folder / "service.log", NAME, cwd=folder) as process:
        yield process


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


# --- cron


def run_cron_line(
    folder: Path, *changes: tuple[str, str], day: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the crontab's line as cron does, in this copy of the starter, with changes to its job."""
    (line,) = re.findall(r"(?m)^\d.*", (DEPLOY / "crontab").read_text(encoding="utf-8"))
    command = line.split(maxsplit=5)[5].replace("/opt/pipelines", str(folder))
    assert "%" not in command, "cron reads a % as a new line: put it into nightly.sh"
    here = ("/etc/churn-flow.env", f"{folder}/churn-flow.env")
    changed_copy(DEPLOY / "nightly.sh", folder / "deploy", here, *changes)
    clean = ("env", "-i", "-C", "/", "PATH=/usr/bin:/bin", "sh", "-c")
    return run(f"{command} {day}", program=clean)


@pytest.mark.usefixtures("unit")
def test_the_cron_job_triggers_one_run_a_day_and_prints_nothing(
    own_server: Server, folder: Path
) -> None:
    def days_after_a_job(day: str = "") -> list[str]:
        done = run_cron_line(folder, ("3600", "100"), day=day)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), f"a mail: {done.stdout}"
        nightly = {"name": {"any_": ["nightly"]}}
        runs = own_server.ask("POST", "/flow_runs/filter", deployments=nightly)
        return sorted(it["parameters"]["day"] for it in runs)

    (today,) = days_after_a_job()
    assert days_after_a_job(today) == [today], "a second job of the day triggers another run"
    assert days_after_a_job("2026-01-02") == ["2026-01-02", today], "the key does not name the day"
    lines = (folder / "nightly.log").read_text(encoding="utf-8").splitlines()
    assert sum(line.endswith("exit code 0") for line in lines) == 3, lines
    for line in lines:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line), f"no date: {line}"


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ([("user_id=101", "user_id=100")], 1, "sleep length must be non-negative"),
        ([("user_id=", "user=")], 2, "user_id"),
        ([("3600", "3"), (NAME, UNSERVED)], 3, "goes on"),
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
def web(own_server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module deploy/web.py of the copy, with less patience."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PREFECT_API_URL", own_server.api_url)
    module = importlib.import_module("deploy.web")
    assert module.DEPLOYMENT == NAME, f"nothing serves {module.DEPLOYMENT}"
    monkeypatch.setattr(module, "DEPLOYMENT", UNSERVED)
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 5)
    return module


def send(
    web: ModuleType, caller: str, key: str, path: str = "/churn/101", method: str = "POST"
) -> TestResponse:
    """Send the request for the caller, and return the answer."""
    return Client(validator(web.application)).open(
        path,
        method=method,
        headers={"Idempotency-Key": key},
        environ_overrides={"REMOTE_USER": caller},
        buffered=True,
    )


def test_a_caller_triggers_one_run_for_each_key(own_server: Server, web: ModuleType) -> None:
    requests = [("ada", "1"), ("ada", "1"), ("ada", "2"), ("alan", "1"), ("a", "da1")]
    answers = [send(web, caller, key) for caller, key in requests]
    assert [answer.status_code for answer in answers] == [202] * 5, answers
    first, again, second, *others = [answer.get_json()["id"] for answer in answers]
    assert first == again != second, "a key is not one run"
    assert first not in others, "the key does not name the caller: alan gets the run of ada"
    parameters = own_server.ask("GET", f"/flow_runs/{first}")["parameters"]
    assert parameters == {"user_id": 101}, f"/churn/101 triggers a run of {parameters}"


def test_the_web_handlers_errors_go_to_the_log_and_not_to_the_caller(
    web: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = send(web, "grace", "1").get_json()["id"]
    answers = [send(web, "grace", "1", "/churn/102")]
    monkeypatch.setattr(web, "DEPLOYMENT", "churn-flow/daily")
    answers += [send(web, "grace", "2")]
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    answers += [send(web, "grace", "3")]
    assert [answer.status_code for answer in answers] == [409, 503, 503]
    read = " ".join(answer.text for answer in answers)
    logged = " ".join(log.getMessage() for log in caplog.records if log.name == "deploy.web")
    for detail in (run_id, "churn-flow/daily", "127.0.0.1:1/api"):
        assert detail in logged, f"the log does not name {detail}: {logged}"
    for secret in (run_id, "churn-flow", "127.0.0.1", "/api"):
        assert secret not in read, f"the caller reads {secret}: {read}"


def test_what_is_no_request_of_a_known_caller_is_rejected(web: ModuleType) -> None:
    to_nobody, to_another = ("ada", "1", "/churn/x"), ("ada", "1", "/churn/²")
    requests = [("", "1"), ("ada", ""), to_nobody, to_another, ("ada", "1", "/churn/1", "GET")]
    assert [send(web, *it).status_code for it in requests] == [401, 400, 404, 404, 405]


# --- the units


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    here = (BIN, f"{sys.prefix}/bin/")  # it checks that the programs exist
    units = [changed_copy(path, tmp_path, here) for path in DEPLOY.glob("*.service")]
    result = run("verify", *units, program=["systemd-analyze"])
    assert (result.returncode, result.stderr) == (0, ""), f"systemd complains: {result.stderr}"


def test_at_a_shutdown_the_server_stops_last_and_a_restart_of_it_stops_nothing() -> None:
    after, wants = UNIT.get("After", ""), UNIT.get("Wants", "")
    assert "prefect-server.service" in after, f"After={after}: the server may stop first"
    assert "prefect-server.service" in wants, f"Wants={wants}: the server is not started"
    bound = {"Requires", "BindsTo", "PartOf"} & set(UNIT)
    assert not bound, f"{bound}: a restart of the server stops the runs in progress"


@pytest.mark.parametrize("settings", [UNIT, SERVER_UNIT], ids=["churn-flow", "prefect-server"])
def test_what_ends_by_itself_is_always_started_again(settings: dict[str, str]) -> None:
    restart, pause = settings.get("Restart"), float(settings.get("RestartSec", "0.1"))
    always = restart in ("always", "on-failure")
    assert always, f"Restart={restart}: without a server it ends, and nobody starts it again"
    assert pause > 2, f"RestartSec={pause}: after five starts within 10 s, systemd gives up"


def test_a_stop_waits_for_as_long_as_a_service_can_hold_up_a_run() -> None:
    services = runpy.run_path(str(STARTER / "services.py"))
    longest = 4 * services["TOTAL_SECONDS"] + 3 * services["RETRY_AFTER_LIMIT"]
    given = float(UNIT.get("TimeoutStopSec", "90"))
    assert given >= longest, f"a run may take {longest} s, and systemd kills it after {given} s"


def test_the_server_removes_flow_runs_after_30_days(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in SERVER_UNIT if "VACUUM" in name]:
        monkeypatch.setenv(name, SERVER_UNIT[name])
    vacuum = Settings().server.services.db_vacuum
    assert "flow_runs" in vacuum.enabled_vacuum_types, (
        f"flow runs stay for ever: it removes {vacuum.enabled_vacuum_types}"
    )
    assert vacuum.retention_period.days == 30, f"the unit says 30, not {vacuum.retention_period}"


def test_a_stop_lets_the_run_in_progress_complete(own_server: Server, unit: psutil.Popen) -> None:
    running = own_server.trigger(NAME, user_id=111)  # it takes 10 s
    own_server.wait_for(running, "Running")
    mode, sent = UNIT.get("KillMode", "control-group"), UNIT.get("KillSignal", "SIGTERM")
    send = os.killpg if mode == "control-group" else os.kill
    send(unit.pid, signal.Signals[sent])
    code, state = unit.wait(120), own_server.state(running)
    assert state == "Completed", f"KillMode={mode}, KillSignal={sent}: the run is {state}"
    assert code == 0, f"it ended with exit code {code}"
