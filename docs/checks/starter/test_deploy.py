"""Going live with a copy of docs/starter: units, cron line, web handler, a new version."""

import difflib
import importlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from uuid import UUID
from wsgiref.validate import validator

import pytest
import requests
from machinery import ROOT, Server, changed_copy, script, server
from recorded import wait_until
from supervisor import BIN, DEPLOY, Service, read_environment, read_unit
from werkzeug.test import Client, TestResponse

pytestmark = pytest.mark.timeout(600)

STARTER = ROOT / "docs/starter"
NAME = "churn-flow/nightly"
UNITS = ["churn-flow.service", "prefect-server.service"]
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


@pytest.fixture(scope="session", autouse=True)
def harness() -> None:
    """Take the place of the harness: these checks have a server."""


@pytest.fixture(scope="module")
def api() -> Iterator[Server]:
    """Return a Prefect server."""
    with server() as running:
        yield running


@pytest.fixture(scope="module")
def folder(api: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the starter, as /opt/pipelines is one, with a small pipeline in it."""
    copy = tmp_path_factory.mktemp("opt") / "pipelines"
    shutil.copytree(STARTER, copy, ignore=shutil.ignore_patterns(".*"))
    (copy / "pipeline.py").write_text(PIPELINE, encoding="utf-8")
    (copy / "words.py").write_text('WORD = "helper old"\n', encoding="utf-8")
    (copy / ".venv").symlink_to(sys.prefix)
    changed_copy(DEPLOY / "churn-flow.env", copy, ("http://127.0.0.1:4200/api", api.api_url))
    return copy


@contextmanager
def served(at: Server, folder: Path) -> Iterator[Service]:
    """Run churn-flow.service during the block, once it polls; stop it then, unless it is."""
    service = Service("churn-flow.service", folder, PREFECT_API_URL=at.api_url)
    service.start()
    try:
        await_poll(at, service)
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def service(api: Server, folder: Path) -> Iterator[Service]:
    """Run churn-flow.service from here on. What stops it, or changes its files, comes before."""
    with served(api, folder) as running:
        yield running


def await_poll(at: Server, service: Service) -> None:
    """Wait until the service's program polls, which it does after it has read its files."""
    begun = datetime.now(UTC)

    def polls() -> bool:
        with suppress(requests.RequestException):
            answer = requests.get(f"{at.api_url}/deployments/name/{NAME}", timeout=10)
            polled = answer.json().get("last_polled")
            return bool(polled) and datetime.fromisoformat(polled) > begun
        return False

    wait_until(f"{NAME} is served (see {service.log})", polls, 120)


def start_run(at: Server, seconds: int = 0) -> str:
    deployment = at.ask("GET", f"/deployments/name/{NAME}")
    body = {"parameters": {"user_id": 101 + seconds}}
    return str(at.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", **body)["id"])


def await_state(at: Server, flow_run_id: str, name: str) -> None:
    wait_until(f"the run is {name}", lambda: at.state(flow_run_id) == name, 90)


def read_logs(at: Server, flow_run_id: str) -> list[str]:
    chosen = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}}
    return [log["message"] for log in at.ask("POST", "/logs/filter", **chosen)]


# --- one text of lessons 09 and 12

