"""Lesson 05: dependencies and concurrency together; the flow takes the critical path."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import (
    ADA_CHURN,
    ALAN_CHURN,
    STORY,
    FlowRun,
    assert_diamond,
    assert_elapsed,
    assert_passed_on,
    read,
    told,
)

SCALE = 0.4
READ = read("05")


@pytest.fixture(scope="module")
def run(lesson: ModuleType, record: Callable[..., FlowRun]) -> FlowRun:
    """Return the flow run with the default parameters."""
    return record(lesson.mixed_flow)


def test_user_first_then_both_lookups_together_then_the_prediction(run: FlowRun) -> None:
    assert_diamond(run, READ)


@pytest.mark.usefixtures("slept")
def test_the_run_graph_is_the_diamond(
    lesson: ModuleType, record: Callable[..., FlowRun], other_results: dict[str, Any]
) -> None:
    run = record(lesson.mixed_flow)
    assert_passed_on(other_results, run, READ)
    assert run.edges() == {
        ("fetch_user_info", "fetch_account_balance"),
        ("fetch_user_info", "fetch_recent_activity"),
        ("fetch_account_balance", "predict_churn"),
        ("fetch_recent_activity", "predict_churn"),
    }, f"results are not passed along the four arrows of the diamond; {READ}"


def test_the_run_is_recorded_with_its_result(run: FlowRun) -> None:
    assert (run.flow_name, run.state) == ("mixed-flow", "Completed"), READ
    assert run.data["parameters"] == {"user_id": 101}, f"the parameters were not recorded; {READ}"
    assert run.value == ADA_CHURN, f"the flow returns something else; {READ}"


def test_the_flow_is_about_the_user_asked_for(
    lesson: ModuleType,
    record: Callable[..., FlowRun],
    slept: list[float],
    submitted: list[str],
) -> None:
    run = record(lesson.mixed_flow, 102)
    assert {"fetch_account_balance", "fetch_recent_activity"} <= set(submitted), (
        f"a lookup that need not wait is called instead of submitted; {READ}"
    )
    assert run.value == ALAN_CHURN, f"the flow is about another user; {READ}"
    lookups = [lesson.BALANCE_SECONDS, lesson.ACTIVITY_SECONDS]
    assert slept[0] == lesson.USER_SECONDS, f"the user takes another time; {READ}"
    assert sorted(slept[1:-1]) == lookups, f"each lookup takes a time of its own; {READ}"
    assert slept[-1] == lesson.PREDICTION_SECONDS, f"the prediction takes another time; {READ}"


@pytest.mark.parametrize("balance", [-1e6, 0.0, 120.5, 1e6])
@pytest.mark.parametrize("activity", [[0, 0, 0, 0], [5, 3, 2, 1], [40, 40, 40, 40]])
def test_the_prediction_is_the_logistic_model(
    lesson: ModuleType, balance: float, activity: list[int]
) -> None:
    churn = lesson.predict_churn.fn(balance, activity)
    score = 2.0 - 0.002 * balance - 0.1 * sum(activity)
    logistic = 1 / (1 + math.exp(-score)) if score > -700 else 0.0
    assert churn == pytest.approx(logistic, abs=1e-12), f"not 1 / (1 + exp(-score)); {READ}"
    assert 0 <= churn <= 1, f"{churn} is no probability; {READ}"


def test_an_unknown_user_stops_it_at_the_first_lookup(
    lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    run = record(lesson.mixed_flow, 999)
    assert repr(run.value) == "LookupError('no user 999')", f"another error; {READ}"
    assert [step.task for step in run.task_runs()] == ["fetch_user_info"], (
        f"what depends on the user must not start without one; {READ}"
    )


def test_the_story_is_the_common_one(path: Path) -> None:
    expected = {name: value for name, value in STORY.items() if name != "NOTIFICATION_SECONDS"}
    assert told(path) == expected, READ


def test_the_script_prints_the_elapsed_time_and_the_result(printed: str) -> None:
    elapsed, result = printed.splitlines()
    assert_elapsed(elapsed, 5 * SCALE, READ)
    assert result == str(ADA_CHURN), f"the script prints another result; {READ}"
