"""Lesson 02: tasks are the steps of a flow: the result of one is the input of the next."""

from types import ModuleType

from recorded import Record, ReplaceTaskBody


def test_the_two_steps_are_two_task_runs_in_order(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.greeting_flow)
    assert run.state == "Completed", f"the flow run ended as {run.state}: {run.result}"
    assert run.is_before("fetch_user_info", "compose_greeting"), (
        "the greeting is composed before the user is known"
    )


def test_the_result_of_the_first_step_is_the_input_of_the_second(
    lesson: ModuleType, record: Record, replace_task_body: ReplaceTaskBody
) -> None:
    replace_task_body(
        "fetch_user_info", lambda user_id: {"user_id": user_id, "name": "Somebody Else"}
    )
    run = record(lesson.greeting_flow)
    assert "Somebody Else" in run.result, (
        "the greeting is not made of what fetch_user_info returned"
    )
    assert run.edges() == {("fetch_user_info", "compose_greeting")}, (
        "Prefect has not seen the one result go into the other task"
    )


def test_the_flow_greets_the_user_asked_for(lesson: ModuleType, record: Record) -> None:
    for user_id, name in list(lesson.USERS.items())[:2]:
        run = record(lesson.greeting_flow, user_id)
        assert name in run.result, f"user {user_id} is {name}, and the greeting is {run.result!r}"


def test_an_exception_in_a_task_fails_the_flow_run(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.greeting_flow, -1)
    assert run.state == "Failed", f"a task failed, and the flow run is {run.state}"
    assert isinstance(run.result, LookupError), f"the task's error became {run.result!r}"
    assert run.names() == ["fetch_user_info"], "the second step ran without the first one's result"
