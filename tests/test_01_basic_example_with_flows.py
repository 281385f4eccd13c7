"""Lesson 01: a flow is a decorated function: call it, and Prefect records the run."""

from types import ModuleType

import pytest
from prefect.exceptions import ParameterTypeError
from recorded import Record


def test_a_call_is_a_flow_run_with_parameters_and_result(
    lesson: ModuleType, record: Record
) -> None:
    run = record(lesson.hello_flow, "Ada")
    assert run.state == "Completed", f"expected Completed, got {run.state}: {run.result}"
    assert run.record.parameters == {"name": "Ada"}, "the argument is not a recorded parameter"
    assert "Ada" in str(run.result), f"expected a greeting for Ada, got {run.result!r}"
    run = record(lesson.hello_flow)
    assert run.state == "Completed", f"expected Completed without arguments, got {run.state}"


def test_an_argument_of_the_wrong_type_is_rejected(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.hello_flow, ["Ada"])
    assert isinstance(run.result, ParameterTypeError), (
        f"expected ParameterTypeError for a list, got {run.result!r}: is the type hint missing?"
    )
    assert run.record.run_count == 0, "the function was called with the rejected argument"


def test_importing_the_lesson_runs_nothing(
    capsys: pytest.CaptureFixture[str], lesson: ModuleType
) -> None:
    printed = capsys.readouterr().out
    assert printed == "", f'the import printed {printed!r}: is `if __name__ == "__main__"` missing?'