COPIES = {  # the copy, its lesson, where the common text begins, and what differs from there on
    "serve.py": (
        "09",
        "def check_server",
        {
            "user-flow/user-deployment": NAME,
            'user_flow.serve("user-deployment"': 'churn_flow.serve("nightly"',
        },
    ),
    "trigger.py": (
        "12",
        '"""',
        {
            "12_trigger_deployment_by_id_name_lookup.py": "trigger.py",
            "user-flow/user-deployment": NAME,
        },
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_its_lesson_but_for_the_names(name: str) -> None:
    number, begin, changes = COPIES[name]
    text = script(number).read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, f"lesson {number} no longer has {old!r}: mend COPIES"
        text = text.replace(old, new)
    expected = text[text.index(begin) :]
    copy = (STARTER / name).read_text(encoding="utf-8")
    actual = copy[copy.index(begin) :]
    lines = difflib.unified_diff(actual.splitlines(), expected.splitlines(), name, number, n=0)
    difference = "\n".join(lines)
    assert not difference, f"{name} and lesson {number} have drifted apart:\n{difference}"


# --- the units


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    here = (BIN, f"{sys.prefix}/bin/")  # it checks that the programs exist
    copies = [changed_copy(DEPLOY / name, tmp_path, here) for name in UNITS]
    result = subprocess.run(
        ["systemd-analyze", "verify", *copies], check=False, capture_output=True, encoding="utf-8"
    )
    assert (result.returncode, result.stderr) == (0, ""), f"systemd complains: {result.stderr}"


def test_at_a_shutdown_the_server_stops_last_and_a_restart_of_it_stops_nothing() -> None:
    unit = read_unit("churn-flow.service")
    assert "prefect-server.service" in unit["After"][0].split(), "the server may stop first"
    assert "prefect-server.service" in unit["Wants"][0].split(), "the server is not started"
    bound = {"Requires", "BindsTo", "PartOf"} & set(unit)
    assert not bound, f"{bound}: a restart of the server stops the runs in progress"


def test_a_restart_loses_no_run(api: Server, folder: Path) -> None:
    with served(api, folder) as service:
        running = start_run(api, seconds=10)
        await_state(api, running, "Running")
        code = service.stop()
    state = api.state(running)
    assert state == "Completed", f"a stop leaves the run in progress {state}, expected Completed"
    assert code == 0, f"expected exit code 0 from a stop, got {code}"
    queued = start_run(api)
    with served(api, folder):
        await_state(api, queued, "Completed")


def test_it_is_started_again_until_the_server_answers(folder: Path) -> None:
    with server() as late:
        late.stop()
        service = Service("churn-flow.service", folder, PREFECT_API_URL=late.api_url)
        service.start()
        try:
            wait_until("it ends", lambda: "no usable Prefect API" in service.log.read_text(), 60)
            late.start()
            await_poll(late, service)
        finally:
            service.stop()


def test_the_servers_unit_removes_old_flow_runs(tmp_path: Path) -> None:
    settings = read_environment(read_unit("prefect-server.service"))
    days = int(settings["PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"]) / 86_400
    chosen = {key: value for key, value in settings.items() if "VACUUM" in key}
    with server(**chosen) as running:
        flow = running.ask("POST", "/flows/", name="old")
        state = {"type": "COMPLETED"}
        ids = [
            running.ask("POST", "/flow_runs/", flow_id=flow["id"], state=state)["id"]
            for _ in range(2)
        ]
        running.stop()
        with closing(sqlite3.connect(running.home / "prefect.db")) as database, database:
            for age, id in zip([days + 1, days - 1], ids, strict=True):
                database.execute(
                    "UPDATE flow_run SET end_time = datetime('now', ?) WHERE id = ?",
                    (f"-{age} days", str(UUID(id))),
                )
        running.start()

        def left() -> list[str]:
            return [run["id"] for run in running.ask("POST", "/flow_runs/filter")]

        wait_until("the run that ended too long ago is removed", lambda: ids[0] not in left(), 60)
        assert left() == ids[1:], "a newer flow run was removed, too"


# --- a new version of the code


def test_a_new_version_under_a_serving_process_mixes_with_it(api: Server, folder: Path) -> None:
    kept = {path: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    with served(api, folder) as service:
        for path in (folder / "pipeline.py", folder / "words.py"):
            changed_copy(path, folder, ("old", "new"))
        mixed = start_run(api)
        await_state(api, mixed, "Completed")
        told = "flow old, constant old, function new, helper new"
        wait_until(f"the run logs: {told}", lambda: told in read_logs(api, mixed))
        (folder / "words.py").unlink()
        broken = start_run(api)
        await_state(api, broken, "Crashed")
    assert read_logs(api, broken) == [], "the server has a log that says why"
    log = service.log.read_text(encoding="utf-8")
    assert "No module named 'words'" in log, "the service's log does not say why"
    for path, text in kept.items():
        path.write_text(text, encoding="utf-8")


# --- cron


def run_cron_line(folder: Path, *changes: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the crontab's line as cron does, in this copy of the starter, with changes to its job."""
    (line,) = [
        line
        for line in (DEPLOY / "crontab").read_text(encoding="utf-8").splitlines()
        if line[:1].isdigit()
    ]
    command = line.split(maxsplit=5)[5].replace(r"\%", "\0")
    assert "%" not in command, "cron reads a % as a new line"
    command = command.replace("\0", "%").replace("/opt/pipelines", str(folder))
    here = ("/etc/churn-flow.env", f"{folder}/churn-flow.env")
    changed_copy(DEPLOY / "nightly.sh", folder / "deploy", here, *changes)
    (folder / "nightly.log").unlink(missing_ok=True)
    return subprocess.run(
        ["sh", "-c", command],
        check=False,
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        encoding="utf-8",
        timeout=180,
    )


def count_runs(at: Server) -> int:
    return int(at.ask("POST", "/flow_runs/count"))


def test_the_cron_job_triggers_one_run_a_day_and_prints_nothing(
    api: Server, folder: Path, service: Service
) -> None:
    before = count_runs(api)
    for _ in range(2):
        result = run_cron_line(folder)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), "cron would mail"
        lines = (folder / "nightly.log").read_text(encoding="utf-8").splitlines()
        for line in lines:
            assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line), f"no date: {line}"
        assert lines[-1].endswith("exit code 0")
    assert count_runs(api) == before + 1, "the key does not name the day: it ran twice"


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
    folder: Path, service: Service, changes: list[tuple[str, str]], code: int, reason: str
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
) -> TestResponse:
    return Client(validator(web.application)).open(
        path,
        method=method,
        headers={"Idempotency-Key": key},
        environ_overrides={"REMOTE_USER": caller},
        buffered=True,
    )


def read_id(answer: TestResponse) -> str:
    return str(json.loads(answer.text)["id"])


def test_a_caller_triggers_one_run_for_each_key(
    api: Server, service: Service, web: ModuleType
) -> None:
    answers = [call(web, "ada", "1"), call(web, "ada", "1"), call(web, "ada", "2")]
    assert [answer.status_code for answer in answers] == [202] * 3, answers[0].text
    first, again, second = [read_id(answer) for answer in answers]
    assert first == again != second, "a key is not one run"
    other = read_id(call(web, "alan", "1"))
    assert other != first, "the key does not name the caller: alan gets the run of ada"
    await_state(api, first, "Completed")


def test_the_web_handlers_errors_go_to_the_log_and_not_to_the_caller(
    service: Service,
    web: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_id = read_id(call(web, "grace", "1"))
    refused = call(web, "grace", "1", "/churn/102")
    monkeypatch.setattr(web, "DEPLOYMENT", "churn-flow/daily")
    unknown = call(web, "grace", "2")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    unreachable = call(web, "grace", "3")
    answers = [refused, unknown, unreachable]
    assert [answer.status_code for answer in answers] == [409, 503, 503]
    for answer in answers:
        for secret in (run_id, "churn-flow", "nightly", "127.0.0.1", "/api"):
            assert secret not in answer.text, f"the caller reads {secret}: {answer.text}"
    logged = " ".join(log.getMessage() for log in caplog.records if log.name == "deploy.web")
    for detail in (run_id, "churn-flow/daily", "127.0.0.1:1/api"):
        assert detail in logged, f"the log does not name {detail}: {logged}"


@pytest.mark.parametrize(
    ("caller", "key", "path", "method", "status"),
    [
        ("", "1", "/churn/101", "POST", 401),
        ("ada", "", "/churn/101", "POST", 400),
        ("ada", "1", "/churn/x", "POST", 404),
        ("ada", "1", "/churn/²", "POST", 404),
        ("ada", "1", "/churn/101", "GET", 405),
    ],
)
def test_the_web_handler_rejects(
    web: ModuleType, caller: str, key: str, path: str, method: str, status: int
) -> None:
    assert call(web, caller, key, path, method).status_code == status
