"""Lesson 06: a task that fails for a while is tried again."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from support import STORY, FlowRun, assert_delays, read, told

SCALE = 0.04
READ = read("06")
RETRY = ["AwaitingRetry", "Retrying"]


def test_three_retries_five_seconds_apart_are_declared(as_written: ModuleType) -> None:
    fetch = as_written.fetch_user_info
    assert fetch.retries == 3, f"retries is {fetch.retries}, not 3; {READ}"
    assert fetch.retry_delay_seconds == 5, f"the delay is {fetch.retry_delay_seconds} s; {READ}"
    assert as_written.retry_flow.retries in (None, 0), f"the task is retried, not the flow; {READ}"


@pytest.mark.parametrize("outages", [0, 1, 2, 3])
def test_it_completes_on_the_first_attempt_after_the_outage(
    lesson: ModuleType, record: Callable[..., FlowRun], slept: list[float], outages: int
) -> None:
    run = record(lesson.retry_flow, 101, outages)
    fetch = run.task_run("fetch_user_info")
    assert run.state == "Completed", f"{outages} outages end in {run.state}; {READ}"
    assert fetch.attempts == outages + 1, (
        f"{outages} outages took {fetch.attempts} attempts: the outage does not go by the "
        f"attempt's number; {READ}"
    )
    assert fetch.states() == ["Pending", "Running", *RETRY * outages, "Completed"], (
        f"the states do not alternate between waiting and retrying; {READ}"
    )
    assert_delays(fetch, [5 * SCALE] * outages, READ)
    assert slept == [lesson.USER_SECONDS] * (outages + 1), (
        f"not every attempt takes the time of a lookup; {READ}"
    )
    assert run.value == {"user_id": 101, "name": "Ada Lovelace"}, f"another result; {READ}"


def test_after_four_failed_attempts_the_last_error_fails_the_flow_run(
    lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    run = record(lesson.retry_flow, outages=4)
    fetch = run.task_run("fetch_user_info")
    assert run.state == "Failed", f"four outages end in {run.state}; {READ}"
    assert fetch.states() == ["Pending", "Running", *RETRY * 3, "Failed"], (
        f"it is not four attempts that fail: {fetch.states()}; {READ}"
    )
    assert repr(run.value) == "ConnectionError('user service is down (attempt 4)')", (
        f"the flow run does not fail with the error of the fourth attempt: {run.value!r}; {READ}"
    )


def test_two_outages_are_the_default(lesson: ModuleType, record: Callable[..., FlowRun]) -> None:
    run = record(lesson.retry_flow)
    assert run.flow_name == "retry-flow", f"the flow has another name; {READ}"
    given = run.data["parameters"]
    assert given == {"user_id": 101, "outages": 2}, f"the defaults are {given}; {READ}"
    assert run.task_run("fetch_user_info").attempts == 3, f"not the third attempt; {READ}"


def test_an_unknown_user_is_an_error(lesson: ModuleType, record: Callable[..., FlowRun]) -> None:
    run = record(lesson.retry_flow, 999, 0)
    assert repr(run.value) == "LookupError('no user 999')", f"another error; {READ}"


def test_the_story_is_the_common_one(path: Path) -> None:
    assert told(path) == {name: STORY[name] for name in ("USER_SECONDS", "USERS")}, READ


def test_the_script_prints_the_user(printed: str) -> None:
    assert printed == "{'user_id': 101, 'name': 'Ada Lovelace'}\n", READ
