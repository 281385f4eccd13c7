"""Lesson 04: submitted, independent tasks run at the same time."""

import threading
from itertools import combinations
from types import ModuleType

from recorded import Record, ReplaceTaskBody

LOOKUPS = ["fetch_user_info", "fetch_account_balance", "fetch_recent_activity"]


def test_the_three_lookups_overlap(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.async_flow)
    assert run.state == "Completed", f"the flow run ended as {run.state}: {run.result}"
    for first, second in combinations(LOOKUPS, 2):
        assert run.overlap(first, second), (
            f"{first} and {second} ran one after the other: a lookup was called instead of "
            "submitted, or its .result() came before the next .submit()"
        )


def test_the_lookups_do_not_need_each_other(lesson: ModuleType, record: Record) -> None:
    assert record(lesson.async_flow).edges() == set(), "one lookup waits for the result of another"


def test_each_lookup_is_submitted_and_its_result_returned(
    lesson: ModuleType, record: Record, replace_task_body: ReplaceTaskBody
) -> None:
    threads: dict[str, threading.Thread] = {}

    def note(name: str) -> None:
        def body(user_id: int) -> str:
            threads[name] = threading.current_thread()
            return f"{name} of {user_id}"

        replace_task_body(name, body)

    for name in LOOKUPS:
        note(name)
    run = record(lesson.async_flow, 102)
    assert run.result == {
        "user": "fetch_user_info of 102",
        "balance": "fetch_account_balance of 102",
        "activity": "fetch_recent_activity of 102",
    }, "concurrency must not change the result: it is lesson 03's"
    for name, thread in threads.items():
        assert thread is not threading.current_thread(), (
            f"{name} ran in the flow's own thread: it was called instead of submitted"
        )


def test_a_failed_future_raises_where_its_result_is_asked_for(
    lesson: ModuleType, record: Record
) -> None:
    run = record(lesson.async_flow, -1)
    assert isinstance(run.result, LookupError), "a flow that asks for no result hides the failure"
    assert sorted(run.names()) == sorted(LOOKUPS), "submitted together, all three start"
