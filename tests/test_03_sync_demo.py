"""Lesson 03: called like functions, tasks run one after the other."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from support import ADA, LOOKUPS, STORY, FlowRun, assert_elapsed, read, told

SCALE = 0.1
READ = read("03")


@pytest.fixture(scope="module")
def run(lesson: ModuleType, record: Callable[..., FlowRun]) -> FlowRun:
    """Return the flow run with the default parameters."""
    return record(lesson.sync_flow)


def test_each_lookup_ends_before_the_next_one_starts(run: FlowRun) -> None:
    steps = run.task_runs()
    assert [step.task for step in steps] == LOOKUPS, f"the lookups ran in another order; {READ}"
    for first, second in pairwise(steps):
        assert first.end <= second.start, (
            f"{second.task} started before {first.task} ended: they were submitted, not called; "
            f"{READ}"
        )


@pytest.mark.usefixtures("slept")
def test_tasks_are_called_and_not_submitted(
    lesson: ModuleType, record: Callable[..., FlowRun], submitted: list[str]
) -> None:
    record(lesson.sync_flow)
    assert submitted == [], f"a task is called like a function, .submit() is lesson 04's; {READ}"


def test_the_run_is_recorded_with_its_result(run: FlowRun) -> None:
    assert (run.flow_name, run.state) == ("sync-flow", "Completed"), READ
    assert run.data["parameters"] == {"user_id": 101}, f"the parameters were not recorded; {READ}"
    assert run.value == ADA, f"the flow returns something else; {READ}"


def test_the_flow_is_about_the_user_asked_for(
    lesson: ModuleType, record: Callable[..., FlowRun], slept: list[float]
) -> None:
    run = record(lesson.sync_flow, 102)
    user = {"user_id": 102, "name": "Alan Turing"}
    assert run.value == {"user": user, "balance": 980.0, "activity": [9, 8, 9, 10]}, READ
    assert slept == [lesson.USER_SECONDS, lesson.BALANCE_SECONDS, lesson.ACTIVITY_SECONDS], (
        f"each lookup takes a time of its own; {READ}"
    )


def test_an_unknown_user_stops_it_at_the_first_lookup(
    lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    run = record(lesson.sync_flow, 999)
    assert repr(run.value) == "LookupError('no user 999')", f"another error; {READ}"
    assert [step.task for step in run.task_runs()] == LOOKUPS[:1], (
        f"one after the other means that nothing runs after a failure; {READ}"
    )


@pytest.mark.usefixtures("slept")
@pytest.mark.parametrize("lookup", LOOKUPS)
def test_each_lookup_refuses_an_unknown_user_by_itself(lesson: ModuleType, lookup: str) -> None:
    with pytest.raises(LookupError, match="no user 999"):
        getattr(lesson, lookup).fn(999)


def test_the_story_is_the_common_one(path: Path) -> None:
    names = (*list(STORY)[:3], "USERS", "BALANCES", "LOGINS")
    assert told(path) == {name: STORY[name] for name in names}, READ


def test_the_script_prints_the_elapsed_time_and_the_result(printed: str) -> None:
    elapsed, result = printed.splitlines()
    assert_elapsed(elapsed, 6 * SCALE, READ)
    assert result == str(ADA), f"the script prints another result; {READ}"
