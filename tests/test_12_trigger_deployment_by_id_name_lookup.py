"""Lesson 12: look up by name and trigger, with no trigger lost and none sent twice."""

import json
import logging
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest
import requests
from pytest_httpserver import HTTPServer
from recorded import read_flow_run, wait_until
from werkzeug import Request, Response

pytest_plugins = ["programs"]  # the fixtures `run` and `served`

NAME = "user-flow/user-deployment"
ID = "11111111-2222-4333-8444-555555555555"
SHORT_SECONDS = 0.05
SHORTEN = ["BACKOFF_SECONDS", "BACKOFF_MAX_SECONDS", "POLL_SECONDS"]
RUN_ID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
LOOKUP = f"/api/deployments/name/{NAME}"
TRIGGER = f"/api/deployments/{ID}/create_flow_run"
POLL = f"/api/flow_runs/{RUN_ID}"
SCHEMA: Any = {"properties": {"user_id": {}, "limit": {}}}
DEPLOYMENT = {"id": ID, "parameters": {"limit": 7}, "parameter_openapi_schema": SCHEMA}
PARAMETERS = {"user_id": 102}
SCHEDULED = {"type": "SCHEDULED", "name": "Scheduled", "message": ""}
RUN: Any = {"id": RUN_ID, "name": "calm-crow", "deployment_id": ID, "state": SCHEDULED}
RUN["parameters"] = {"limit": 7, **PARAMETERS}  # the server adds the deployment's own


def in_state(name: str) -> Any:
    """Return the flow run in this state, as the API shows it."""
    return RUN | {"state": {"type": name.upper(), "name": name, "message": "why\nnot"}}


def refusal(status: int, **body: str) -> Response:
    return Response(json.dumps(body), status, content_type="application/json")


def drop(request: Request) -> Response:
    """Close the connection without a word."""
    request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return Response()


def hang(_: Request) -> Response:
    """Answer when the client has given up."""
    time.sleep(0.6)
    return Response()


