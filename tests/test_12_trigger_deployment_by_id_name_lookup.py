"""Lesson 12: look up by name and trigger, with no trigger lost and none sent twice."""

import select
import signal
import subprocess
import sys
import time
import uuid
from base64 import b64encode
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import requests
from beside import beside
from forked import run_forked
from stub import (
    BAD_API_URLS,
    BAD_NAMES,
    BAD_PARAMETERS,
    DEPLOYMENT_ID,
    FLOW_RUN_ID,
    MISBEHAVIOUR,
    PARAMETERS,
    UNKNOWN_NAMES,
    Answer,
    Request,
    assert_asks_port_4200,
    prefect_api,
    state,
    stub,
)
from support import (
    POSIX,
    ROOT,
    Served,
    assert_one_line,
    assert_told,
    clean_environment,
    load_afresh,
    read,
    run_script,
    script_path,
    wait_until,
)

pytestmark = pytest.mark.together

READ = read("12")
TRIGGER = f"/api/deployments/{DEPLOYMENT_ID}/create_flow_run"
SCHEDULED = "Scheduled: calm-crow"


def posts(received: list[Request]) -> list[Request]:
    """Return the triggers among the requests."""
    return [request for request in received if request.path == TRIGGER]


# --- the two requests ------------------------------------------------------------------------


def test_it_looks_up_the_name_and_triggers_the_id(path: Path) -> None:
    with stub(prefect_api) as server:
        result = run_script(path, "-p", "user_id=102", "--api-url", server.api_url)
    asked = [(request.method, request.path) for request in server.received]
    assert asked == [
        ("GET", "/api/deployments/name/user-flow/user-deployment"),
        ("POST", TRIGGER),
    ], f"these are other requests than one lookup and one trigger; {READ}"
    body = server.received[1].body
    key = body.pop("idempotency_key", None)
    assert key, f"without an idempotency key a POST that is sent again triggers twice; {READ}"
    assert body == {"parameters": {"user_id": 102}}, f"another body was sent; {READ}"
    assert uuid.UUID(key).version == 4, f"the idempotency key is no fresh UUID; {READ}"
    assert (result.returncode, result.stdout) == (0, f"{FLOW_RUN_ID}\n"), (
        f"stdout is not the flow run's id and nothing else: {result.stdout!r}; {READ}"
    )
    page = f"{server.url}/runs/flow-run/{FLOW_RUN_ID}"
    assert result.stderr.splitlines() == [SCHEDULED, page], f"people are told else; {READ}"


def test_every_invocation_has_a_key_of_its_own(path: Path) -> None:
    with stub(prefect_api) as server:
        for _ in range(2):
            run_forked(path, PREFECT_API_URL=server.api_url)
    first, second = (request.body["idempotency_key"] for request in posts(server.received))
    assert first != second, f"two invocations share a key: the second triggers nothing; {READ}"


def test_a_key_of_the_caller_triggers_once(path: Path) -> None:
    seen: set[str] = set()

    def answer(request: Request) -> Answer:
        reply = prefect_api(request)
        if request.path == TRIGGER:
            key = request.body["idempotency_key"]
            reply.status = 200 if key in seen else 201
            seen.add(key)
        return reply

    with stub(answer) as server:
        url = server.api_url
        first, second = (
            run_forked(path, "--idempotency-key", "nightly-31", "--api-url", url) for _ in range(2)
        )
    assert seen == {"nightly-31"}, f"another key was sent; {READ}"
    assert SCHEDULED in first.stderr, f"it does not say that the run is new; {READ}"
    assert "Already scheduled under this key: calm-crow" in second.stderr, (
        f"it does not say that nothing new was triggered; {READ}"
    )
    assert first.stdout == second.stdout == f"{FLOW_RUN_ID}\n", READ
    assert (first.returncode, second.returncode) == (0, 0), f"both are a success; {READ}"


