"""Lesson 04: submitted, independent tasks run at the same time."""

import threading
from itertools import combinations
from types import ModuleType

import pytest
from recorded import Record, ReplaceTaskBody

SHORTEN = ["USER_SECONDS", "BALANCE_SECONDS", "ACTIVITY_SECONDS"]
TASKS = ["fetch_user_info", "fetch_account_balance", "fetch_recent_activity"]


def test_the_three_tasks_are_independent_and_overlap(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.async_flow, 102)
    assert run.state == "Completed", f"expected Completed, got {run.state}: {run.result}"
    found = (run.result["user"]["name"], run.result["balance"], run.result["activity"])
    expected = (lesson.USERS[102], lesson.BALANCES[102], lesson.LOGINS[102])
    assert found == expected, f"expected {expected} for user 102, got {found}"
    for first, second in combinations(TASKS, 2):
        assert run.overlap(first, second), (
            f"{first} and {second} ran one after the other: a task was called instead of "
            "submitted, or its .result() came before the next .submit()"
        )
    assert not run.edges(), f"expected no edges, got {run.edges()}: a task gets another's result"


def test_each_task_is_submitted_and_its_result_returned(
    lesson: ModuleType, record: Record, replace_task_body: ReplaceTaskBody
) -> None:
    for name in TASKS:
        replace_task_body(name, lambda user_id: threading.get_ident())
    run = record(lesson.async_flow)
    for key, thread in run.result.items():
        assert isinstance(thread, int), f"{key} is not what its task returned: {thread}"
        assert thread != threading.get_ident(), (
            f"the task for {key} ran in the flow's thread: it was called instead of submitted"
        )


@pytest.mark.parametrize("table", ["USERS", "BALANCES", "LOGINS"])
def test_a_failed_task_raises_at_its_result(
    lesson: ModuleType, record: Record, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.setattr(lesson, table, {})  # now one of the tasks knows no user
    run = record(lesson.async_flow)
    assert isinstance(run.result, LookupError), (
        f"expected LookupError without {table}, got {run.result!r}: is a .result() missing, or "
        "does it not raise?"
    )
    assert sorted(run.names()) == sorted(TASKS), (
        f"expected all three tasks to start, got {run.names()}: is a .result() too early?"
    )
