"""Lesson 07: what the run logger writes belongs to the run, on the server."""

from collections.abc import Callable
from logging import ERROR, INFO, WARNING
from pathlib import Path
from types import ModuleType

import pytest
from support import STORY, FlowRun, read, told

SCALE = 0.04
READ = read("07")
FETCH = "fetch_user_info"
ADA = {"user_id": 101, "name": "Ada Lovelace"}


def attempts(outages: int, number: int) -> list[tuple[int, str, str | None]]:
    """Return the records of so many attempts, of which the first `outages` fail."""
    records: list[tuple[int, str, str | None]] = []
    for attempt in range(1, number + 1):
        records.append((INFO, f"Looking up user 101, attempt {attempt}", FETCH))
        if attempt <= outages:
            records.append((WARNING, f"User service is down, attempt {attempt} failed", FETCH))
    return records


@pytest.mark.parametrize("outages", [0, 1, 2, 3])
def test_every_record_is_on_the_server_with_its_level_and_its_run(
    lesson: ModuleType, record: Callable[..., FlowRun], slept: list[float], outages: int
) -> None:
    run = record(lesson.logging_flow, 101, outages)
    assert run.state == "Completed", f"{outages} outages end in {run.state}; {READ}"
    assert run.logs() == [
        (INFO, "Starting for user 101", None),
        *attempts(outages, outages + 1),
        (INFO, "Finished: user 101 is Ada Lovelace", None),
    ], f"the server has other records: is every one written by get_run_logger()? {READ}"
    assert slept == [lesson.USER_SECONDS] * (outages + 1), (
        f"not every attempt takes the time of a lookup; {READ}"
    )
    assert run.value == ADA, f"the flow returns something else; {READ}"


def test_a_final_failure_is_logged_as_an_error_of_the_flow_run(
    lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    run = record(lesson.logging_flow, 101, 4)
    assert run.state == "Failed", f"four outages end in {run.state}; {READ}"
    assert run.logs() == [
        (INFO, "Starting for user 101", None),
        *attempts(4, 4),
        (ERROR, "No answer about user 101, giving up", None),
    ], f"the server has other records of the failure; {READ}"
    assert repr(run.value) == "ConnectionError('user service is down (attempt 4)')", (
        f"logging an error must not swallow it; {READ}"
    )


def test_the_retries_are_those_of_lesson_06(
    as_written: ModuleType, lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    fetch = lesson.fetch_user_info
    assert fetch.retries == 3, f"retries is {fetch.retries}, not 3; {READ}"
    assert fetch.retry_delay_seconds / SCALE == pytest.approx(5), f"the delay is not 5 s; {READ}"
    run = record(lesson.logging_flow)
    assert (run.flow_name, run.state) == ("logging-flow", "Completed"), READ
    assert run.data["parameters"] == {"user_id": 101, "outages": 2}, READ
    assert run.task_run(FETCH).attempts == 3, f"not the third attempt; {READ}"


def test_an_unknown_user_is_an_error(lesson: ModuleType, record: Callable[..., FlowRun]) -> None:
    run = record(lesson.logging_flow, 999, 0)
    assert repr(run.value) == "LookupError('no user 999')", f"another error; {READ}"


def test_the_story_is_the_common_one(path: Path) -> None:
    assert told(path) == {name: STORY[name] for name in ("USER_SECONDS", "USERS")}, READ


def test_the_script_prints_the_user(printed: str) -> None:
    assert printed == f"{ADA}\n", f"the script prints something else; {READ}"
