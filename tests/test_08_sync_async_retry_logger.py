"""Lesson 08: the whole pipeline: concurrent, retried and logged, and one message for each run."""

import threading
from logging import WARNING
from types import ModuleType
from unittest.mock import Mock

import pytest
from recorded import Record, ReplaceTaskBody

TASKS = {  # by the service that they call
    "user": "fetch_user_info",
    "balance": "fetch_account_balance",
    "activity": "fetch_recent_activity",
    "message": "send_notification",
}
SUBMITTED = ["fetch_account_balance", "fetch_recent_activity"]
SHORTEN = [
    "USER_SECONDS",
    "BALANCE_SECONDS",
    "ACTIVITY_SECONDS",
    "PREDICTION_SECONDS",
    "NOTIFICATION_SECONDS",
]
SHORT_SECONDS = 0
EDGES = {
    ("fetch_user_info", "fetch_account_balance"),
    ("fetch_user_info", "fetch_recent_activity"),
    ("fetch_account_balance", "predict_churn"),
    ("fetch_recent_activity", "predict_churn"),
    ("fetch_user_info", "send_notification"),
    ("predict_churn", "send_notification"),
}


@pytest.fixture(autouse=True)
def every_service_is_up(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test without outages."""
    monkeypatch.setattr(lesson, "OUTAGES", {})


def test_the_tasks_form_a_diamond_and_the_notification_comes_last(
    lesson: ModuleType, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BALANCE_SECONDS", "ACTIVITY_SECONDS"):
        monkeypatch.setattr(lesson, name, 0.5)  # long enough to overlap
    run = record(lesson.pipeline_flow, 102)
    assert run.state == "Completed", f"expected Completed, got {run.state}: {run.result}"
    assert run.overlap(*SUBMITTED), (
        "balance and activity ran one after the other: the first .result() came before the "
        "second .submit(), or a task was called"
    )
    assert run.edges() == EDGES, f"a result is not passed on: {EDGES ^ run.edges()}"
    found = (run.result["user"]["name"], run.result["balance"], run.result["activity"])
    expected = (lesson.USERS[102], lesson.BALANCES[102], lesson.LOGINS[102])
    assert found == expected, f"expected {expected} for user 102, got {found}"
    logged = " ".join(log.message for log in run.user_logs() if log.task is None)
    assert lesson.USERS[102] in logged, f"no log record of the flow names the user: {logged}"


def test_the_message_is_about_what_the_tasks_returned(
    lesson: ModuleType, record: Record, replace_task_body: ReplaceTaskBody
) -> None:
    predict = Mock(return_value=0.6)
    replace_task_body("fetch_user_info", lambda user_id: {"user_id": 7, "name": "Somebody Else"})
    for name in SUBMITTED:
        replace_task_body(name, lambda user: threading.get_ident())
    replace_task_body("predict_churn", lambda balance, activity: predict(balance, activity))
    record(lesson.pipeline_flow)
    assert threading.get_ident() not in predict.call_args.args, (
        "balance or activity ran in the flow's thread: it was called instead of submitted"
    )
    (message,) = lesson.DELIVERED.values()
    for text in ("Somebody Else", "60"):  # percent
        assert text in message, f"expected {text!r} in the message, got {message!r}"


@pytest.mark.parametrize("services", [("user", "message"), ("balance", "activity")])
def test_an_outage_retries_only_the_affected_task(
    lesson: ModuleType, record: Record, monkeypatch: pytest.MonkeyPatch, services: tuple[str, ...]
) -> None:
    monkeypatch.setattr(lesson, "OUTAGES", dict.fromkeys(services, 1))
    run = record(lesson.pipeline_flow)
    affected = {TASKS[service] for service in services}
    assert run.state == "Completed", (
        f"expected Completed after one outage, got {run.state} ({run.result!r}): are retries "
        "missing, or does retry_condition_fn refuse a ConnectionError?"
    )
    attempts = {task_run.name: task_run.attempts for task_run in run.task_runs}
    expected = {name: 2 if name in affected else 1 for name in attempts}
    assert attempts == expected, f"expected retries of {affected} only, got attempts {attempts}"
    delayed = {it.name for it in run.task_runs if "AwaitingRetry" in it.state_names()}
    assert delayed == affected, f"retried without a delay: {affected - delayed}"
    warned = {log.task for log in run.user_logs() if log.level == WARNING}
    assert affected <= warned, f"no warning in the task runs of {affected - warned}"


@pytest.mark.parametrize(
    ("name", "error"),
    [*((name, LookupError) for name in TASKS.values()), ("predict_churn", ConnectionError)],
)
def test_permanent_errors_are_not_retried(
    lesson: ModuleType,
    record: Record,
    replace_task_body: ReplaceTaskBody,
    name: str,
    error: type[Exception],
) -> None:
    replace_task_body(name, Mock(side_effect=error))
    run = record(lesson.pipeline_flow)
    assert isinstance(run.result, error), f"expected {error.__name__}, got {run.result!r}"
    attempts = run.task_run(name).attempts
    assert attempts == 1, (
        f"expected 1 attempt of {name} after {error.__name__}, got {attempts}: "
        "is retry_condition_fn missing, or has a task retries that calls no service?"
    )
    assert lesson.DELIVERED == {}, "a message was sent although the pipeline failed"


def test_each_flow_run_sends_one_message_in_all_attempts(
    lesson: ModuleType, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson, "OUTAGES", {"message": 99})
    for number in (1, 2):
        run = record(lesson.pipeline_flow)
        assert run.state == "Failed", f"expected Failed after the last attempt, got {run.state}"
        assert run.task_run("send_notification").attempts > 1, "send_notification is not retried"
        assert len(lesson.DELIVERED) == number, (
            f"expected {number} messages of {number} flow runs, got {len(lesson.DELIVERED)}: "
            "does the key name the flow run, and nothing else that changes?"
        )
