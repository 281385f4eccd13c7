"""Lesson 03: called like functions, tasks run one after the other."""

import threading
from functools import partial
from itertools import pairwise
from types import ModuleType

import pytest
from recorded import Record, ReplaceTaskBody

SHORTEN = ["USER_SECONDS", "BALANCE_SECONDS", "ACTIVITY_SECONDS"]
TASKS = ["fetch_user_info", "fetch_account_balance", "fetch_recent_activity"]


def test_each_task_ends_before_the_next_one_starts(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.sync_flow, 102)
    assert run.state == "Completed", f"expected Completed, got {run.state}: {run.result}"
    found = (run.result["user"]["name"], run.result["balance"], run.result["activity"])
    expected = (lesson.USERS[102], lesson.BALANCES[102], lesson.LOGINS[102])
    assert found == expected, f"expected {expected} for user 102, got {found}"
    assert sorted(run.names()) == sorted(TASKS), f"expected three task runs, got {run.names()}"
    for first, second in pairwise(run.names()):
        assert run.is_before(first, second), (
            f"{second} started before {first} had ended: was {first} submitted, not called?"
        )


def test_each_task_is_called_and_its_result_returned(
    lesson: ModuleType, record: Record, replace_task_body: ReplaceTaskBody
) -> None:
    threads: dict[str, threading.Thread] = {}

    def body(name: str, user_id: int) -> str:
        threads[name] = threading.current_thread()
        return f"{name} of {user_id}"

    for name in TASKS:
        replace_task_body(name, partial(body, name))
    run = record(lesson.sync_flow, 102)
    assert run.result == {
        "user": "fetch_user_info of 102",
        "balance": "fetch_account_balance of 102",
        "activity": "fetch_recent_activity of 102",
    }, f"expected what the tasks return for user 102, got {run.result}"
    for name, thread in threads.items():
        assert thread is threading.current_thread(), (
            f"{name} ran in another thread than the flow: it was submitted, not called"
        )


def test_a_failed_task_ends_the_flow_run(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.sync_flow, -1)
    assert isinstance(run.result, LookupError), f"expected LookupError, got {run.result!r}"
    assert len(run.task_runs) == 1, f"expected no task after the failed one, got {run.names()}"


def test_each_task_raises_for_an_unknown_user(lesson: ModuleType) -> None:
    for name in TASKS:
        with pytest.raises(LookupError):
            getattr(lesson, name).fn(-1)
