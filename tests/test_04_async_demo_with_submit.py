"""Lesson 04: submitted, independent tasks run at the same time."""

import threading
from functools import partial
from itertools import combinations
from types import ModuleType

from recorded import Record, ReplaceTaskBody

SHORTEN = ["USER_SECONDS", "BALANCE_SECONDS", "ACTIVITY_SECONDS"]
TASKS = ["fetch_user_info", "fetch_account_balance", "fetch_recent_activity"]


def test_the_three_tasks_are_independent_and_overlap(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.async_flow)
    assert run.state == "Completed", f"expected Completed, got {run.state}: {run.result}"
    for first, second in combinations(TASKS, 2):
        assert run.overlap(first, second), (
            f"{first} and {second} ran one after the other: a task was called instead of "
            "submitted, or its .result() came before the next .submit()"
        )
    assert not run.edges(), f"expected no edges, got {run.edges()}: a task gets another's result"


def test_each_task_is_submitted_and_its_result_returned(
    lesson: ModuleType, record: Record, replace_task_body: ReplaceTaskBody
) -> None:
    threads: dict[str, threading.Thread] = {}

    def body(name: str, user_id: int) -> str:
        threads[name] = threading.current_thread()
        return f"{name} of {user_id}"

    for name in TASKS:
        replace_task_body(name, partial(body, name))
    run = record(lesson.async_flow, 102)
    assert run.result == {
        "user": "fetch_user_info of 102",
        "balance": "fetch_account_balance of 102",
        "activity": "fetch_recent_activity of 102",
    }, f"expected what the tasks return for user 102, got {run.result}"
    for name, thread in threads.items():
        assert thread is not threading.current_thread(), (
            f"{name} ran in the flow's thread: it was called instead of submitted"
        )


def test_a_failed_task_raises_at_its_result(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.async_flow, -1)
    assert isinstance(run.result, LookupError), (
        f"expected LookupError, got {run.result!r}: is a .result() missing?"
    )
    assert sorted(run.names()) == sorted(TASKS), (
        f"expected all three tasks to start, got {run.names()}: is a .result() too early?"
    )
