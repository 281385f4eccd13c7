"""Lesson 02: tasks are the steps of a flow: the result of one is the input of the next."""

from types import ModuleType

from recorded import Record, ReplaceTaskBody

SHORTEN = ["USER_SECONDS"]
SHORT_SECONDS = 0


def test_two_task_runs_are_recorded_in_order(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.greeting_flow, 102)
    assert run.state == "Completed", f"expected Completed, got {run.state}: {run.result}"
    assert lesson.USERS[102] in run.result, f"expected a greeting for user 102, got {run.result}"
    assert run.is_before("fetch_user_info", "compose_greeting"), (
        "compose_greeting started before fetch_user_info had ended"
    )


def test_the_result_of_the_first_task_is_the_input_of_the_second(
    lesson: ModuleType, record: Record, replace_task_body: ReplaceTaskBody
) -> None:
    user = {"user_id": 7, "name": "Somebody Else"}
    replace_task_body("fetch_user_info", lambda user_id: user)
    run = record(lesson.greeting_flow)
    assert "Somebody Else" in str(run.result), (
        f"expected a greeting for the user that fetch_user_info returned, got {run.result!r}"
    )
    assert run.edges() == {("fetch_user_info", "compose_greeting")}, (
        f"expected an edge from fetch_user_info to compose_greeting, got {run.edges()}: "
        "is its result passed on as it is?"
    )


def test_an_exception_in_a_task_fails_the_flow_run(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.greeting_flow, -1)
    assert run.state == "Failed", f"expected Failed for an unknown user, got {run.state}"
    assert isinstance(run.result, LookupError), f"expected LookupError, got {run.result!r}"
    assert run.names() == ["fetch_user_info"], f"expected no task after it, got {run.names()}"
