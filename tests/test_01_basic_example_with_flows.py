"""Lesson 01: a flow is a decorated function: call it, and Prefect records the run."""

from types import ModuleType

import pytest
from prefect.exceptions import ParameterTypeError
from recorded import Record


def test_a_call_is_a_flow_run_with_its_parameters_and_its_result(
    lesson: ModuleType, record: Record
) -> None:
    run = record(lesson.hello_flow, "Ada")
    assert run.state == "Completed", f"the flow run ended as {run.state}: {run.result}"
    assert run.record.parameters == {"name": "Ada"}, "the argument is not recorded as a parameter"
    assert "Ada" in str(run.result), "the call does not return what the function makes of its name"


def test_the_flow_runs_without_arguments(lesson: ModuleType, record: Record) -> None:
    assert record(lesson.hello_flow).state == "Completed", "a parameter has no default"


def test_an_argument_of_the_wrong_type_never_reaches_the_function(
    lesson: ModuleType, record: Record
) -> None:
    run = record(lesson.hello_flow, ["Ada"])
    assert isinstance(run.result, ParameterTypeError), "Prefect checks arguments by the type hints"
    assert run.record.run_count == 0, "the function was called all the same"


def test_importing_the_script_runs_nothing(
    capsys: pytest.CaptureFixture[str], lesson: ModuleType
) -> None:
    assert capsys.readouterr().out == "", f"{lesson.__name__} runs at import: is its guard missing?"
