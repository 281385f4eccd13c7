"""Lesson 08: the whole pipeline, the template to copy."""

import re
from collections.abc import Callable
from logging import ERROR, INFO, WARNING
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect import flow
from prefect.states import Failed
from support import (
    ADA_CHURN,
    ALAN_CHURN,
    STORY,
    FlowRun,
    assert_delays,
    assert_diamond,
    assert_passed_on,
    read,
    told,
)

SCALE = 0.02
TIMED_SCALE = 0.2  # where it is looked at what overlaps
READ = read("08")
RETRIED = [
    "fetch_user_info",
    "fetch_account_balance",
    "fetch_recent_activity",
    "send_notification",
]
STEPS = [*RETRIED[:3], "predict_churn", RETRIED[3]]
SECONDS = dict(zip(STEPS, STORY, strict=False))  # the story begins with how long each step takes
MESSAGE = "Ada Lovelace leaves with a probability of 66%"


@pytest.fixture(autouse=True)
def delivered(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what the message service delivers in this test."""
    messages: dict[str, str] = {}
    monkeypatch.setattr(lesson, "DELIVERED", messages)
    return messages


@pytest.fixture
def outages(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return the attempts that fail, by step, for the test to fill in."""
    numbers: dict[str, int] = {}
    monkeypatch.setattr(lesson, "OUTAGES", numbers)
    return numbers


@pytest.fixture(scope="module")
def run(
    path: Path,
    load_scaled: Callable[[Path, float], ModuleType],
    record: Callable[..., FlowRun],
) -> FlowRun:
    """Return the flow run with the default parameters."""
    run = record(load_scaled(path, TIMED_SCALE).pipeline_flow)
    assert run.state == "Completed", f"the outage of a step ended it: {run.message}; {READ}"
    return run


def test_the_steps_form_the_diamond_and_the_notification_comes_last(run: FlowRun) -> None:
    assert_diamond(run, READ)
    assert run.task_runs()[-1].task == "send_notification", f"the notification is not last; {READ}"
    assert sorted(step.task for step in run.task_runs()) == sorted(STEPS), (
        f"each of the five steps runs once; {READ}"
    )


@pytest.mark.usefixtures("slept")
def test_the_run_graph_is_the_diamond_with_the_notification(
    lesson: ModuleType,
    record: Callable[..., FlowRun],
    other_results: dict[str, Any],
    delivered: dict[str, str],
) -> None:
    run = record(lesson.pipeline_flow)
    assert_passed_on(other_results, run, READ)
    assert list(delivered.values()) == ["Somebody Else leaves with a probability of 60%"], (
        f"the message is not made of what the other steps returned; {READ}"
    )
    assert run.edges() == {
        ("fetch_user_info", "fetch_account_balance"),
        ("fetch_user_info", "fetch_recent_activity"),
        ("fetch_account_balance", "predict_churn"),
        ("fetch_recent_activity", "predict_churn"),
        ("fetch_user_info", "send_notification"),
        ("predict_churn", "send_notification"),
    }, f"results are not passed along the arrows of the pipeline; {READ}"


def test_the_run_is_recorded_with_its_result(run: FlowRun) -> None:
    assert run.flow_name == "pipeline-flow", f"the flow has another name; {READ}"
    assert run.data["parameters"] == {"user_id": 101}, f"the parameters were not recorded; {READ}"
    assert run.value == ADA_CHURN, f"the flow returns something else; {READ}"
    assert run.task_run("fetch_account_balance").attempts == 2, (
        f"the lesson shows one outage, of the balance service; {READ}"
    )


def test_all_that_touches_the_outside_declares_the_retries_of_lesson_06(
    as_written: ModuleType,
) -> None:
    for name in RETRIED:
        step = getattr(as_written, name)
        assert step.retries == 3, f"{name} declares {step.retries} retries, not 3; {READ}"
        assert step.retry_delay_seconds == 5, f"{name} does not wait 5 s between attempts; {READ}"
        assert step.retry_condition_fn is as_written.is_transient, (
            f"{name} has no condition, so it also retries what no retry cures; {READ}"
        )
    assert as_written.predict_churn.retries == 0, f"a computation needs no retries; {READ}"


@pytest.mark.parametrize("step", RETRIED)
def test_an_outage_in_any_step_is_survived(
    lesson: ModuleType,
    record: Callable[..., FlowRun],
    outages: dict[str, int],
    delivered: dict[str, str],
    slept: list[float],
    step: str,
) -> None:
    outages[step] = 2
    run = record(lesson.pipeline_flow)
    assert run.state == "Completed", f"two outages in {step} end in {run.state}; {READ}"
    seconds = [getattr(lesson, SECONDS[each]) for each in [*STEPS, step, step]]
    assert sorted(slept) == sorted(seconds), f"not every attempt takes its step's time; {READ}"
    assert run.value == ADA_CHURN, f"an outage must not change the result; {READ}"
    for task_run in run.task_runs():
        expected = 3 if task_run.task == step else 1
        assert task_run.attempts == expected, (
            f"{task_run.task} took {task_run.attempts} attempts, not {expected}; {READ}"
        )
    assert_delays(run.task_run(step), [5 * SCALE] * 2, READ)
    warnings = [record for record in run.logs() if record[0] == WARNING]
    assert warnings == [
        (WARNING, f"Service is down, attempt {attempt} failed", step) for attempt in (1, 2)
    ], f"a failed attempt leaves its warning; {READ}"
    assert list(delivered.values()) == [MESSAGE], f"one run sends one message; {READ}"


def test_an_outage_that_lasts_fails_the_flow_run(
    lesson: ModuleType,
    record: Callable[..., FlowRun],
    outages: dict[str, int],
    delivered: dict[str, str],
) -> None:
    outages["send_notification"] = 4
    run = record(lesson.pipeline_flow)
    assert run.state == "Failed", f"four outages of a step end in {run.state}; {READ}"
    assert run.task_run("send_notification").attempts == 4, f"not four attempts; {READ}"
    assert str(run.value) == "send_notification: service is down (attempt 4)", READ
    assert list(delivered.values()) == [MESSAGE], (
        f"the message went out in the first attempt, and every further one sent it again; {READ}"
    )


def test_an_unknown_user_fails_at_once_without_a_retry(
    lesson: ModuleType,
    record: Callable[..., FlowRun],
    outages: dict[str, int],
    delivered: dict[str, str],
) -> None:
    run = record(lesson.pipeline_flow, 999)
    assert repr(run.value) == "LookupError('no user 999')", f"another error; {READ}"
    (fetch,) = run.task_runs()
    assert fetch.states() == ["Pending", "Running", "Failed"], (
        f"an unknown user was tried again, though no retry cures that; {READ}"
    )
    assert run.logs() == [
        (INFO, "Starting for user 999", None),
        (ERROR, "There is no user 999", "fetch_user_info"),
    ], f"the failure is not logged; {READ}"
    assert delivered == {}, f"a failed run sends nothing; {READ}"


@pytest.mark.parametrize("error", [ConnectionError("x"), TimeoutError("x"), ConnectionResetError()])
def test_a_transient_error_is_worth_another_attempt(lesson: ModuleType, error: Exception) -> None:
    assert is_retried(lesson, error), f"{error!r} is transient, but not retried; {READ}"


@pytest.mark.parametrize("error", [LookupError("x"), ValueError("x"), KeyError("x"), OSError("x")])
def test_a_permanent_error_is_not(lesson: ModuleType, error: Exception) -> None:
    assert not is_retried(lesson, error), f"{error!r} is permanent, but retried; {READ}"


def is_retried(lesson: ModuleType, error: Exception) -> Any:
    """Return whether the lesson's condition asks for another attempt after the error."""
    return lesson.is_transient(lesson.fetch_user_info, None, Failed(data=error))


def test_every_step_is_logged(run: FlowRun) -> None:
    records = run.logs()
    assert records[-1][1].startswith("Finished in "), f"the flow's end is not logged; {READ}"
    # The two lookups run at the same time, so their records have no order.
    assert sorted(records[:-1], key=str) == sorted(
        [
            (INFO, "Starting for user 101", None),
            (INFO, "User 101 is Ada Lovelace", "fetch_user_info"),
            (WARNING, "Service is down, attempt 1 failed", "fetch_account_balance"),
            (INFO, "Balance is 120.50 dollars", "fetch_account_balance"),
            (INFO, "Logins per week are [5, 3, 2, 1]", "fetch_recent_activity"),
            (INFO, "Probability of leaving is 0.659", "predict_churn"),
            (INFO, f"Sent: {MESSAGE}", "send_notification"),
        ],
        key=str,
    ), f"a step is not logged, or not by the run logger; {READ}"


@pytest.mark.usefixtures("outages", "slept")
def test_the_flow_is_about_the_user_asked_for(
    lesson: ModuleType,
    record: Callable[..., FlowRun],
    delivered: dict[str, str],
    submitted: list[str],
) -> None:
    run = record(lesson.pipeline_flow, 102)
    assert {"fetch_account_balance", "fetch_recent_activity"} <= set(submitted), (
        f"a lookup that need not wait is called instead of submitted; {READ}"
    )
    assert run.value == ALAN_CHURN, f"the flow is about another user; {READ}"
    message = "Alan Turing leaves with a probability of 3%"
    assert list(delivered.values()) == [message], f"the message is about another user; {READ}"


@pytest.mark.usefixtures("outages", "slept")
def test_the_notification_returns_the_message_that_it_sent(
    lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    @flow
    def notify() -> Any:
        return lesson.send_notification({"user_id": 101, "name": "Ada Lovelace"}, 0.659)

    assert record(notify).value == MESSAGE, f"the task does not return its message; {READ}"


def test_every_run_sends_a_message_of_its_own(
    lesson: ModuleType,
    record: Callable[..., FlowRun],
    outages: dict[str, int],
    delivered: dict[str, str],
) -> None:
    runs = [record(lesson.pipeline_flow) for _ in range(2)]
    assert list(delivered) == [f"churn-{run.id}-101" for run in runs], (
        f"the key is not the flow run's own: two runs are two messages; {READ}"
    )


def test_the_elapsed_time_is_that_of_the_flow(run: FlowRun) -> None:
    first, *_, last = run.task_runs()
    steps = (last.end - first.start).total_seconds()
    _, text, _ = run.logs()[-1]
    elapsed = re.fullmatch(r"Finished in ([0-9.]+) s", text)
    assert elapsed, f"the last record is {text!r}: does get_run_logger() log the flow's end? {READ}"
    said = float(elapsed[1])
    rounded = 0.06  # one digit is logged
    assert steps - rounded <= said <= run.seconds + rounded, (
        f"the log tells {said} s; the steps took {steps} s and the flow run {run.seconds} s; {READ}"
    )


def test_the_story_is_the_common_one(path: Path) -> None:
    assert told(path) == STORY, READ


def test_the_script_prints_the_result(printed: str) -> None:
    assert printed == f"{ADA_CHURN}\n", f"the script prints something else; {READ}"
