"""Lesson 07: log through the run logger, and the records belong to the run, on the server."""

from logging import ERROR, WARNING
from types import ModuleType

import pytest
from recorded import FlowRun, LogRecord, Record

HOW = "is it written by the logger that get_run_logger() gives inside the run?"


def logs_of(run: FlowRun, task: str | None, text: str) -> list[LogRecord]:
    """Return the records of this task, or of the flow, that have the text."""
    return [log for log in run.user_logs() if log.task == task and text in log.message]


@pytest.mark.parametrize("outages", [0, 3])
def test_each_attempt_leaves_its_records_with_the_task_run(
    lesson: ModuleType, record: Record, outages: int
) -> None:
    run = record(lesson.logging_flow, 102, outages)
    assert run.state == "Completed", f"{outages} outages end in {run.state}: is retries=3 missing?"
    tries = logs_of(run, "fetch_user_info", "102")
    assert len(tries) >= outages + 1, f"not every attempt says whom it looks up: {HOW}"
    warnings = [log.task for log in run.user_logs() if log.level == WARNING]
    assert warnings.count("fetch_user_info") >= outages, f"a failed attempt left no warning: {HOW}"
    if not outages:
        assert "fetch_user_info" not in warnings, "a warning, and nothing failed"


def test_the_flow_logs_its_start_and_its_end(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.logging_flow, 102, 0)
    assert logs_of(run, None, "102"), f"the flow does not say whom it is about: {HOW}"
    assert logs_of(run, None, lesson.USERS[102]), f"the flow does not log what it found: {HOW}"


def test_the_final_failure_is_an_error_record_of_the_flow(
    lesson: ModuleType, record: Record
) -> None:
    run = record(lesson.logging_flow, 102, 4)
    assert run.task_run("fetch_user_info").attempts == 4, "retries=3 are four attempts"
    assert isinstance(run.result, ConnectionError), f"the error became {run.result!r}"
    levels = [log.level for log in logs_of(run, None, "102")]
    assert ERROR in levels, f"the flow gives up without an ERROR record: {HOW}"


def test_the_script_shows_an_outage_that_is_logged(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.logging_flow)
    assert run.state == "Completed", f"the flow run ended as {run.state}"
    step = run.task_run("fetch_user_info")
    assert step.attempts > 1, "nothing fails, so there is no warning to see"
    assert all(delay > 0 for delay in step.delays()), "lesson 06's delay is gone"
