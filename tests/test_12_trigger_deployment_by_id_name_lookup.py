"""Lesson 12: look up by name and trigger, with no trigger lost and none sent twice."""

import json
import logging
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
import requests
from pytest_httpserver import HTTPServer
from recorded import read_flow_run, wait_until
from werkzeug import Request, Response

pytest_plugins = ["programs"]  # the fixtures `run_cli` and `served`

NAME = "user-flow/user-deployment"
ID = "11111111-2222-4333-8444-555555555555"
SHORTEN = ["REQUEST_SECONDS", "BACKOFF_SECONDS", "BACKOFF_MAX_SECONDS", "POLL_SECONDS"]
RUN_ID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
LOOKUP = f"/api/deployments/name/{NAME}"
TRIGGER = f"/api/deployments/{ID}/create_flow_run"
STATES = "/api/flow_run_states/"
ACCEPTED: Any = {"properties": {"user_id": {}, "limit": {}}}
DEPLOYMENT = {"id": ID, "parameters": {"limit": 7}, "parameter_openapi_schema": ACCEPTED}
GIVEN = {"user_id": 102}
RUN = {"id": RUN_ID, "name": "calm-crow", "deployment_id": ID, "state": {}}
RUN["parameters"] = {"limit": 7, "user_id": 102}  # the deployment's own are added by the server


def states(*names: str) -> list[dict[str, str]]:
    """Return states as the API tells them."""
    told = {"timestamp": "2026-01-31T12:34:56.789012Z", "message": "why"}
    return [{"type": name.upper(), "name": name, **told} for name in names]


def drop(request: Request) -> Response:
    """Close the connection without a word."""
    request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return Response()


def hang(_: Request) -> Response:
    """Answer when the client has given up."""
    time.sleep(0.6)
    return Response()


def refusal(status: int, **told: str) -> Response:
    return Response(json.dumps(told), status, {"Retry-After": "0"})


