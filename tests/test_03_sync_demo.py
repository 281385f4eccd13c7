"""Lesson 03: called like functions, tasks run one after the other."""

import threading
from itertools import pairwise
from types import ModuleType

import pytest
from recorded import Record, ReplaceTaskBody

SHORTEN = ["USER_SECONDS", "BALANCE_SECONDS", "ACTIVITY_SECONDS"]
SHORT_SECONDS = 0
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
    for name in TASKS:
        replace_task_body(name, lambda user_id: threading.get_ident())
    run = record(lesson.sync_flow)
    for key, thread in run.result.items():
        assert thread == threading.get_ident(), (
            f"expected {key} from a task in the flow's thread, got {thread}: it was submitted, "
            "not called, or its result is not returned"
        )


def test_a_failed_task_ends_the_flow_run(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.sync_flow, -1)
    assert isinstance(run.result, LookupError), f"expected LookupError, got {run.result!r}"
    assert len(run.task_runs) == 1, f"expected no task after the failed one, got {run.names()}"


@pytest.mark.parametrize("name", TASKS)
def test_each_task_raises_for_an_unknown_user(lesson: ModuleType, name: str) -> None:
    with pytest.raises(LookupError):
        getattr(lesson, name).fn(-1)
