"""Lesson 12 against a real server in trouble: load, restart, lost answers, credentials, a crash.

`pytest -m full tests/test_production.py -s` runs the load at its full size.
"""

import signal
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
from stub import Answer, Request, stub
from support import (
    Api,
    Served,
    Server,
    assert_one_line,
    background,
    changed_copy,
    load_lesson,
    read,
    run_script,
    script_path,
    served_flow,
    server,
    wait_until,
)

READ = read("12")
NAME = "user-flow/user-deployment"
LOGIN = "admin:sesame"
THREADS = 8


@pytest.fixture(scope="module")
def protected(empty_database: Path) -> Iterator[Server]:
    """Return a Prefect server on SQLite that asks for credentials."""
    with server(empty_database, PREFECT_SERVER_API_AUTH_STRING=LOGIN) as running:
        yield running


@pytest.fixture(scope="module")
def api(protected: Server) -> Api:
    """Return its API."""
    return Api(protected.api_url, ("admin", "sesame"))


@pytest.fixture(scope="module")
def served(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return lesson 09 serving on that server, and polling it."""
    folder = tmp_path_factory.mktemp("served")
    changes = (("USER_SECONDS = 1", "USER_SECONDS = 0.1"), ("RUN_LIMIT = 5", "RUN_LIMIT = 1"))
    script = changed_copy(script_path("09"), folder, *changes)
    # One flow run at a time: hundreds are triggered here, and this is about triggering them.
    with served_flow(api, script, folder, PREFECT_API_AUTH_STRING=LOGIN) as it:
        yield it


@pytest.fixture
def path() -> Path:
    """Return the path of lesson 12."""
    return script_path("12")


@pytest.fixture
def lesson(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return lesson 12, with the credentials in its environment."""
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", LOGIN)
    return load_lesson(script_path("12"))


def from_threads(number: int, trigger: Callable[[int], Any]) -> list[Any]:
    """Return what `trigger` returns for 0 up to `number`, called by eight threads at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(trigger, range(number)))


def runs_by_key(api: Api, keys: list[str]) -> Counter[str]:
    """Return how many flow runs the server has for each idempotency key."""
    runs = api.flow_runs(flow_runs={"idempotency_key": {"any_": keys}})
    return Counter(str(run["idempotency_key"]) for run in runs)


def forget(api: Api, deployment_id: str) -> None:
    """Delete the flow runs that wait: else they are run, which has the machine busy for long."""
    waiting = {
        "deployments": {"id": {"any_": [deployment_id]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    for run in api.flow_runs(**waiting):
        with suppress(requests.HTTPError):  # 404: it has begun to run, and has ended
            api.delete(f"/flow_runs/{run['id']}")


def trigger_all(lesson: ModuleType, url: str, keys: list[str]) -> list[str]:
    """Trigger once for each key by lesson 12's own functions; return what failed."""

    def trigger(number: int) -> str | None:
        session = lesson.make_session(url)
        try:
            deployment = lesson.get_deployment(session, url, NAME)
            lesson.trigger_deployment(session, url, deployment, {"user_id": 101}, keys[number])
        except OSError as error:
            return str(error)
        return None

    return [failure for failure in from_threads(len(keys), trigger) if failure]


def test_an_answer_that_gets_lost_does_not_trigger_twice(path: Path, served: Served) -> None:
    """A proxy passes every request on, and drops the first answer to the trigger."""
    key = str(uuid.uuid4())
    dropped: list[int] = []

    def proxy(request: Request) -> Answer:
        answer = requests.request(
            request.method,
            served.api.url.removesuffix("/api") + request.path,
            data=request.text.encode(),
            headers={"Content-Type": "application/json"},
            auth=served.api.auth,
            timeout=30,
        )
        if request.path.endswith("/create_flow_run") and not dropped:
            dropped.append(answer.status_code)
            return Answer(drop=True)
        return Answer(answer.status_code, answer.json())

    with stub(proxy) as between:
        result = run_script(path, "--idempotency-key", key, "--api-url", between.api_url)
    assert dropped == [201], "the server did not act before its answer was dropped"
    assert result.returncode == 0, f"the trigger was given up: {result.stderr}; {READ}"
    (run,) = served.api.flow_runs(flow_runs={"idempotency_key": {"any_": [key]}})
    assert result.stdout.strip() == run["id"], f"not the one flow run under its key; {READ}"


@pytest.mark.parametrize(
    ("login", "hint"),
    [("admin:wrong-secret", "wants other credentials"), (None, "wants other credentials")],
    ids=["wrong", "missing"],
)
@pytest.mark.parametrize("number", ["10", "11", "12"])
def test_refused_credentials_are_one_clear_line(
    served: Served, number: str, login: str | None, hint: str
) -> None:
    settings = {"PREFECT_API_URL": served.api.url}
    if login:
        settings["PREFECT_API_AUTH_STRING"] = login
    name = served.deployment["id"] if number == "10" else NAME
    result = run_script(script_path(number), name, **settings)
    assert_one_line(result, hint if number == "12" else "wants credentials; lesson 12 sends them")
    assert "secret" not in result.stderr, f"a credential is shown; {read(number)}"


def test_wrong_credentials_end_lesson_09_with_one_line(served: Served) -> None:
    settings = {"PREFECT_API_URL": served.api.url, "PREFECT_API_AUTH_STRING": "admin:wrong-secret"}
    result = run_script(script_path("09"), **settings)
    assert result.returncode == 1, f"exit {result.returncode}; {read('09')}"
    assert result.stderr == f"The server at {served.api.url} refused: 401\n", read("09")


def test_a_killed_process_loses_no_queued_run(
    path: Path, protected: Server, api: Api, tmp_path: Path
) -> None:
    """The serving process is killed with one run running and two queued; then it serves again."""
    name = "user-flow/killed"
    changes = (('"user-deployment"', '"killed"'), ("RUN_LIMIT = 5", "RUN_LIMIT = 1"))
    script = changed_copy(script_path("09"), tmp_path, *changes)
    settings = {
        "PREFECT_API_URL": api.url,
        "PREFECT_API_AUTH_STRING": LOGIN,
    }
    command = [sys.executable, str(script)]
    triggers = ["101", "102", "103"]
    with background(command, tmp_path / "first", signal.SIGKILL, **settings):
        wait_until("the flow is served", lambda: api.is_ready(name), 60)
        ids = [
            run_script(path, name, "-p", f"user_id={user}", **settings).stdout.strip()
            for user in triggers
        ]
        wait_until(
            "one run is running", lambda: any(api.flow_run(i).state == "Running" for i in ids), 60
        )
    # SIGKILL took the process and its flow run: nobody could tell the server.
    states = Counter(api.flow_run(i).state for i in ids)
    assert states["Running"] == 1, f"observed {states}, LEARNINGS.md says otherwise; {READ}"
    with background(command, tmp_path / "second", signal.SIGTERM, **settings):
        queued = [i for i in ids if api.flow_run(i).state != "Running"]
        for flow_run_id in queued:
            run = api.ended(flow_run_id, 60)
            assert run.state == "Completed", f"a queued run is {run.state}; {READ}"
        states = Counter(api.flow_run(i).state for i in ids)
    assert states == {"Completed": 2, "Running": 1}, (
        f"observed {states}: what LEARNINGS.md says of the run that was running is not so; {READ}"
    )


# The load comes last: SQLite needs a while to recover from it.


@pytest.mark.parametrize("size", [16, pytest.param(200, marks=pytest.mark.full)])
def test_under_load_no_trigger_is_lost_and_none_doubled(
    lesson: ModuleType, served: Served, record_property: Callable[[str, object], None], size: int
) -> None:
    api, trigger = served.api, f"/deployments/{served.deployment['id']}/create_flow_run"

    def plain(number: int) -> str:
        body = {"parameters": {"user_id": 101}}
        try:
            answer = requests.post(api.url + trigger, json=body, auth=api.auth, timeout=10)
        except requests.RequestException as error:
            return type(error).__name__
        return str(answer.status_code)

    answers = Counter(from_threads(size, plain))
    keys = [str(uuid.uuid4()) for _ in range(size)]
    failures = trigger_all(lesson, api.url, keys)
    report = (
        f"{size} triggers from {THREADS} threads on SQLite: a plain requests.post lost "
        f"{size - answers['201']} ({dict(answers)}), lesson 12 lost {len(failures)}"
    )
    record_property("load", report)
    print(report)
    runs = runs_by_key(api, keys)
    forget(api, served.deployment["id"])
    assert failures == [], f"triggers were given up; {READ}"
    assert runs == Counter(keys), f"not one run for each key; {READ}"


def test_a_server_restart_in_the_middle_loses_and_doubles_nothing(
    lesson: ModuleType, protected: Server, served: Served
) -> None:
    keys = [str(uuid.uuid4()) for _ in range(20)]
    failures: list[str] = []
    load = threading.Thread(
        target=lambda: failures.extend(trigger_all(lesson, protected.api_url, keys))
    )
    load.start()
    wait_until("the first triggers arrived", lambda: len(runs_by_key(served.api, keys)) >= 4)
    protected.stop()
    assert load.is_alive(), "the load ended before the server did: enlarge it"
    protected.start()
    load.join(120)
    runs = runs_by_key(served.api, keys)
    forget(served.api, served.deployment["id"])
    assert failures == [], f"triggers were given up while the server was away; {READ}"
    assert runs == Counter(keys), f"not one run for each key; {READ}"