@pytest.fixture
def api(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> HTTPServer:
    """Return a server that answers as Prefect's does, and that the settings name."""
    monkeypatch.setenv("PREFECT_API_URL", httpserver.url_for("/api"))
    ended = RUN | {"state": states("Completed")[0]}
    httpserver.expect_request(LOOKUP).respond_with_json(DEPLOYMENT)
    httpserver.expect_request(TRIGGER, method="POST").respond_with_json(RUN, 201)
    httpserver.expect_request(STATES).respond_with_json(states("Scheduled", "Completed"))
    httpserver.expect_request(f"/api/flow_runs/{RUN_ID}").respond_with_json(ended)
    return httpserver


@pytest.fixture
def trigger(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the lesson's function, with short delays, but with time for a slow machine."""
    monkeypatch.setattr(lesson, "REQUEST_SECONDS", 20)
    return lesson.trigger


def sent(api: HTTPServer) -> list[Any]:
    """Return the bodies of the triggers that came in."""
    return [request.json for request, _ in api.log if request.path == TRIGGER]


# --- the two requests, and the served flow ---------------------------------------------------


def test_it_looks_up_the_name_and_triggers_the_id(trigger: Any, api: HTTPServer) -> None:
    assert trigger(NAME, GIVEN) == RUN, "a program gets the flow run as the API tells it"
    asked = [(request.method, request.path) for request, _ in api.log]
    assert asked == [("GET", LOOKUP), ("POST", TRIGGER)], "other requests than one of each"
    trigger(NAME, GIVEN)
    first, second = sent(api)
    assert first.keys() == {"parameters", "idempotency_key"}, "a POST without a key may double"
    assert first["parameters"] == GIVEN, "other parameters are sent"
    assert UUID(first["idempotency_key"]).version == 4, "the key of a call is no fresh UUID"
    assert first["idempotency_key"] != second["idempotency_key"], "the second triggers nothing"


def test_each_part_of_the_name_is_quoted(trigger: Any, httpserver: HTTPServer) -> None:
    nothing = refusal(404, detail="Deployment not found")
    httpserver.expect_request(re.compile(".*")).respond_with_response(nothing)
    with pytest.raises(LookupError, match="There is no deployment"):
        trigger("my flow/a?b", api_url=httpserver.url_for("/api"))
    asked = httpserver.log[0][0].environ["REQUEST_URI"]
    assert asked == "/api/deployments/name/my%20flow/a%3Fb", "the name changes the URL"


def test_wait_follows_the_served_flow_to_its_end(
    run_cli: Any, served: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stdout, code = run_cli("-p", "user_id=103", "--wait", "--api-url", served)
    assert code is None, f"exit {code} for a run that completes"
    run = read_flow_run(UUID(stdout.strip()))
    assert (run.state, run.record.parameters) == ("Completed", {"user_id": 103})
    told = re.findall(r"\d\d:\d\d:\d\d UTC (\w+)", caplog.text)
    assert (told[0], told[-1]) == ("Scheduled", "Completed"), "the states are not told"
    assert len(told) == len(set(told)), "a state is told twice"
    assert f"{served.removesuffix('/api')}/v2/runs/flow-run/{run.record.id}" in caplog.text


def test_wait_fails_when_the_flow_run_fails(run_cli: Any, served: str) -> None:
    stdout, code = run_cli("-p", "user_id=999", "--wait", "--api-url", served)
    assert re.match("Failed: .*LookupError", str(code)), f"a failed run ends in {code!r}"
    assert read_flow_run(UUID(stdout.strip())).state == "Failed", "stdout is not the run's id"


def test_threads_trigger_at_the_same_time(
    lesson: ModuleType, trigger: Any, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, sessions = lesson.make_session, set()

    def note(url: str) -> requests.Session:
        session: requests.Session = make(url)
        sessions.add(session)
        return session

    monkeypatch.setattr(lesson, "make_session", note)
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: trigger(NAME, {"user_id": 101}, api_url=served), range(4)))
    assert len({run["id"] for run in runs}) == 4, "two threads got the same flow run"
    assert len(sessions) == 4, "threads share a session, which is not made for that"


def test_a_key_names_one_event(trigger: Any, served: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    options = {"idempotency_key": "once", "api_url": served}
    first, second = (trigger(NAME, {"user_id": 101}, **options) for _ in range(2))
    assert first["id"] == second["id"], "one event was triggered twice"
    assert f"Scheduled before, under the key once: {first['name']}" in caplog.text
    with pytest.raises(ValueError, match="'once' was used before, for other parameters"):
        trigger(NAME, {"user_id": 102}, **options)


def test_a_near_name_is_named(trigger: Any, served: str) -> None:
    with pytest.raises(LookupError, match=f"'user-flow/user-deploymnt'; see {NAME}"):
        trigger("user-flow/user-deploymnt", api_url=served)


# --- no trigger lost, none doubled, and no run but the one that was asked for ------------------


@pytest.mark.parametrize("where", [LOOKUP, TRIGGER, STATES])
@pytest.mark.parametrize("trouble", [429, 500, 502, 503, 504, drop, hang])
def test_what_passes_is_ridden_out(
    lesson: ModuleType, trigger: Any, api: HTTPServer, monkeypatch: Any, trouble: Any, where: str
) -> None:
    if trouble == hang:
        monkeypatch.setattr(lesson, "REQUEST_SECONDS", 0.3)
    answer = trouble if callable(trouble) else lambda _: refusal(trouble, detail="busy")
    for _ in range(3):
        api.expect_oneshot_request(where).respond_with_handler(answer)
    assert trigger(NAME, GIVEN, wait=True)["state"]["name"] == "Completed"
    assert [request.path for request, _ in api.log].count(where) > 3, "it was not asked again"
    assert len({body["idempotency_key"] for body in sent(api)}) == 1, (
        "the key changes between attempts: a POST that is sent again is a second flow run"
    )


def test_retry_after_is_honoured(trigger: Any, api: HTTPServer) -> None:
    slow_down = Response("{}", 429, {"Retry-After": "1"})
    api.expect_oneshot_request(LOOKUP).respond_with_response(slow_down)
    started = time.monotonic()
    trigger(NAME, GIVEN)
    assert time.monotonic() - started >= 1, "the server asked for a second"


def test_the_deadline_ends_it_and_tells_the_key(
    trigger: Any, httpserver: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    httpserver.expect_request(LOOKUP).respond_with_json(DEPLOYMENT)
    httpserver.expect_request(TRIGGER).respond_with_response(refusal(503, detail="it is locked"))
    options: dict[str, Any] = {"timeout": 1, "api_url": httpserver.url_for("/api")}
    with pytest.raises(ConnectionError, match=r"503: it is locked; .* key nightly-31"):
        trigger(NAME, GIVEN, idempotency_key="nightly-31", **options)
    assert len(sent(httpserver)) > 1, "it gave up at once"
    assert "it is locked; trying again" in caplog.text, "trouble that lasts is kept secret"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"deployment_id": RUN_ID}, "another deployment"),
        ({"parameters": {"limit": 7, "user_id": 101}}, "other parameters"),
        ({"parameters": {"limit": 8, "user_id": 102}}, "other parameters"),
    ],
)
def test_another_flow_run_than_that_is_an_error(
    trigger: Any, api: HTTPServer, change: Any, words: str
) -> None:
    api.expect_oneshot_request(TRIGGER).respond_with_json(RUN | change, 200)
    with pytest.raises(ValueError, match=f"'k' was used before, for {words}: .*{RUN_ID}"):
        trigger(NAME, GIVEN, idempotency_key="k")


