"""Lesson 02: tasks are the steps of a flow, and results go from one to the next."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from prefect import flow
from support import STORY, FlowRun, read, told

SCALE = 0.05
READ = read("02")


def test_both_steps_are_task_runs_of_the_flow_run(
    lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    run = record(lesson.greeting_flow, 102)
    assert run.flow_name == "greeting-flow", f"the flow has another name; {READ}"
    assert run.data["parameters"] == {"user_id": 102}, f"the parameters were not recorded; {READ}"
    steps = [(step.task, step.state) for step in run.task_runs()]
    assert steps == [("fetch_user_info", "Completed"), ("compose_greeting", "Completed")], (
        f"the two steps are not two task runs in this order; {READ}"
    )
    assert run.value == "Hello, Alan Turing!", f"the flow does not return the greeting; {READ}"


@pytest.mark.usefixtures("other_results")
def test_the_result_of_one_task_is_the_input_of_the_next(
    lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    run = record(lesson.greeting_flow)
    assert run.value == "Hello, Somebody Else!", (
        f"the greeting is not made of what fetch_user_info returned; {READ}"
    )
    assert run.edges() == {("fetch_user_info", "compose_greeting")}, (
        f"the run graph has no arrow from fetch_user_info to compose_greeting alone: the user is "
        f"not passed from task to task; {READ}"
    )


@pytest.mark.usefixtures("slept")
def test_an_arrow_can_come_from_a_key_that_two_values_share(
    lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    @flow
    def unrelated_flow() -> None:
        lesson.fetch_user_info(101)
        lesson.compose_greeting({"name": "Somebody Else"})

    assert record(unrelated_flow).edges() == {("fetch_user_info", "compose_greeting")}, (
        f"Prefect tells the two apart now, and the page says that it does not; {READ}"
    )


def test_a_task_is_called_like_a_function_too(lesson: ModuleType, slept: list[float]) -> None:
    user = {"user_id": 103, "name": "Grace Hopper"}
    assert lesson.fetch_user_info.fn(103) == user, f"the user's record is another; {READ}"
    assert lesson.compose_greeting.fn(user) == "Hello, Grace Hopper!", f"no greeting; {READ}"
    assert slept == [lesson.USER_SECONDS], f"the lookup takes another time; {READ}"


def test_an_unknown_user_fails_the_flow_run(
    lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    run = record(lesson.greeting_flow, 999)
    assert run.state == "Failed", f"an unknown user ends in {run.state}; {READ}"
    assert isinstance(run.value, LookupError), f"the error is no LookupError; {READ}"
    assert str(run.value) == "no user 999", f"the error names another user; {READ}"
    assert [step.state for step in run.task_runs()] == ["Failed"], (
        f"the second task must not run when the first failed; {READ}"
    )


def test_the_story_is_the_common_one(path: Path) -> None:
    assert told(path) == {name: STORY[name] for name in ("USER_SECONDS", "USERS")}, READ


def test_the_script_prints_the_greeting(printed: str) -> None:
    assert printed == "Hello, Ada Lovelace!\n", f"the script prints something else; {READ}"
