"""Lesson 01: a flow is a decorated function, called like any other."""

from collections.abc import Callable
from types import ModuleType

import pytest
from support import FlowRun, read

SCALE = 1.0
READ = read("01")


@pytest.mark.parametrize(
    ("arguments", "name"), [({}, "Prefect"), ({"name": "Ada"}, "Ada")], ids=["default", "given"]
)
def test_a_flow_is_called_like_a_function_and_recorded(
    lesson: ModuleType, record: Callable[..., FlowRun], arguments: dict[str, str], name: str
) -> None:
    run = record(lesson.hello_flow, **arguments)
    assert run.value == f"Hello, {name}!", f"the call does not return the greeting; {READ}"
    assert run.state == "Completed", f"the flow run is {run.state}, not Completed; {READ}"
    assert run.data["parameters"] == {"name": name}, f"the parameters were not recorded; {READ}"
    assert run.task_runs() == [], f"the first lesson has no tasks yet; {READ}"


def test_the_flow_is_named_after_the_function(
    lesson: ModuleType, record: Callable[..., FlowRun]
) -> None:
    run = record(lesson.hello_flow)
    assert run.flow_name == "hello-flow", f"the flow is known as {run.flow_name!r}; {READ}"


def test_the_script_prints_the_greeting(printed: str) -> None:
    assert printed == "Hello, Prefect!\n", f"the script prints something else; {READ}"
