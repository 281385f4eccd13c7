"""Lesson 12 against a real server in trouble: load, restart, lost answers, credentials, a crash.

`pytest -m full tests/test_production.py -s` runs the load at its full size.
"""

import signal
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from beside import Keep, early
from forked import run_forked
from stub import Answer, Request, stub
from support import (
    KILL,
    Api,
    Served,
    Server,
    assert_one_line,
    background,
    changed_copy,
    load_lesson,
    read,
    script_path,
    served_flow,
    server,
    wait_until,
)

READ = read("12")
NAME = "user-flow/user-deployment"
LOGIN = "admin:sesame"
THREADS = 8


@early
def protected(empty_database: Path, keep: Keep) -> Server:
    """Return a Prefect server on SQLite that asks for credentials."""
    return keep(
        server(
            empty_database,
            PREFECT_SERVER_API_AUTH_STRING=LOGIN,
            # What is triggered here waits, and to mark it as late can stop SQLite for a minute.
            PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED="false",
        )
    )


@early
def guarded(protected: Server, empty_folder: Path, keep: Keep) -> Served:
    """Return lesson 09 serving on that server, and polling it."""
    # One flow run that does not end, and no other: what is triggered here is not to be run.
    changes = (("USER_SECONDS = 1", "USER_SECONDS = 300"), ("LIMIT = 5", "LIMIT = 1"))
    script = changed_copy(script_path("09"), empty_folder, *changes)
    api = Api(protected.api_url, ("admin", "sesame"))
    return keep(served_flow(api, script, empty_folder, KILL, PREFECT_API_AUTH_STRING=LOGIN))


@pytest.fixture
def path() -> Path:
    """Return the path of lesson 12."""
    return script_path("12")


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


def deploy(api: Api) -> None:
    """Make the deployment of lesson 09, which nothing serves: what is triggered waits."""
    flow, deployment = NAME.split("/")
    flow_id = api.post("/flows/", {"name": flow})["id"]
    accepts = {"type": "object", "properties": {"user_id": {"type": "integer"}}}
    body = {"name": deployment, "flow_id": flow_id, "parameter_openapi_schema": accepts}
    api.post("/deployments/", body)


def trigger_all(api: Api, keys: list[str]) -> list[str]:
    """Trigger once for each key by lesson 12's own functions; return what failed."""
    lesson = load_lesson(script_path("12"))

    def trigger(number: int) -> str | None:
        session = lesson.make_session(api.url)
        session.auth = api.auth
        try:
            deployment = lesson.get_deployment(session, api.url, NAME)
            lesson.trigger_deployment(session, api.url, deployment, {"user_id": 101}, keys[number])
        except OSError as error:
            return str(error)
        return None

    return [failure for failure in from_threads(len(keys), trigger) if failure]


def test_an_answer_that_gets_lost_does_not_trigger_twice(path: Path, guarded: Served) -> None:
    """A proxy passes every request on, and drops the first answer that a run is scheduled."""
    key = str(uuid.uuid4())
    dropped: list[int] = []

    def proxy(request: Request) -> Answer:
        answer = requests.request(
            request.method,
            guarded.api.url.removesuffix("/api") + request.path,
            data=request.text.encode(),
            headers={"Content-Type": "application/json"},
            auth=guarded.api.auth,
            timeout=30,
        )
        if request.path.endswith("/create_flow_run") and answer.ok and not dropped:
            dropped.append(answer.status_code)
            return Answer(drop=True)
        return Answer(answer.status_code, answer.json())

    with stub(proxy) as between:
        result = run_forked(path, "--idempotency-key", key, "--api-url", between.api_url)
    assert dropped == [201], "the server did not act before its answer was dropped"
    assert result.returncode == 0, f"the trigger was given up: {result.stderr}; {READ}"
    (run,) = guarded.api.flow_runs(flow_runs={"idempotency_key": {"any_": [key]}})
    assert result.stdout.strip() == run["id"], f"not the one flow run under its key; {READ}"


def test_the_right_credentials_trigger_and_do_not_show(path: Path, guarded: Served) -> None:
    settings = {"PREFECT_API_URL": guarded.api.url, "PREFECT_API_AUTH_STRING": LOGIN}
    result = run_forked(path, **settings)
    assert result.returncode == 0, f"{result.stderr}; {READ}"
    run = guarded.api.flow_run(result.stdout.strip()).data
    assert run["deployment_id"] == guarded.deployment["id"], f"another one ran; {READ}"
    assert "sesame" not in result.stderr, f"a credential is shown; {READ}"