def test_a_lost_answer_is_no_reason_to_speak_of_a_key(path: Path) -> None:
    def answer(request: Request) -> Answer:
        reply = prefect_api(request)
        reply.status = 200  # as when the first POST has reached the server
        return reply

    with stub(answer) as server:
        result = run_forked(path, "--api-url", server.api_url)
    assert result.stderr.startswith(f"{SCHEDULED}\n"), (
        f"a key that nobody has given was used before: {result.stderr}; {READ}"
    )


def test_the_defaults_are_those_of_lessons_10_and_11(as_written: ModuleType) -> None:
    assert as_written.DEFAULT_API_URL == "http://127.0.0.1:4200/api", READ
    assert as_written.TIMEOUT_SECONDS == 10, f"the timeout is another; {READ}"
    assert as_written.POLL_SECONDS == 1, f"waiting asks at another pace; {READ}"


def test_without_a_setting_it_asks_the_local_server(path: Path, tmp_path: Path) -> None:
    assert_asks_port_4200(path, tmp_path)


def test_https_is_as_patient_as_http(as_written: ModuleType) -> None:
    session = as_written.make_session("https://prefect.invalid/api")
    http = session.get_adapter("http://prefect.invalid/api")
    https = session.get_adapter("https://prefect.invalid/api")
    assert https.max_retries is http.max_retries, f"Prefect Cloud's answers are https; {READ}"


@pytest.mark.parametrize("pair", PARAMETERS)
def test_a_value_is_read_as_json_and_else_as_text(as_written: ModuleType, pair: str) -> None:
    parsed = as_written.parse_parameters([pair])
    assert parsed == PARAMETERS[pair], f"{pair} is read as {parsed}; {READ}"


# --- no trigger lost, none doubled -----------------------------------------------------------


@pytest.mark.parametrize("failures", [1, 3])
@pytest.mark.parametrize("trouble", ["429", "502", "503", "504", "no word", "hanging"])
def test_a_trigger_survives_what_passes(
    hurried: Path, impatient: Path, trouble: str, failures: int
) -> None:
    if trouble.isdigit():
        failing = Answer(int(trouble), {"detail": "try again"})
    else:
        failing = MISBEHAVIOUR[trouble][0]
    script = impatient if failing.hang else hurried
    left = {"GET": failures, "POST": failures}

    def answer(request: Request) -> Answer:
        left[request.method] -= 1
        return failing if left[request.method] >= 0 else prefect_api(request)

    with stub(answer) as server:
        result = run_forked(script, "--api-url", server.api_url)
    assert result.stdout == f"{FLOW_RUN_ID}\n", (
        f"the trigger was lost to {failures} times {trouble}: {result.stderr}; {READ}"
    )
    sent = posts(server.received)
    # So impatient, it may give up on a busy machine's answer, too, and send again.
    enough = len(sent) > failures if failing.hang else len(sent) == failures + 1
    assert enough, f"it was sent {len(sent)} times; {READ}"
    assert len({request.body["idempotency_key"] for request in sent}) == 1, (
        f"the key changes between attempts, so a repeated POST triggers twice; {READ}"
    )


def test_retry_after_is_honoured(path: Path) -> None:
    def answer(request: Request) -> Answer:
        if len(server.received) == 1:
            return Answer(429, {"detail": "slow down"}, {"Retry-After": "1"})
        return prefect_api(request)

    with stub(answer) as server:
        result = run_forked(path, "--api-url", server.api_url)
    assert result.returncode == 0, result.stderr
    waited = server.received[1].at - server.received[0].at
    assert waited >= 1, f"Retry-After asks for 1 s, it came back after {waited:.2f} s; {READ}"


def test_it_gives_up_after_about_a_minute(as_written: ModuleType) -> None:
    retry = as_written.make_session("http://127.0.0.1:1/api").get_adapter("http://x/").max_retries
    growing = [retry.backoff_factor * 2**number for number in range(1, 6)]
    assert max(growing) + retry.backoff_jitter <= retry.backoff_max, (
        f"urllib3 cuts the jitter off at backoff_max: all clients come back together; {READ}"
    )
    assert retry.backoff_jitter >= 1, f"the jitter is shorter than the server is busy; {READ}"
    refused = sum(
        min(retry.backoff_max, retry.backoff_factor * 2**number + retry.backoff_jitter / 2)
        for number in range(1, retry.total)
    )
    hanging = as_written.TIMEOUT_SECONDS * (retry.read + 1)
    told_to_wait = retry.retry_after_max * retry.total
    for seconds in (refused, hanging, told_to_wait):
        assert 30 <= seconds <= 90, f"it gives up after {seconds:g} s; {READ}"


