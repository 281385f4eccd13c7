"""Lesson 03: called like functions, tasks run one after the other."""

from itertools import pairwise
from types import ModuleType

from recorded import Record, ReplaceTaskBody

LOOKUPS = ["fetch_user_info", "fetch_account_balance", "fetch_recent_activity"]


def test_each_lookup_ends_before_the_next_one_starts(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.sync_flow)
    assert run.state == "Completed", f"the flow run ended as {run.state}: {run.result}"
    assert sorted(run.names()) == sorted(LOOKUPS), "not each of the three lookups is a task run"
    for first, second in pairwise(run.names()):
        assert run.is_before(first, second), (
            f"{second} started before {first} ended: were they submitted, not called?"
        )


def test_the_result_is_what_the_three_lookups_returned(
    lesson: ModuleType, record: Record, replace_task_body: ReplaceTaskBody
) -> None:
    for name in LOOKUPS:
        replace_task_body(name, lambda user_id, name=name: f"{name} of {user_id}")
    run = record(lesson.sync_flow, 102)
    assert run.result == {
        "user": "fetch_user_info of 102",
        "balance": "fetch_account_balance of 102",
        "activity": "fetch_recent_activity of 102",
    }, "a result is lost, or is about another user"


def test_each_lookup_knows_its_users_and_refuses_others(lesson: ModuleType) -> None:
    tables = [lesson.USERS, lesson.BALANCES, lesson.LOGINS]
    for name, table in zip(LOOKUPS, tables, strict=True):
        step = getattr(lesson, name)
        answer = step.fn(102)
        found = answer["name"] if isinstance(answer, dict) else answer
        assert found == table[102], f"{name} returns {answer} for user 102"
        try:
            step.fn(-1)
        except LookupError:
            continue
        raise AssertionError(f"{name} knows a user that is not there")


def test_a_lookup_that_fails_ends_the_flow_run_at_once(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.sync_flow, -1)
    assert isinstance(run.result, LookupError), f"an unknown user ends in {run.result!r}"
    assert len(run.task_runs) == 1, "in order, what comes after a failure does not start"
