"""Lesson 05: call what must come first, submit what can run side by side, then join."""

import math
import threading
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from recorded import Record, ReplaceTaskBody

SHORTEN = ["USER_SECONDS", "BALANCE_SECONDS", "ACTIVITY_SECONDS", "PREDICTION_SECONDS"]
SUBMITTED = ["fetch_account_balance", "fetch_recent_activity"]
DIAMOND = {
    ("fetch_user_info", "fetch_account_balance"),
    ("fetch_user_info", "fetch_recent_activity"),
    ("fetch_account_balance", "predict_churn"),
    ("fetch_recent_activity", "predict_churn"),
}


def test_the_tasks_form_a_diamond(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.mixed_flow, 102)
    assert run.state == "Completed", f"expected Completed, got {run.state}: {run.result}"
    for name in SUBMITTED:
        assert run.is_before("fetch_user_info", name), f"{name} did not wait for the user"
        assert run.is_before(name, "predict_churn"), f"predict_churn did not wait for {name}"
    assert run.overlap(*SUBMITTED), (
        "balance and activity ran one after the other: the first .result() came before the "
        "second .submit(), or a task was called"
    )
    assert run.edges() == DIAMOND, f"a result is not passed on: {DIAMOND ^ run.edges()}"
    found = (run.result["user"]["name"], run.result["balance"], run.result["activity"])
    expected = (lesson.USERS[102], lesson.BALANCES[102], lesson.LOGINS[102])
    assert found == expected, f"expected {expected} for user 102, got {found}"


def test_each_task_gets_what_the_tasks_before_it_returned(
    lesson: ModuleType, record: Record, replace_task_body: ReplaceTaskBody
) -> None:
    arguments: list[Any] = []
    threads = set()
    somebody = {"user_id": 7, "name": "Somebody Else"}

    def body(returned: Any, user: dict[str, Any]) -> Any:
        arguments.append(user)
        threads.add(threading.current_thread())
        return returned

    replace_task_body("fetch_user_info", lambda user_id: somebody)
    replace_task_body("fetch_account_balance", partial(body, 500.0))
    replace_task_body("fetch_recent_activity", partial(body, [1, 1, 1, 1]))
    run = record(lesson.mixed_flow)
    assert arguments == [somebody, somebody], f"expected twice {somebody}, got {arguments}"
    churn = lesson.predict_churn.fn(500.0, [1, 1, 1, 1])
    assert run.result["churn"] == pytest.approx(churn, abs=0.001), (
        f"expected the prediction for these results, {churn}, got {run.result['churn']}"
    )
    assert threading.current_thread() not in threads, (
        "balance or activity ran in the flow's thread: it was called instead of submitted"
    )


@pytest.mark.parametrize(("balance", "activity"), [(0.0, []), (120.5, [5, 3, 2, 1]), (1e9, [9])])
def test_the_prediction_is_the_logistic_model(
    lesson: ModuleType, balance: float, activity: list[int]
) -> None:
    score = lesson.BIAS + lesson.BALANCE_WEIGHT * balance + lesson.LOGIN_WEIGHT * sum(activity)
    expected = 1 / (1 + math.exp(-score)) if score > -700 else 0
    found = lesson.predict_churn.fn(balance, activity)
    assert found == pytest.approx(expected), f"expected 1 / (1 + exp(-({score}))), got {found}"


def test_an_unknown_user_fails_the_flow_run_at_the_first_task(
    lesson: ModuleType, record: Record
) -> None:
    run = record(lesson.mixed_flow, -1)
    assert isinstance(run.result, LookupError), f"expected LookupError, got {run.result!r}"
    assert run.names() == ["fetch_user_info"], f"expected no task after it, got {run.names()}"