def test_a_trigger_that_was_given_up_tells_its_key(hurried: Path) -> None:
    def answer(request: Request) -> Answer:
        return Answer(drop=True) if request.path == TRIGGER else prefect_api(request)

    with stub(answer) as server:
        result = run_forked(hurried, "--api-url", server.api_url)
    key = posts(server.received)[0].body["idempotency_key"]
    assert_one_line(result, f"--idempotency-key {key}")


# --- only parameters that the flow accepts ---------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "hint"),
    [
        ("usr_id=1", "There is no parameter 'usr_id'; did you mean 'user_id'?"),
        ("zzz=1", "The flow accepts ['user_id']"),
    ],
)
def test_an_unknown_parameter_is_refused_before_it_is_sent(
    path: Path, parameter: str, hint: str
) -> None:
    with stub(prefect_api) as server:
        result = run_forked(path, "-p", parameter, "--api-url", server.api_url)
    assert_one_line(result, hint)
    assert posts(server.received) == [], f"the API accepts it, and the run crashes; {READ}"


@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_a_parameter_that_cannot_be_read_is_not_sent(path: Path, case: str) -> None:
    options, hint = BAD_PARAMETERS[case]
    with stub(prefect_api) as server:
        assert_one_line(run_forked(path, *options, "--api-url", server.api_url), hint)
    assert server.received == [], f"a bad parameter was sent; {READ}"


def test_a_refusal_of_the_server_is_one_clear_line(path: Path, served: Served) -> None:
    result = run_forked(path, "-p", "user_id=x", PREFECT_API_URL=served.api.url)
    assert_one_line(result, "'x' is not of type 'integer'")


# --- waiting ---------------------------------------------------------------------------------


@beside
def test_wait_follows_the_served_flow_to_its_end(served: Served) -> None:
    command = (script_path("12"), "-p", "user_id=103", "--wait")
    result = run_forked(*command, PREFECT_API_URL=served.api.url)
    assert result.returncode == 0, f"Completed exits {result.returncode}: {result.stderr}; {READ}"
    run = served.api.flow_run(result.stdout.strip())
    assert (run.state, run.data["parameters"]) == ("Completed", {"user_id": 103}), READ
    states = served.api.get("/flow_run_states/", flow_run_id=run.id)
    told = [f"{one['timestamp'][11:19]} {one['name']}" for one in states]
    assert result.stderr.splitlines()[2:] == told, (
        f"not every state is told, once, in order and with its time; {READ}"
    )


@beside
def test_wait_fails_when_the_flow_run_fails(served: Served) -> None:
    command = (script_path("12"), "-p", "user_id=999", "--wait")
    result = run_forked(*command, PREFECT_API_URL=served.api.url)
    assert result.returncode == 1, f"Failed exits {result.returncode}; {READ}"
    assert result.stderr.splitlines()[-1] == (
        "Failed: Flow run encountered an exception: LookupError: no user 999"
    ), f"the state's message is not told; {READ}"
    assert served.api.flow_run(result.stdout.strip()).state == "Failed", READ


@pytest.mark.parametrize(
    ("last", "code"), [("Completed", 0), ("Failed", 1), ("Crashed", 1), ("Cancelled", 1)]
)
def test_the_exit_code_is_the_outcome(hurried: Path, last: str, code: int) -> None:
    def answer(request: Request) -> Answer:
        if request.path.startswith("/api/flow_run_states/"):
            return Answer(200, [state("Scheduled"), state(last, "in\ntwo lines")])
        return prefect_api(request)

    with stub(answer) as server:
        result = run_forked(hurried, "--wait", "--api-url", server.api_url)
    assert result.returncode == code, f"{last} exits {result.returncode}; {READ}"
    if code:
        assert result.stderr.splitlines()[-1] == f"{last}: in two lines", READ
    assert result.stdout == f"{FLOW_RUN_ID}\n", f"the id is told in any case; {READ}"


