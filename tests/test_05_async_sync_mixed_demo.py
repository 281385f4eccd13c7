"""Lesson 05: call what must come first, submit what can run side by side, then join."""

import math
import threading
from types import ModuleType
from typing import Any

import pytest
from recorded import Record, ReplaceTaskBody

LOOKUPS = ["fetch_account_balance", "fetch_recent_activity"]
DIAMOND = {
    ("fetch_user_info", "fetch_account_balance"),
    ("fetch_user_info", "fetch_recent_activity"),
    ("fetch_account_balance", "predict_churn"),
    ("fetch_recent_activity", "predict_churn"),
}


def test_user_first_then_both_lookups_together_then_the_prediction(
    lesson: ModuleType, record: Record
) -> None:
    run = record(lesson.mixed_flow)
    assert run.state == "Completed", f"the flow run ended as {run.state}: {run.result}"
    for lookup in LOOKUPS:
        assert run.is_before("fetch_user_info", lookup), f"{lookup} did not wait for the user"
        assert run.is_before(lookup, "predict_churn"), f"the prediction did not wait for {lookup}"
    assert run.overlap(*LOOKUPS), (
        "the two lookups ran one after the other: the first .result() came before the second "
        ".submit(), or one was called"
    )
    assert run.edges() == DIAMOND, "results are not passed along the arrows of the diamond"


def test_each_step_gets_what_the_steps_before_it_returned(
    lesson: ModuleType, record: Record, replace_task_body: ReplaceTaskBody
) -> None:
    given: dict[str, Any] = {}
    threads = set()
    somebody = {"user_id": 7, "name": "Somebody Else"}

    def balance(user: dict[str, Any]) -> float:
        given["balance"] = user
        threads.add(threading.current_thread())
        return 500.0

    def activity(user: dict[str, Any]) -> list[int]:
        given["activity"] = user
        threads.add(threading.current_thread())
        return [1, 1, 1, 1]

    replace_task_body("fetch_user_info", lambda user_id: somebody)
    replace_task_body("fetch_account_balance", balance)
    replace_task_body("fetch_recent_activity", activity)
    run = record(lesson.mixed_flow)
    assert given == {"balance": somebody, "activity": somebody}, (
        "a lookup is not given what fetch_user_info returned"
    )
    churn = lesson.predict_churn.fn(500.0, [1, 1, 1, 1])
    assert run.result["churn"] == pytest.approx(churn, abs=0.001), (
        "the prediction is not made of what the lookups returned"
    )
    assert threading.current_thread() not in threads, (
        "a lookup that need not wait is called instead of submitted"
    )


@pytest.mark.parametrize(("balance", "activity"), [(0.0, []), (120.5, [5, 3, 2, 1]), (1e9, [9])])
def test_the_prediction_is_the_logistic_model(
    lesson: ModuleType, balance: float, activity: list[int]
) -> None:
    score = lesson.BIAS + lesson.BALANCE_WEIGHT * balance + lesson.LOGIN_WEIGHT * sum(activity)
    expected = 1 / (1 + math.exp(-score)) if score > -700 else 0
    assert lesson.predict_churn.fn(balance, activity) == pytest.approx(expected), (
        "the probability is not 1 / (1 + exp(-score))"
    )


def test_the_flow_is_about_the_user_asked_for(lesson: ModuleType, record: Record) -> None:
    result = record(lesson.mixed_flow, 102).result
    assert result["user"]["name"] == lesson.USERS[102], "the user is another"
    found = (result["balance"], result["activity"])
    assert found == (lesson.BALANCES[102], lesson.LOGINS[102]), "a lookup is about another user"


def test_an_unknown_user_ends_the_flow_run_at_the_first_step(
    lesson: ModuleType, record: Record
) -> None:
    run = record(lesson.mixed_flow, -1)
    assert isinstance(run.result, LookupError), f"an unknown user ends in {run.result!r}"
    assert run.names() == ["fetch_user_info"], "the lookups did not wait for the user"
