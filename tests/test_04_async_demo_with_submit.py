"""Lesson 04: submitted, independent tasks run at the same time."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest
from support import (
    ADA,
    LOOKUPS,
    STORY,
    FlowRun,
    assert_elapsed,
    read,
    script_path,
    told,
)

SCALE = 0.5
READ = read("04")


@pytest.fixture(scope="module")
def run(lesson: ModuleType, record: Callable[..., FlowRun]) -> FlowRun:
    """Return the flow run with the default parameters."""
    return record(lesson.async_flow)


def test_the_three_lookups_overlap(run: FlowRun) -> None:
    steps = run.task_runs()
    assert {step.task for step in steps} == set(LOOKUPS), f"not these three lookups ran; {READ}"
    for first, second in combinations(steps, 2):
        assert first.overlaps(second), (
            f"{first.task} and {second.task} ran one after the other: a lookup was called instead "
            f"of submitted, or its .result() came before the next .submit(); {READ}"
        )


def test_the_flow_takes_as_long_as_the_slowest_lookup(run: FlowRun) -> None:
    steps = {step.task: step for step in run.task_runs()}
    last = max(steps.values(), key=lambda step: step.end)
    assert last.task == "fetch_recent_activity", f"the slowest lookup did not end last; {READ}"
    first = min(step.start for step in steps.values())
    whole, slowest = last.end - first, last.end - last.start
    assert whole < 1.5 * slowest, f"all together took much longer than the slowest; {READ}"


def test_the_lookups_do_not_depend_on_each_other(run: FlowRun) -> None:
    assert run.edges() == set(), (
        f"the run graph has arrows, so one lookup waits for another; {READ}"
    )


def test_the_result_is_the_one_of_the_sequential_flow(
    lesson: ModuleType,
    record: Callable[..., FlowRun],
    slept: list[float],
    submitted: list[str],
    load_scaled: Callable[[Path, float], ModuleType],
) -> None:
    run = record(lesson.async_flow, 102)
    assert set(submitted) == set(LOOKUPS), f"a lookup is called instead of submitted; {READ}"
    seconds = [lesson.USER_SECONDS, lesson.BALANCE_SECONDS, lesson.ACTIVITY_SECONDS]
    assert sorted(slept) == seconds, f"each lookup takes a time of its own; {READ}"
    sequential = load_scaled(script_path("03"), 0)
    expected = {
        "user": sequential.fetch_user_info.fn(102),
        "balance": sequential.fetch_account_balance.fn(102),
        "activity": sequential.fetch_recent_activity.fn(102),
    }
    assert run.value == expected, f"concurrency must not change the result; {READ}"
    assert (run.flow_name, run.state) == ("async-flow", "Completed"), READ
    assert run.data["parameters"] == {"user_id": 102}, f"the parameters were not recorded; {READ}"


def test_an_unknown_user_fails_the_flow_run(
    lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    run = record(lesson.async_flow, 999)
    assert repr(run.value) == "LookupError('no user 999')", (
        f".result() of a failed future raises its error; {READ}"
    )
    assert {step.task for step in run.task_runs()} == set(LOOKUPS), (
        f"submitted at the same time, all three start before the first fails; {READ}"
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
    assert_elapsed(elapsed, 3 * SCALE, READ)
    assert result == str(ADA), f"the script prints another result; {READ}"