def test_after_the_timeout_it_says_that_the_run_goes_on(hurried: Path) -> None:
    def answer(request: Request) -> Answer:
        if request.path.startswith("/api/flow_run_states/"):
            return Answer(200, [state("Scheduled"), state("Running")])
        return prefect_api(request)

    with stub(answer) as server:
        started = time.monotonic()
        result = run_forked(hurried, "--wait", "--timeout", "1", "--api-url", server.api_url)
        took = time.monotonic() - started
    assert result.returncode == 3, f"the timeout exits {result.returncode}, not 3; {READ}"
    assert f"{FLOW_RUN_ID} goes on" in result.stderr.splitlines()[-1], READ
    assert result.stderr.count("Running") == 1, f"a state is told more than once; {READ}"
    assert 1 <= took < 10, f"--timeout 1 took {took:.1f} s; {READ}"


def test_it_waits_for_five_minutes_unless_told_otherwise(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = load_afresh(path)
    told: list[float] = []

    def wait(*arguments: Any) -> dict[str, str]:
        told.append(arguments[-1])
        return {"type": "COMPLETED"}

    monkeypatch.setattr(lesson, "wait_for_flow_run", wait)
    for options in ([], ["--timeout", "5"]):
        with stub(prefect_api) as server:
            argv = ["12", "--wait", "--api-url", f"{server.api_url}/", *options]
            monkeypatch.setattr(sys, "argv", argv)
            lesson.main()
    assert told == [300, 5], f"--timeout is 300 s by default, and else as asked for; {READ}"


def test_waiting_asks_every_second_and_not_longer_than_it_was_told_to(path: Path) -> None:
    lesson = load_afresh(path)
    now, waited, slept = 0.0, [], []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    def hang(*_: Any, timeout: float, **__: Any) -> None:
        nonlocal now
        waited.append(timeout)
        now += timeout + 0.1  # a timeout is never early
        raise requests.ReadTimeout

    vars(lesson)["time"] = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    with pytest.raises(TimeoutError, match=f"flow run {FLOW_RUN_ID} goes on after 25 s"):
        lesson.wait_for_flow_run(Mock(request=hang), "http://127.0.0.1:1/api", FLOW_RUN_ID, 25)
    assert slept == pytest.approx([1, 1, 0]), f"it does not ask once a second; {READ}"
    assert waited == pytest.approx([10, 10, 2.8]), f"it waits longer than --timeout; {READ}"


def test_waiting_asks_once_at_a_time(as_written: ModuleType) -> None:
    session = as_written.make_session("http://127.0.0.1:1/api")
    asking = session.get_adapter("http://127.0.0.1:1/api/flow_run_states/?flow_run_id=x")
    assert asking.max_retries.total == 0, (
        f"a server that is away would hold the wait for a minute, past its --timeout; {READ}"
    )


def test_waiting_survives_a_server_that_is_away(hurried: Path) -> None:
    away = [Answer(drop=True), Answer(503, "starting"), Answer(500, "starting"), Answer(drop=True)]

    def answer(request: Request) -> Answer:
        if request.path.startswith("/api/flow_run_states/") and away:
            return away.pop()
        return prefect_api(request)

    with stub(answer) as server:
        result = run_forked(hurried, "--wait", "--api-url", server.api_url)
    assert (result.returncode, away) == (0, []), f"it gave up: {result.stderr}; {READ}"
    assert result.stderr.splitlines()[-1] == "12:34:56 Completed", READ


def test_waiting_for_a_deleted_run_ends(hurried: Path) -> None:
    def answer(request: Request) -> Answer:
        if request.path.startswith("/api/flow_run_states/"):
            return Answer(200, [])
        return prefect_api(request)

    with stub(answer) as server:
        result = run_forked(hurried, "--wait", "--api-url", server.api_url)
    assert result.returncode == 1, READ
    assert result.stderr.splitlines()[-1] == f"The flow run {FLOW_RUN_ID} was deleted", READ


@pytest.mark.parametrize("change", [{"status": "NOT_READY"}, {"paused": True}])
def test_it_says_at_once_when_nothing_serves_the_deployment(
    path: Path, change: dict[str, object]
) -> None:
    def answer(request: Request) -> Answer:
        reply = prefect_api(request)
        if request.method == "GET":
            reply.body.update(change)
        return reply

    with stub(answer) as server:
        result = run_forked(path, "--api-url", server.api_url)
    assert result.stderr.startswith("Nothing serves user-flow/user-deployment now"), (
        f"a run that nobody picks up is not announced; {READ}"
    )
    assert result.stdout == f"{FLOW_RUN_ID}\n", f"the run is scheduled all the same; {READ}"


@POSIX
def test_ctrl_c_while_waiting_says_that_the_run_goes_on(path: Path) -> None:
    def answer(request: Request) -> Answer:
        if request.path.startswith("/api/flow_run_states/"):
            return Answer(200, [state("Running")])
        return prefect_api(request)

    with stub(answer) as server:
        command = [sys.executable, str(path), "--wait", "--api-url", server.api_url]
        pipe = subprocess.PIPE
        environment = clean_environment(PYTHONUNBUFFERED="")
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        wait_until("it waits", lambda: len(server.received) > 2)
        assert process.stdout
        is_told, _, _ = select.select([process.stdout], [], [], 0)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 130, f"Ctrl-C exits {process.returncode}: {errors}; {READ}"
    assert errors.splitlines()[-1] == "Interrupted; the flow run goes on", READ
    assert output == f"{FLOW_RUN_ID}\n", READ
    assert is_told, f"a program that reads the id gets it only at the end; {READ}"


# --- credentials -----------------------------------------------------------------------------

BASIC = f"Basic {b64encode(b'admin:sesame').decode()}"


@pytest.mark.parametrize(
    ("settings", "header"),
    [
        ({}, None),
        ({"PREFECT_API_KEY": "pnu_sesame"}, "Bearer pnu_sesame"),
        ({"PREFECT_API_KEY": "pnu_sesame\n"}, "Bearer pnu_sesame"),
        ({"PREFECT_API_AUTH_STRING": "admin:sesame"}, BASIC),
        ({"PREFECT_API_KEY": "pnu_x", "PREFECT_API_AUTH_STRING": "admin:sesame"}, BASIC),
    ],
    ids=["none", "key", "key of a file", "login", "both, as Prefect's own client does"],
)
def test_the_credentials_of_the_environment_are_sent(
    path: Path, tmp_path: Path, settings: dict[str, str], header: str | None
) -> None:
    # A .netrc would win over a header that is merely set on the session, or over none.
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password other\n")
    settings = {**settings, "NETRC": str(netrc)}
    with stub(prefect_api) as server:
        result = run_forked(path, "--wait", "--api-url", server.api_url, **settings)
    sent = {request.headers.get("Authorization") for request in server.received}
    assert sent == {header}, f"the credentials are not sent with every request; {READ}"
    assert len(server.received) == 3, result.stderr
    assert "sesame" not in result.stdout + result.stderr, f"a credential is shown; {READ}"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_credentials_do_not_follow_a_redirect(hurried: Path, status: int) -> None:
    with stub(prefect_api) as other:
        elsewhere = Answer(status, "", {"Location": f"{other.api_url}/deployments/name/a/b"})
        with stub(lambda _: elsewhere) as server:
            result = run_forked(hurried, "--api-url", server.api_url, PREFECT_API_KEY="pnu_sesame")
    assert_one_line(result, "redirects elsewhere")
    assert other.received == [], f"the credentials went to another host; {READ}"


@pytest.mark.parametrize(
    ("url", "settings", "hint"),
    [
        ("http://admin:sesame@127.0.0.1:1/api", {}, "An API URL carries no credentials"),
        ("http://127.0.0.1:1/api", {"PREFECT_API_KEY": "sesame\nX: y"}, "PREFECT_API_KEY has"),
        ("http://127.0.0.1:1/api", {"PREFECT_API_KEY": "sesamé"}, "PREFECT_API_KEY has"),
        ("http://127.0.0.1:1/api", {"PREFECT_API_KEY": "sesame"}, "No answer from"),
    ],
    ids=["in the URL", "two lines", "not ASCII", "unreachable"],
)
def test_credentials_never_show(
    hurried: Path, url: str, settings: dict[str, str], hint: str
) -> None:
    result = run_forked(hurried, "--api-url", url, **settings)
    assert_one_line(result, hint)
    assert "sesam" not in result.stderr, f"a credential is shown; {READ}"


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://prefect.invalid/api", True),
        ("https://prefect.invalid/api", False),
        ("http://127.0.0.1:1/api", False),
        ("http://localhost:1/api", False),
        ("http://[::1]:1/api", False),
    ],
)
def test_unencrypted_credentials_draw_a_warning(
    as_written: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
    warned: bool,
) -> None:
    as_written.make_session(url)
    assert capsys.readouterr().err == "", f"a warning without credentials; {READ}"
    for name in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "sesame")
        as_written.make_session(url)
        monkeypatch.delenv(name)
        told = "Warning: http:// sends the credentials unencrypted" in capsys.readouterr().err
        assert told is warned, f"{name} at {url} draws {'no' if warned else 'a'} warning; {READ}"


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNKNOWN_NAMES)
def test_an_unknown_name_is_quoted_and_reported(path: Path, name: str) -> None:
    with stub(prefect_api) as server:
        result = run_forked(path, name, "--api-url", server.api_url)
    assert server.received[0].path == UNKNOWN_NAMES[name], (
        f"the name is not quoted as one part of the path; {READ}"
    )
    assert_one_line(result, f"There is no deployment with the name {name!r}; see `prefect")


