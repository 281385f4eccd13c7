"""Lesson 07: log through the run logger, and the records belong to the run, on the server."""

from logging import ERROR, WARNING
from types import ModuleType

from recorded import FlowRun, LogRecord, Record

SHORTEN = ["USER_SECONDS"]
SHORT_SECONDS = 0
CAUSE = "is it written by the logger that get_run_logger() returns inside the run?"


def logs_of(run: FlowRun, task: str | None, text: str) -> list[LogRecord]:
    """Return the records of this task, or of the flow (None), that have the text."""
    return [log for log in run.user_logs() if log.task == task and text in log.message]


def test_each_attempt_logs_to_its_task_run(lesson: ModuleType, record: Record) -> None:
    outages = lesson.fetch_user_info.retries
    run = record(lesson.logging_flow, 102, outages)
    assert run.state == "Completed", f"expected Completed after {outages} outages, got {run.state}"
    found = len(logs_of(run, "fetch_user_info", "102"))
    assert found > outages, f"expected a record of each attempt, got {found}: {CAUSE}"
    warnings = [log.task for log in run.user_logs() if log.level == WARNING]
    found = warnings.count("fetch_user_info")
    assert found >= outages, f"expected {outages} warnings of the task, got {found}: {CAUSE}"
    states = run.task_run("fetch_user_info").state_names()
    assert "AwaitingRetry" in states, "retried without a delay: is retry_delay_seconds missing?"


def test_without_an_outage_there_is_no_warning(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.logging_flow, 102, 0)
    warnings = [log.message for log in run.user_logs() if log.level >= WARNING]
    assert not warnings, f"expected no warning, got {warnings}"
    assert logs_of(run, None, "102"), f"no record of the flow names user 102: {CAUSE}"
    name = lesson.USERS[102]
    assert logs_of(run, None, name), f"no record of the flow names the result, {name}: {CAUSE}"


def test_the_final_failure_is_an_error_record_of_the_flow(
    lesson: ModuleType, record: Record
) -> None:
    run = record(lesson.logging_flow, 102, lesson.fetch_user_info.retries + 1)
    assert isinstance(run.result, ConnectionError), f"expected ConnectionError, got {run.result!r}"
    levels = [log.level for log in logs_of(run, None, "102")]
    assert ERROR in levels, f"expected an ERROR record of the flow, got {levels}: {CAUSE}"