@pytest.fixture
def api(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> HTTPServer:
    """Return a server that answers as Prefect's does, and that the settings name."""
    monkeypatch.setenv("PREFECT_API_URL", httpserver.url_for("/api"))
    httpserver.expect_request(LOOKUP).respond_with_json(DEPLOYMENT)
    httpserver.expect_request(TRIGGER, method="POST").respond_with_json(RUN, 201)
    httpserver.expect_request(POLL).respond_with_json(in_state("Completed"))
    return httpserver


@pytest.fixture
def trigger(lesson: ModuleType) -> Any:
    """Return the lesson's function."""
    return lesson.trigger


def paths(api: HTTPServer) -> list[str]:
    """Return the paths that were asked for."""
    return [request.path for request, _ in api.log]


def sent(api: HTTPServer) -> list[Any]:
    """Return the bodies of the triggers that came in."""
    return [request.json for request, _ in api.log if request.path == TRIGGER]


# --- the two requests, and the served flow ---------------------------------------------------


def test_it_looks_up_the_name_and_triggers_the_id(trigger: Any, api: HTTPServer) -> None:
    assert trigger(NAME, PARAMETERS) == RUN, "expected the flow run as the API shows it"
    assert paths(api) == [LOOKUP, TRIGGER], "expected one request of each"
    trigger(NAME, PARAMETERS)
    first, second = sent(api)
    assert first.keys() == {"parameters", "idempotency_key"}, "a POST without a key may double"
    assert first["parameters"] == PARAMETERS, "other parameters are sent"
    assert UUID(first["idempotency_key"]).version == 4, "the key of a call is not a fresh UUID"
    assert first["idempotency_key"] != second["idempotency_key"], "the second triggers nothing"


def test_the_name_is_encoded(trigger: Any, httpserver: HTTPServer) -> None:
    httpserver.expect_request(re.compile(".*")).respond_with_response(
        refusal(404, detail="Deployment not found")
    )
    with pytest.raises(LookupError, match="Deployment not found"):
        trigger("my flow/a?b", api_url=httpserver.url_for("/api"))
    asked = httpserver.log[0][0].environ["REQUEST_URI"]
    assert asked == "/api/deployments/name/my%20flow/a%3Fb", "the name changes the URL"


def test_wait_follows_the_served_flow_to_its_end(
    run: Any, served: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = ["--wait", "--timeout=120", "--api-url", served, "--idempotency-key", "once", "-p"]
    code, stdout, stderr = run(*options, "user_id=999")
    assert code == 1, f"expected exit code 1 for a failed run, got {code}: {stderr}"
    assert re.search(r"error: \S+ is Failed .*LookupError", stderr), f"got: {stderr}"
    flow_run = read_flow_run(UUID(stdout.strip()))
    assert (flow_run.state, flow_run.record.parameters) == ("Failed", {"user_id": 999})
    states = re.findall(r" is (\w+)", caplog.text)
    assert (states[0], states[-1]) == ("Scheduled", "Failed"), "the states are not logged"
    assert run(*options, "user_id=999")[1] == stdout, "one key triggered two flow runs"
    code, _, stderr = run(*options, "user_id=998")
    assert (code, "'once' was used before" in stderr) == (2, True), f"got {code}: {stderr}"


# --- no trigger lost, none doubled, and no run but the one that was asked for ----------------


@pytest.mark.parametrize("where", [LOOKUP, TRIGGER, POLL])
@pytest.mark.parametrize("problem", [408, 425, 429, 500, 502, 503, 504, 520, 524, drop, hang])
def test_transient_errors_are_retried(
    lesson: ModuleType, trigger: Any, api: HTTPServer, monkeypatch: Any, problem: Any, where: str
) -> None:
    if problem == hang:
        monkeypatch.setattr(lesson, "REQUEST_SECONDS", 0.3)
    answer = problem if callable(problem) else lambda _: refusal(problem, detail="busy")
    for _ in range(2):
        api.expect_oneshot_request(where).respond_with_handler(answer)
    flow_run = lesson.wait_for_flow_run(trigger(NAME, PARAMETERS), 20)
    assert flow_run["state"]["name"] == "Completed"
    assert paths(api).count(where) >= 3, "expected two more attempts"
    assert len({body["idempotency_key"] for body in sent(api)}) == 1, (
        "the key changes between attempts: a POST that is sent again is a second flow run"
    )


@pytest.mark.parametrize(("seconds", "least"), [("1", 1), ("86400", 2)])
def test_retry_after_is_honoured_up_to_the_deadline(
    trigger: Any, api: HTTPServer, seconds: str, least: int
) -> None:
    slow_down = Response("{}", 429, {"Retry-After": seconds})
    api.expect_oneshot_request(LOOKUP).respond_with_response(slow_down)
    started = time.monotonic()
    trigger(NAME, PARAMETERS, timeout=2)
    took = time.monotonic() - started
    assert least <= took < 10, f"expected a pause of {least} s, got {took:.1f} s"


def test_pauses_grow_and_are_random(
    lesson: ModuleType, trigger: Any, api: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(lesson, "BACKOFF_MAX_SECONDS", 2)
    monkeypatch.setattr(time, "sleep", pauses.append)
    random.seed(1)
    for _ in range(8):
        api.expect_oneshot_request(LOOKUP).respond_with_response(refusal(503))
    trigger(NAME, PARAMETERS)
    assert len(set(pauses)) == 8, f"no jitter: all clients come back at once: {pauses}"
    assert max(pauses[:1]) <= lesson.BACKOFF_SECONDS < max(pauses) <= 2, (
        f"expected pauses that grow up to BACKOFF_MAX_SECONDS, got {pauses}"
    )


def test_the_deadline_error_says_that_the_run_may_exist(
    run: Any, httpserver: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    httpserver.expect_request(LOOKUP).respond_with_json(DEPLOYMENT)
    httpserver.expect_request(TRIGGER).respond_with_response(refusal(503, detail="it is locked"))
    options = ["--timeout", "1", "--idempotency-key", "nightly-31"]
    code, _, stderr = run(NAME, *options, "--api-url", httpserver.url_for("/api"))
    assert code == 4, f"expected exit code 4, got {code}"
    expected = r"error: .* returned 503 .*it is locked.* may exist: ask again .* 'nightly-31'\.\n"
    assert re.fullmatch(expected, stderr), f"got: {stderr}"
    assert len(sent(httpserver)) > 1, "it gave up after one attempt"
    assert "it is locked" in caplog.text, "no warning at the second failed attempt"


DEFAULTS = {"limit": 7}
OTHER_RUNS: list[tuple[Any, Any, dict[str, Any]]] = [  # asked for, stored, and what differs
    (102, 102, {"deployment_id": RUN_ID}),
    (102, 102, {"parameters": {"limit": 8, "user_id": 102}}),
    (102, 102, {"parameters": {"limit": 7, "user_id": 102, "more": None}}),
    (9007199254740992, 9007199254740993, {}),
    (1, True, {}),
    ("1", 1, {}),
    ([{"a": 0}], [{"a": False}], {}),
    ("__prefect_kind", "x", {}),
    ({"__prefect_kind": "json", "value": "1"}, 1, {"parameters": {"limit": 8, "user_id": 1}}),
]
SAME_RUNS = [
    (6e23, 6 * 10**23),  # as PostgreSQL returns it
    (1, 1.0),
    ((1, 2), [1, 2]),
    ({"__prefect_kind": "json", "value": "1"}, 1),
]


@pytest.mark.parametrize(("asked", "stored", "change"), OTHER_RUNS)
def test_reused_key_with_other_parameters_is_rejected(
    trigger: Any, api: HTTPServer, asked: Any, stored: Any, change: Any
) -> None:
    flow_run = RUN | {"parameters": DEFAULTS | {"user_id": stored}} | change
    api.expect_oneshot_request(TRIGGER).respond_with_json(flow_run, 200)
    with pytest.raises(ValueError, match=f"'k' was used before.*{RUN_ID}"):
        trigger(NAME, {"user_id": asked}, idempotency_key="k")


@pytest.mark.parametrize(("asked", "stored"), SAME_RUNS)
def test_same_key_returns_the_same_flow_run(
    trigger: Any, api: HTTPServer, asked: Any, stored: Any
) -> None:
    flow_run = RUN | {"parameters": DEFAULTS | {"user_id": stored}}
    api.expect_oneshot_request(TRIGGER).respond_with_json(flow_run, 200)
    assert trigger(NAME, {"user_id": asked}) == flow_run, "the same values are other parameters"


# --- what a retry cannot fix is reported immediately, in true words ---------------------------

PERMANENT_ERRORS = {
    "401 .*Unauthorized.* Check PREFECT_API_KEY": refusal(401, exception_message="Unauthorized"),
    "403 .*Missing CSRF token": refusal(403, detail="Missing CSRF token."),
    "409 .*it is invalid": refusal(409, detail="it is\ninvalid"),
    "404 .*page not found.* Check the API URL": Response("page not found", 404),
    "404 .*Not Found.* Check the API URL": refusal(404, detail="Not Found"),
    "413 .*Too large": Response("<title>Too large</title>", 413),
    "302 .*http://127.0.0.1:1/login": Response("", 302, {"Location": "http://127.0.0.1:1/login"}),
    "200 .*<!doctype html>": Response("<!doctype html><title>Prefect</title>"),
    "200 .*'not'": Response("{'not': json"),
    r"200 \(\[\]\)": Response("[]"),
    r"200 \(\{\}\)": Response("{}"),
}
INVALID_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"name": "user-flow"}, "'user-flow' is not .* FLOW/DEPLOYMENT"),
    ({"name": "../x"}, "'../x' is not .* FLOW/DEPLOYMENT"),
    ({"name": "a/b\udce9"}, "name.* surrogates"),
    ({"idempotency_key": "\ud800"}, "key.* surrogates"),
    ({"idempotency_key": ""}, "key is empty"),
    ({"parameters": {"text": "Jos\udce9"}}, "'text' .*surrogates"),
    ({"parameters": {"a": [{"\ud800": 1}]}}, "'a' .*surrogates"),
    ({"parameters": {"a": float("inf")}}, "'a' .*float"),
    ({"parameters": {"day": date(2026, 1, 31)}}, "'day' .*type date"),
    ({"api_url": "nonsense"}, "No scheme"),
    ({"api_url": "http://[::1/api"}, "not a valid host"),
    ({"api_url": "http://admin:sesame@127.0.0.1/api"}, "contains credentials"),
]


@pytest.mark.parametrize("where", [LOOKUP, TRIGGER])
@pytest.mark.parametrize("message", PERMANENT_ERRORS)
def test_permanent_errors_are_not_retried(
    trigger: Any, api: HTTPServer, message: str, where: str
) -> None:
    api.expect_oneshot_request(where).respond_with_response(PERMANENT_ERRORS[message])
    with pytest.raises((OSError, LookupError, ValueError), match=message) as caught:
        trigger(NAME, PARAMETERS)
    assert paths(api).count(where) == 1, "expected one attempt"
    may_exist = isinstance(caught.value, OSError) and where == TRIGGER
    assert ("may exist" in str(caught.value)) == may_exist, "a POST was sent, or was not"


@pytest.mark.parametrize(("options", "message"), INVALID_ARGUMENTS)
def test_invalid_arguments_are_rejected_before_any_request(
    trigger: Any, api: HTTPServer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        trigger(**{"name": NAME, **options})
    assert api.log == [], "a request was sent all the same"
    assert "sesame" not in str(caught.value), "a credential is shown"


def test_a_deployment_that_nothing_serves_is_triggered_with_a_warning(
    trigger: Any, api: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    api.expect_oneshot_request(LOOKUP).respond_with_json(DEPLOYMENT | {"status": "NOT_READY"})
    assert trigger(NAME, PARAMETERS) == RUN, "the run waits for a serving process"
    assert f"{NAME} is NOT_READY" in caplog.text, "expected a warning that nothing polls"


def test_unknown_parameters_are_rejected_before_the_trigger(trigger: Any, api: HTTPServer) -> None:
    with pytest.raises(ValueError, match="no parameter") as caught:
        trigger(NAME, {"userid": 1, "limit": 7, "x": 2})
    assert "did you mean 'user_id'" in str(caught.value), f"expected it, got: {caught.value}"
    assert "'x'" in str(caught.value), f"expected all unknown names, got: {caught.value}"
    assert sent(api) == [], "the API accepts it, and the run fails"


# --- settings --------------------------------------------------------------------------------

LOGIN = {"PREFECT_API_AUTH_STRING": "admin:sesame"}
KEY = {"PREFECT_API_KEY": "sesame\n"}  # as from a file
HEADERS = {"PREFECT_CLIENT_CUSTOM_HEADERS": '{"X-Team": "churn"}'}
BASIC = "Basic YWRtaW46c2VzYW1l"
SENT = [({}, None), (LOGIN, BASIC), (KEY | HEADERS, "Bearer sesame"), (KEY | LOGIN, BASIC)]
MALFORMED = ["sesame", '{"X": 1}', "[1]"]


@pytest.mark.parametrize(("settings", "header"), SENT)
def test_the_settings_are_sent_and_no_secret_is_shown(
    trigger: Any, api: HTTPServer, tmp_path: Path, monkeypatch: Any, settings: Any, header: Any
) -> None:
    # A .netrc would win over a header that is merely set, or over none.
    (tmp_path / "netrc").write_text("machine localhost login other password other\n")
    for name, value in {"NETRC": str(tmp_path / "netrc"), **settings}.items():
        monkeypatch.setenv(name, value)
    trigger(NAME, PARAMETERS)
    assert {request.headers.get("Authorization") for request, _ in api.log} == {header}
    team = "churn" if HEADERS.items() <= settings.items() else None
    assert {request.headers.get("X-Team") for request, _ in api.log} == {team}
    echo = " ".join([*settings.values(), "sesame", str(header), "churn"])
    api.expect_oneshot_request(LOOKUP).respond_with_response(refusal(403, detail=f"not {echo}"))
    with pytest.raises(PermissionError) as caught:
        trigger(NAME, PARAMETERS)
    if settings:
        assert not re.search("sesame|c2VzYW1l", str(caught.value)), "a credential is shown"


@pytest.mark.parametrize("value", MALFORMED)
def test_malformed_headers_are_named_and_not_shown(
    trigger: Any, api: HTTPServer, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", value)
    with pytest.raises(ValueError, match="PREFECT_CLIENT_CUSTOM_HEADERS") as caught:
        trigger(NAME)
    assert (api.log, "sesame" in str(caught.value)) == ([], False), "a credential is shown"


@pytest.mark.parametrize(
    ("setting", "value", "verify"),
    [
        ("SSL_CERT_FILE", "our.pem", "our.pem"),
        ("PREFECT_API_SSL_CERT_FILE", "our.pem", "our.pem"),
        ("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "true", False),
    ],
)
def test_the_certificate_settings_are_used_and_a_request_ends_at_the_deadline(
    trigger: Any, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, verify: Any
) -> None:
    send = Mock(side_effect=requests.exceptions.SSLError)
    monkeypatch.setattr(requests.Session, "request", send)
    monkeypatch.setenv("SSL_CERT_FILE", "another.pem")
    monkeypatch.setenv(setting, value)
    with pytest.raises(ConnectionError, match="PREFECT_API_SSL_CERT_FILE"):
        trigger(NAME, api_url="https://prefect.invalid/api", timeout=2)
    options = send.call_args.kwargs
    assert options["verify"] == verify, "not the certificates that the settings name"
    assert options["timeout"] <= 2, "one request may take longer than everything"


CONNECTION_PROBLEMS = [  # the error of requests, its cause, and whether a retry can fix it
    (requests.exceptions.SSLError, ssl.SSLCertVerificationError(1, "self-signed"), False),
    (OSError, OSError("no certificates in own.pem"), False),
    (requests.ConnectionError, socket.gaierror(socket.EAI_NONAME, "not known"), False),
    (requests.exceptions.SSLError, ssl.SSLEOFError(8, "cut off"), True),
    (requests.ConnectionError, socket.gaierror(socket.EAI_AGAIN, "ask later"), True),
]


@pytest.mark.parametrize(("error", "cause", "is_retried"), CONNECTION_PROBLEMS)
def test_only_transient_connection_problems_are_retried(
    trigger: Any, monkeypatch: pytest.MonkeyPatch, error: Any, cause: OSError, is_retried: bool
) -> None:
    problem = error()
    problem.__cause__ = cause
    send = Mock(side_effect=problem)
    monkeypatch.setattr(requests.Session, "request", send)
    with pytest.raises(ConnectionError, match=str(cause.args[-1])):
        trigger(NAME, api_url="https://prefect.invalid/api", timeout=0.6)
    assert (send.call_count > 1) == is_retried, f"got {send.call_count} attempts"


# --- the command line ------------------------------------------------------------------------

EXIT_CODES: list[tuple[list[str], str, int, str]] = [  # arguments, state, exit code, message
    (["--wait"], "Completed", 0, "^$"),
    (["--wait"], "Failed", 1, r"error: calm-crow is Failed \(.*why"),
    (["--wait"], "Crashed", 1, "calm-crow is Crashed"),
    (["--wait"], "Cancelled", 1, "calm-crow is Cancelled"),
    (["--wait", "--timeout", "0.5"], "Running", 3, "goes on"),
    (["-p", "userid=1"], "", 2, "did you mean 'user_id'"),
    (["-p", "user_id"], "", 2, "KEY=VALUE"),
    (["-p", "user_id=1", "-p", "user_id=2"], "", 2, "KEY twice"),
    (["-p", "user_id=1e999"], "", 2, "not JSON"),
]


@pytest.mark.parametrize(("arguments", "state", "code", "message"), EXIT_CODES)
def test_the_exit_code_is_the_outcome(
    run: Any, api: HTTPServer, arguments: list[str], state: str, code: int, message: str
) -> None:
    for _ in range(50 if state == "Running" else 1):
        api.expect_oneshot_request(POLL).respond_with_json(in_state(state))
    got, stdout, stderr = run(
        NAME, *(arguments if "-p" in arguments else ["-p", "user_id=102", *arguments])
    )
    assert got == code, f"expected exit code {code}, got {got}: {stderr}"
    assert re.search(message, stderr), f"expected {message!r}, got: {stderr}"
    assert stdout == (f"{RUN_ID}\n" if state else ""), "stdout is not the id alone"


def test_the_timeout_is_for_the_trigger_and_the_wait_together(
    lesson: ModuleType, run: Any, api: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = Mock(return_value=in_state("Completed"))
    monkeypatch.setattr(lesson, "wait_for_flow_run", wait)
    run(NAME, "-p", "user_id=102", "--wait", "--timeout", "100")
    assert wait.call_args.args[1] < 100, "the wait gets all of the time once more"


def test_a_value_is_parsed_as_json_or_else_kept_as_text(lesson: ModuleType) -> None:
    values = [lesson.parse_parameter(text)[1] for text in ("a=102", 'a="102"', "a=NaN", "a=b=c")]
    assert values == [102, "102", "NaN", "b=c"]


def test_an_error_while_waiting_says_that_the_flow_run_exists(run: Any, api: HTTPServer) -> None:
    deleted = refusal(404, detail="Flow run not found")
    api.expect_oneshot_request(POLL).respond_with_response(deleted)
    code, _, stderr = run(NAME, "-p", "user_id=102", "--wait")
    assert code == 4, f"expected exit code 4, not that of a refusal, got {code}: {stderr}"
    assert f"The flow run exists: {RUN_ID}" in stderr, f"got: {stderr}"


def test_ctrl_c_while_waiting_exits_130(lesson_path: Path, api: HTTPServer) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    for _ in range(50):
        api.expect_oneshot_request(POLL).respond_with_json(in_state("Running"))
    command = [sys.executable, str(lesson_path), NAME, "-p", "user_id=102", "--wait"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until("it waits", lambda: len(api.log) > 2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, f"{RUN_ID}\n")
    assert stderr.splitlines()[-1].startswith("error: interrupted"), f"got: {stderr}"


def test_it_is_silent_when_imported(lesson_path: Path, api: HTTPServer) -> None:
    for _ in range(3):
        api.expect_oneshot_request(LOOKUP).respond_with_response(refusal(503))
    module = f"__import__('importlib').import_module({lesson_path.stem!r})"
    command = [sys.executable, "-c", f"{module}.trigger({NAME!r}, {PARAMETERS})"]
    output = subprocess.check_output(
        command, cwd=lesson_path.parent, stderr=subprocess.STDOUT, text=True
    )
    assert output == "", f"expected no output, got: {output}"
