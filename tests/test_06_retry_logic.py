"""Lesson 06: a task that fails for a while is retried, after a delay."""

from types import ModuleType

from recorded import Record

SHORTEN = ["USER_SECONDS"]
SHORT_SECONDS = 0


def test_an_outage_is_survived_after_a_delay_before_each_retry(
    lesson: ModuleType, record: Record
) -> None:
    outages = lesson.fetch_user_info.retries
    assert outages, "fetch_user_info has no retries="
    run = record(lesson.retry_flow, 102, outages)
    assert run.state == "Completed", f"expected Completed after {outages} outages, got {run.state}"
    assert run.result["name"] == lesson.USERS[102], f"expected user 102, got {run.result}"
    task_run = run.task_run("fetch_user_info")
    assert task_run.attempts == outages + 1, (
        f"expected {outages + 1} attempts, got {task_run.attempts}: is run_count compared?"
    )
    assert task_run.state_names().count("AwaitingRetry") == outages, (
        "retried without a delay: is retry_delay_seconds missing?"
    )


def test_a_longer_outage_fails_the_flow_run(lesson: ModuleType, record: Record) -> None:
    retries = lesson.fetch_user_info.retries
    run = record(lesson.retry_flow, 101, retries + 1)
    attempts = run.task_run("fetch_user_info").attempts
    assert attempts == retries + 1, f"expected {retries + 1} attempts, got {attempts}"
    assert run.state == "Failed", f"expected Failed after the last attempt, got {run.state}"
    assert isinstance(run.result, ConnectionError), f"expected ConnectionError, got {run.result!r}"


def test_the_lesson_shows_an_outage_that_is_survived(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.retry_flow)
    attempts = run.task_run("fetch_user_info").attempts
    assert attempts > 1, "expected a retry by default, got 1 attempt: there is nothing to see"
    assert run.state == "Completed", f"expected Completed by default, got {run.state}"