@pytest.mark.parametrize(
    ("login", "hint"),
    [("admin:wrong-secret", "wants other credentials"), (None, "wants other credentials")],
    ids=["wrong", "missing"],
)
@pytest.mark.parametrize("number", ["10", "11", "12"], ids=["trigger", "lookup", "both"])
def test_refused_credentials_are_one_clear_line(
    guarded: Served, number: str, login: str | None, hint: str
) -> None:
    settings = {"PREFECT_API_URL": guarded.api.url}
    if login:
        settings["PREFECT_API_AUTH_STRING"] = login
    name = guarded.deployment["id"] if number == "10" else NAME
    result = run_forked(script_path(number), name, **settings)
    assert_one_line(result, hint if number == "12" else "wants credentials; lesson 12 sends them")
    assert "secret" not in result.stderr, f"a credential is shown; {read(number)}"


@early
def killed(api: Api, empty_folder: Path) -> list[Counter[str]]:
    """Kill the serving process with one run running and two queued, and serve again.

    Return the states of the three runs after the kill, and when the other process is done.
    """
    name, settings = "user-flow/killed", {"PREFECT_API_URL": api.url}
    endless = (('"user-deployment"', '"killed"'), ("USER_SECONDS = 1", "USER_SECONDS = 300"))
    one_by_one = ("LIMIT = 5", "LIMIT = 1")
    script = changed_copy(script_path("09"), empty_folder, one_by_one, *endless)
    command = [sys.executable, str(script)]

    def states() -> Counter[str]:
        return Counter(api.flow_run(flow_run_id).state for flow_run_id in ids)

    with background(command, empty_folder / "1.log", KILL, **settings):
        wait_until("the flow is served", lambda: api.is_ready(name), 60)
        triggered = [run_forked(script_path("12"), name, **settings) for _ in range(3)]
        ids = [result.stdout.strip() for result in triggered]
        wait_until("one run is running", lambda: states()["Running"], 60)
    # SIGKILL took the process and its flow run: nobody could tell the server.
    after_kill = states()
    changed_copy(script, empty_folder, ("USER_SECONDS = 300", "USER_SECONDS = 0.1"))
    with background(command, empty_folder / "2.log", signal.SIGTERM, **settings):
        wait_until("no run is queued", lambda: states()["Completed"] == 2, 60)
    return [after_kill, states()]


def test_a_killed_process_loses_no_queued_run(killed: list[Counter[str]]) -> None:
    after_kill, at_the_end = killed
    assert after_kill["Running"] == 1, f"observed {after_kill}, LEARNINGS.md says else; {READ}"
    assert at_the_end == {"Running": 1, "Completed": 2}, (
        f"observed {at_the_end}: what LEARNINGS.md says of the run that was running is not so; "
        f"{READ}"
    )


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize("size", [16, pytest.param(200, marks=pytest.mark.full)])
def test_under_load_no_trigger_is_lost_and_none_doubled(
    guarded: Served, record_property: Callable[[str, object], None], size: int
) -> None:
    api, trigger = guarded.api, f"/deployments/{guarded.deployment['id']}/create_flow_run"

    def plain(number: int) -> str:
        body = {"parameters": {"user_id": 101}}
        try:
            answer = requests.post(api.url + trigger, json=body, auth=api.auth, timeout=10)
        except requests.RequestException as error:
            return type(error).__name__
        return str(answer.status_code)

    answers = Counter(from_threads(size, plain))
    keys = [str(uuid.uuid4()) for _ in range(size)]
    failures = trigger_all(api, keys)
    report = (
        f"{size} triggers from {THREADS} threads on SQLite: a plain requests.post lost "
        f"{size - answers['201']} ({dict(answers)}), lesson 12 lost {len(failures)}"
    )
    record_property("load", report)
    print(report)
    runs = runs_by_key(api, keys)
    forget(api, guarded.deployment["id"])
    assert failures == [], f"triggers were given up; {READ}"
    assert runs == Counter(keys), f"not one run for each key; {READ}"


@early
def test_a_server_restart_in_the_middle_loses_and_doubles_nothing(empty_database: Path) -> None:
    # Calmly: this is about a server that is away, and the load above about one that is busy.
    with server(empty_database, calmly=True) as restarted:
        api = Api(restarted.api_url)
        deploy(api)
        keys = [str(uuid.uuid4()) for _ in range(40)]
        with ThreadPoolExecutor(2) as threads:
            before = threads.submit(trigger_all, api, keys[:20])
            wait_until("the first triggers arrived", lambda: runs_by_key(api, keys))
            restarted.stop()
            meanwhile = threads.submit(trigger_all, api, keys[20:])
            restarted.start()
            failures = before.result(120) + meanwhile.result(120)
        runs = runs_by_key(api, keys)
    assert failures == [], f"triggers were given up while the server was away; {READ}"
    assert runs == Counter(keys), f"not one run for each key; {READ}"