def test_postgresql_keeps_a_large_number_as_an_integer(trigger: Any, api: HTTPServer) -> None:
    kept = RUN | {"parameters": {"limit": 7, "user_id": 6 * 10**23}}
    api.expect_oneshot_request(TRIGGER).respond_with_json(kept, 200)
    assert trigger(NAME, {"user_id": 6e23}) == kept, "the same number is other parameters"


# --- what cannot get better by waiting is told at once, in true words --------------------------

HOPELESS = {
    "401: Unauthorized .*it wants PREFECT_API_AUTH": refusal(401, exception_message="Unauthorized"),
    "403: Missing CSRF token.* does not do": refusal(403, detail="Missing CSRF token."),
    "^Validation failed: it is$": refusal(409, detail="Validation failed:\nit is"),
    "404: page not found .*ends in /api": Response("page not found", 404),
    "404: Not Found .*ends in /api": refusal(404, detail="Not Found"),
    "413: REQUEST ENTITY TOO LARGE": Response("<title>Too large</title>", 413),
    "302: FOUND": Response("", 302, {"Location": "http://127.0.0.1:1/"}),
    "200: OK .*ends in /api": Response("<!doctype html><title>Prefect</title>"),
    "200: {'not'": Response("{'not': json"),
    r"200: \[\]": Response("[]"),
    "200: {}": Response("{}"),
}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"name": "user-flow"}, "FLOW/DEPLOYMENT"),
    ({"name": "../x"}, "FLOW/DEPLOYMENT"),
    ({"name": "a/b\udce9"}, "The name .* Unicode"),
    ({"idempotency_key": "\ud800"}, "The key .* Unicode"),
    ({"idempotency_key": ""}, "not empty"),
    ({"timeout": float("nan")}, "above 0"),
    ({"parameters": {"text": "Jos\udce9"}}, "'text' .* Unicode"),
    ({"parameters": {"a": [{"\ud800": 1}]}}, "'a' .* Unicode"),
    ({"parameters": {"a": r"\\" + "\0"}}, "'a' .* NUL"),
    ({"parameters": {"a": float("inf")}}, "'a' .* JSON"),
    ({"parameters": {"day": date(2026, 1, 31)}}, "'day' .* type date"),
    ({"parameters": {"a": [Decimal("1.5")]}}, "'a' .* type Decimal"),
    ({"api_url": ""}, "No scheme"),
    ({"api_url": "http://[::1/api"}, "Invalid IPv6"),
    ({"api_url": "http://127.0.0.1\udce9/api"}, "The API URL .* Unicode"),
    ({"api_url": "http://admin:sesame@127.0.0.1/api"}, "carries no credentials"),
    ({"api_url": "http://prefect.invalid/api"}, "not known"),
    ({"api_url": "http://127.0.0.1:1/api", "timeout": 0.5}, "Connection refused"),
]