def test_an_unknown_name_lists_the_near_ones(path: Path, served: Served) -> None:
    result = run_forked(path, "user-flow/user-deploymnt", PREFECT_API_URL=served.api.url)
    assert_one_line(
        result,
        "There is no deployment with the name 'user-flow/user-deploymnt'; "
        "see user-flow/user-deployment",
    )


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_is_not_sent(path: Path, name: str) -> None:
    with stub(prefect_api) as server:
        assert_one_line(run_forked(path, name, "--api-url", server.api_url), "FLOW/DEPLOYMENT")
    assert server.received == [], f"{name!r} was sent, though it is no FLOW/DEPLOYMENT; {READ}"


@pytest.mark.parametrize("case", BAD_API_URLS)
def test_a_bad_api_url_is_one_clear_line(hurried: Path, case: str) -> None:
    url, hint = BAD_API_URLS[case]
    assert_one_line(run_forked(hurried, "--api-url", url), hint)


@pytest.mark.parametrize("case", MISBEHAVIOUR)
@pytest.mark.parametrize("where", ["lookup", "trigger"])
def test_a_misbehaving_server_is_one_clear_line(
    hurried: Path, impatient: Path, case: str, where: str
) -> None:
    misbehaviour, hint = MISBEHAVIOUR[case]
    script = impatient if misbehaviour.hang else hurried

    def answer(request: Request) -> Answer:
        healthy = where == "trigger" and request.method == "GET"
        return prefect_api(request) if healthy else misbehaviour

    with stub(answer) as server:
        assert_one_line(run_forked(script, "--api-url", server.api_url), hint)


def test_it_needs_nothing_but_requests(path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules['prefect'] = None\n"
        f"sys.argv = ['{path.name}', '--help']\n"
        f"runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    assert result.returncode == 0, f"it stands for another application; {READ}: {result.stderr}"
    assert_told(
        result.stdout,
        "Trigger a deployment by its name.",
        "--param KEY=VALUE",
        "default: PREFECT_API_URL, or port 4200",
        "--idempotency-key KEY",
        "trigger once for each KEY",
        "exit 0 only if the run completes",
        "--timeout SECONDS",
        "default 300",
    )


def test_the_lesson_stays_readable(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 242, f"lesson 12 has grown to {len(lines)} lines; {READ}"
    assert not any(line.startswith("class ") for line in lines), f"plain functions only; {READ}"
