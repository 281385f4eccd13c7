"""The flow: which tasks are retried, what is delivered once, and what the log says at night."""

import json
import logging
import threading
import time
from datetime import date
from typing import Any

import pytest
from prefect import Task
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

import pipeline
from services import ServiceError

ANSWERS: dict[str, Any] = {
    "user": {"user_id": 101, "name": "Ada Lovelace"},
    "balance": {"balance": 120.5},
    "activity": {"logins": [5, 3, 2, 1]},
    "message": {"message_id": "m-1"},
}
DAY = date(2026, 11, 28)
pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def service(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> HTTPServer:
    """Return a server that answers for all four services, once nothing else is expected of it."""
    monkeypatch.setenv("SERVICE_URL", httpserver.url_for(""))
    for name, answer in ANSWERS.items():
        httpserver.expect_request(f"/{name}/101").respond_with_json(answer)
    assert min(pipeline.RETRY_DELAYS) > 0, "a service in trouble is asked again at once: no delay"
    monkeypatch.setattr(pipeline, "RETRY_DELAYS", [0.1, 0.1, 0.1])
    for name, value in vars(pipeline).items():
        if isinstance(value, Task) and value.retries:
            assert value.retry_delay_seconds, f"{name} asks a service in trouble again at once"
            monkeypatch.setattr(value, "retry_delay_seconds", [0.1])
    return httpserver


def fail_at_first(service: HTTPServer, name: str, times: int, status: int) -> None:
    """Let the service's first answers have this status."""
    for _ in range(times):
        service.expect_oneshot_request(f"/{name}/101").respond_with_json(
            {"detail": "not today"}, status, {"Retry-After": "0"}
        )


def requests_of(service: HTTPServer, name: str, user_id: int = 101) -> list[Request]:
    """Return the requests about the user that the service has received."""
    return [request for request, _ in service.log if request.path == f"/{name}/{user_id}"]


@pytest.mark.parametrize("name", ANSWERS)
def test_an_outage_retries_only_the_affected_task(service: HTTPServer, name: str) -> None:
    fail_at_first(service, name, 2, 503)
    result = pipeline.churn_flow(101, DAY, return_state=True).result(raise_on_failure=False)
    attempts = {other: len(requests_of(service, other)) for other in ANSWERS}
    expected = dict.fromkeys(ANSWERS, 1) | {name: 3}
    assert attempts == expected, f"two outages of {name}: has its task its retries? {result!r}"
    assert isinstance(result, dict), f"two outages of {name} became {result!r}"


@pytest.mark.parametrize("name", ANSWERS)
def test_a_refusal_is_not_retried(service: HTTPServer, name: str) -> None:
    fail_at_first(service, name, 1, 404)
    result = pipeline.churn_flow(101, DAY, return_state=True).result(raise_on_failure=False)
    attempts = len(requests_of(service, name))
    assert attempts == 1, f"{name} was asked {attempts} times: has its task its retry condition?"
    assert isinstance(result, ServiceError), f"a 404 of {name} became {result!r}"
    assert "not today" in str(result), f"the service's own words are not shown: {result}"


def test_lookups_that_need_not_wait_run_at_the_same_time(service: HTTPServer) -> None:
    both_asked = threading.Barrier(2)

    def answer(request: Request) -> Response:
        both_asked.wait(timeout=3)  # raises, and so returns 500, if the other is not asked
        return Response(json.dumps(ANSWERS[request.path.split("/")[1]]))

    for name in ("balance", "activity"):
        service.expect_oneshot_request(f"/{name}/101").respond_with_handler(answer)
    state = pipeline.churn_flow(101, DAY, return_state=True)
    assert state.is_completed(), f"balance and activity are not asked in parallel: {state.message}"


def test_the_key_names_the_user_and_the_day(service: HTTPServer) -> None:
    fail_at_first(service, "message", 1, 503)
    for day in (DAY, DAY, date(2026, 11, 29)):
        pipeline.churn_flow(101, day)
    keys = [request.headers.get("Idempotency-Key") for request in requests_of(service, "message")]
    assert keys[0], "the message has no idempotency key: a retry would deliver it twice"
    assert keys[1] == keys[0], "the second attempt has another key: it would deliver a second time"
    assert keys[2] == keys[0], "a second run of the same day has another key: it would send again"
    assert keys[3] != keys[0], "another day has the same key: its message would not be delivered"


def test_another_user_has_another_key(service: HTTPServer) -> None:
    for name, answer in ANSWERS.items():
        service.expect_request(f"/{name}/102").respond_with_json(answer | {"user_id": 102})
    keys = []
    for user_id in (101, 102):
        pipeline.churn_flow(user_id, DAY)
        (request,) = requests_of(service, "message", user_id)
        keys.append(request.headers.get("Idempotency-Key"))
    assert keys[0] != keys[1], f"both users have the key {keys[0]}: the second gets no message"


def test_the_day_is_today_if_it_is_not_given(service: HTTPServer) -> None:
    before = date.today()
    pipeline.churn_flow(101)
    key = requests_of(service, "message")[0].headers.get("Idempotency-Key", "")
    assert key.endswith((str(before), str(date.today()))), f"the key does not name today: {key!r}"


def test_the_message_is_about_the_user_and_the_prediction(service: HTTPServer) -> None:
    result = pipeline.churn_flow(101, DAY)
    expected = pipeline.predict_churn.fn(120.5, [5, 3, 2, 1])
    assert result["churn"] == pytest.approx(expected, abs=0.001), "the answers are not used"
    (request,) = requests_of(service, "message")
    message = (request.get_json(silent=True) or {}).get("message", "")
    assert "Ada Lovelace" in message, f"the message does not name the user: {message!r}"
    assert f"{expected:.0%}" in message, f"the message does not name the probability: {message!r}"


def test_each_failed_attempt_is_logged(
    service: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    fail_at_first(service, "balance", 2, 503)
    pipeline.churn_flow(101, DAY)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    for attempt in (1, 2):
        expected = f"balance service, user 101, attempt {attempt} failed"
        found = [line for line in warnings if expected in line and "503" in line]
        assert len(found) == 1, f"expected one WARNING {expected!r} with its reason, got {warnings}"


def test_retry_after_delays_the_next_attempt(service: HTTPServer) -> None:
    asked_at = []

    def answer(request: Request) -> Response:
        asked_at.append(time.monotonic())
        return Response("busy", 429, {"Retry-After": "2"})

    service.expect_oneshot_request("/user/101").respond_with_handler(answer)
    service.expect_oneshot_request("/user/101").respond_with_handler(answer)
    pipeline.churn_flow(101, DAY)
    waited = asked_at[1] - asked_at[0]
    assert waited >= 2, f"the service asked for 2 s, and was asked again after {waited:.1f} s"


def test_another_users_record_is_refused(service: HTTPServer) -> None:
    other = {"user_id": 102, "name": "Alan Turing"}
    service.expect_oneshot_request("/user/101").respond_with_json(other)
    result = pipeline.churn_flow(101, DAY, return_state=True).result(raise_on_failure=False)
    assert isinstance(result, ServiceError), f"another user's record became {result!r}"
    assert "another user" in str(result), f"the record of user 102 was taken for 101: {result}"
    assert not requests_of(service, "message"), "a message about the wrong user was sent"


def test_a_run_that_fails_exits_with_one_line(
    service: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at_first(service, "balance", 1, 404)
    monkeypatch.setattr("sys.argv", ["pipeline.py", "101"])
    with pytest.raises(SystemExit, match=r"error: .*/balance/101: 404 .*not today") as exit_info:
        pipeline.main()
    assert "\n" not in str(exit_info.value), "more than one line is printed"