@pytest.mark.parametrize("where", [LOOKUP, TRIGGER])
@pytest.mark.parametrize("words", HOPELESS)
def test_a_hopeless_answer_is_told_at_once(
    trigger: Any, api: HTTPServer, words: str, where: str
) -> None:
    api.expect_oneshot_request(where).respond_with_response(HOPELESS[words])
    with pytest.raises((OSError, LookupError, ValueError), match=words):
        trigger(NAME, GIVEN)
    assert [request.path for request, _ in api.log].count(where) == 1, "it was tried again"


@pytest.mark.parametrize(("options", "words"), MISTAKES)
def test_a_mistake_is_told_and_nothing_is_sent(
    trigger: Any, api: HTTPServer, options: dict[str, Any], words: str
) -> None:
    with pytest.raises((OSError, ValueError), match=words) as caught:
        trigger(**{"name": NAME, **options})
    assert api.log == [], "it was sent all the same"
    assert "sesame" not in str(caught.value), "a credential is shown"


def test_a_deployment_that_nothing_serves_is_told(
    trigger: Any, api: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    api.expect_oneshot_request(LOOKUP).respond_with_json(DEPLOYMENT | {"status": "NOT_READY"})
    assert trigger(NAME, GIVEN) == RUN, "a trigger waits for whoever serves; it is no mistake"
    assert "NOT_READY" in caplog.text, "that nothing asks for the run is kept secret"


def test_a_parameter_that_the_flow_lacks_is_not_sent(trigger: Any, api: HTTPServer) -> None:
    words = r"no parameter 'userid'; did you mean 'user_id'\? The flow accepts \['user_id', 'limit'"
    with pytest.raises(ValueError, match=words):
        trigger(NAME, {"userid": 1})
    assert sent(api) == [], "the API takes it, and the run fails"


# --- settings --------------------------------------------------------------------------------

LOGIN = {"PREFECT_API_AUTH_STRING": "admin:sesame"}
KEY = {"PREFECT_API_KEY": "sesame\n"}  # as from a file
HEADERS = {"PREFECT_CLIENT_CUSTOM_HEADERS": '{"X-Team": "a"}'}
BASIC = "Basic YWRtaW46c2VzYW1l"
SENT = [({}, None), (LOGIN, BASIC), (KEY | HEADERS, "Bearer sesame"), (KEY | LOGIN, BASIC)]


@pytest.mark.parametrize(("settings", "header"), SENT)
def test_the_settings_are_sent_and_no_secret_is_shown(
    trigger: Any, api: HTTPServer, tmp_path: Path, monkeypatch: Any, settings: Any, header: Any
) -> None:
    # A .netrc would win over a header that is merely set on the session, or over none.
    (tmp_path / "netrc").write_text("machine localhost login other password other\n")
    for name, value in {"NETRC": str(tmp_path / "netrc"), **settings}.items():
        monkeypatch.setenv(name, value)
    trigger(NAME, GIVEN, wait=True)
    assert {request.headers.get("Authorization") for request, _ in api.log} == {header}
    team = "a" if HEADERS.items() <= settings.items() else None
    assert {request.headers.get("X-Team") for request, _ in api.log} == {team}
    echo = " ".join(map(str.strip, settings.values()))
    api.expect_oneshot_request(LOOKUP).respond_with_response(refusal(403, detail=f"not {echo}"))
    with pytest.raises(PermissionError) as caught:
        trigger(NAME, GIVEN)
    assert "sesame" not in str(caught.value), "a credential is shown"


DAMAGED = [
    ("KEY", "sesame\nX: y"),
    ("KEY", "sesamé"),
    ("HEADERS", "sesame"),
    ("HEADERS", '{"X": 1}'),
]


@pytest.mark.parametrize(("name", "value"), DAMAGED)
def test_a_damaged_setting_is_named_and_not_shown(
    lesson: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    setting = {"KEY": "PREFECT_API_KEY", "HEADERS": "PREFECT_CLIENT_CUSTOM_HEADERS"}[name]
    monkeypatch.setenv(setting, value)
    with pytest.raises(ValueError, match=setting) as caught:
        lesson.make_session("https://prefect.invalid/api")
    assert "sesam" not in str(caught.value), "a credential is shown"


@pytest.mark.parametrize(
    ("setting", "value", "verify"),
    [
        ("SSL_CERT_FILE", "our.pem", "our.pem"),
        ("PREFECT_API_SSL_CERT_FILE", "our.pem", "our.pem"),
        ("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "true", False),
    ],
)
def test_a_certificate_is_checked_as_the_settings_say_and_distrust_told_at_once(
    trigger: Any, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, verify: Any
) -> None:
    asked = []

    def distrust(*_: Any, **options: Any) -> None:
        asked.append(options["verify"])
        raise requests.exceptions.SSLError(ssl.SSLCertVerificationError(1, "self-signed"))

    monkeypatch.setattr(requests.Session, "request", distrust)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "another.pem")  # Prefect's own client ignores it
    monkeypatch.setenv("SSL_CERT_FILE", "another.pem")
    monkeypatch.setenv(setting, value)
    with pytest.raises(ConnectionError, match=r"self-signed.*PREFECT_API_SSL_CERT_FILE names"):
        trigger(NAME, api_url="https://prefect.invalid/api", timeout=2)
    assert asked == [verify], "not the setting's certificates, or a second attempt"


def test_unencrypted_credentials_draw_a_warning(
    lesson: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "sesame")
    for url in ("https://prefect.invalid/api", "http://[::1]/api", "http://localhost/api"):
        lesson.make_session(url)
    assert caplog.text == "", "a warning without need"
    lesson.make_session("http://prefect.invalid/api")
    assert "unencrypted" in caplog.text


# --- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Completed", "Failed", "Crashed", "Cancelled"])
def test_the_exit_code_is_the_outcome(run_cli: Any, api: HTTPServer, name: str) -> None:
    ended = RUN | {"state": states(name)[0]}
    api.expect_oneshot_request(STATES).respond_with_json(states("Running", name))
    api.expect_oneshot_request(f"/api/flow_runs/{RUN_ID}").respond_with_json(ended)
    expected = None if name == "Completed" else f"{name}: why"
    assert run_cli(NAME, "-p", "user_id=102", "--wait") == (f"{RUN_ID}\n", expected)
    asked = [request.path for request, _ in api.log].count(STATES)
    assert asked == 1, f"{name} is an end, and it goes on waiting"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-p", "user_id=102", "--wait", "--timeout", "0.5"], 3, "goes on; it is Running"),
        (["-p", "userid=1"], 1, "did you mean"),
        (["-p", "user_id"], 1, "KEY=VALUE"),
        (["-p", "user_id=1", "-p", "user_id=2"], 1, "each KEY once"),
        (["-p", r'user_id="\ud800"'], 1, "Unicode"),
        (["-p", "user_id=1e999"], 1, "JSON"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    run_cli: Any, api: HTTPServer, caplog: Any, arguments: list[str], code: int, words: str
) -> None:
    for _ in range(5):
        api.expect_oneshot_request(STATES).respond_with_json(states("Running"))
    assert run_cli(NAME, *arguments)[1] == code
    assert words in caplog.records[-1].getMessage()


def test_ctrl_c_while_waiting_exits_130(lesson_path: Path, api: HTTPServer) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    for _ in range(200):
        api.expect_oneshot_request(STATES).respond_with_json(states("Running"))
    command = [sys.executable, str(lesson_path), NAME, "-p", "user_id=102", "--wait"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until("it waits", lambda: len(api.log) > 2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, f"{RUN_ID}\n")
    assert "Interrupted" in stderr.splitlines()[-1]


def test_a_program_that_imports_it_hears_nothing(lesson_path: Path, api: HTTPServer) -> None:
    api.expect_oneshot_request(LOOKUP).respond_with_json(DEPLOYMENT | {"status": "NOT_READY"})
    call = f"__import__('importlib').import_module({lesson_path.stem!r}).trigger({NAME!r}, {GIVEN})"
    command, folder = [sys.executable, "-c", call], lesson_path.parent
    heard = subprocess.check_output(command, cwd=folder, stderr=subprocess.STDOUT, text=True)
    assert heard == "", "a function for programs prints nothing"
