"""Call what must come first, submit what can run side by side, then join.

Run:    python 05_async_sync_mixed_demo.py
Notice: user, then balance and activity together, then the prediction: 1 s + 3 s + 1 s = 5 s.
"""

import math
import time
from typing import Any

from prefect import flow, task

USER_SECONDS = 1
BALANCE_SECONDS = 2
ACTIVITY_SECONDS = 3
PREDICTION_SECONDS = 1

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}
LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}

# Fixed weights stand for a trained model: savings and logins keep a user.
BIAS = 2.0
BALANCE_WEIGHT = -0.002  # per dollar
LOGIN_WEIGHT = -0.1  # per login in four weeks


@task
def fetch_user_info(user_id: int) -> dict[str, Any]:
    """Return the user's id and name; raise LookupError if there is no such user."""
    time.sleep(USER_SECONDS)
    if user_id not in USERS:
        raise LookupError(f"no user {user_id}")
    return {"user_id": user_id, "name": USERS[user_id]}


@task
def fetch_account_balance(user: dict[str, Any]) -> float:
    """Return the account's balance in dollars."""
    time.sleep(BALANCE_SECONDS)
    return BALANCES[user["user_id"]]


@task
def fetch_recent_activity(user: dict[str, Any]) -> list[int]:
    """Return the logins per week of the last four weeks."""
    time.sleep(ACTIVITY_SECONDS)
    return LOGINS[user["user_id"]]


@task
def predict_churn(balance: float, activity: list[int]) -> float:
    """Return the probability, 0 to 1, that a user with this balance (dollars) and activity leaves.

    Logistic model: 1 / (1 + exp(-score)), see Hastie, Tibshirani and Friedman, The Elements
    of Statistical Learning, 4.4. Written with tanh, it is the same number and never overflows.
    """
    time.sleep(PREDICTION_SECONDS)
    score = BIAS + BALANCE_WEIGHT * balance + LOGIN_WEIGHT * sum(activity)
    return (1 + math.tanh(score / 2)) / 2


@flow
def mixed_flow(user_id: int = 101) -> dict[str, Any]:
    """Return what is known of the user and the probability that they leave, `churn`.

    Raises LookupError if there is no such user.
    """
    started = time.perf_counter()
    user = fetch_user_info(user_id)
    balance_future = fetch_account_balance.submit(user)
    activity_future = fetch_recent_activity.submit(user)
    balance = balance_future.result()
    activity = activity_future.result()
    churn = predict_churn(balance, activity)
    print(f"Elapsed: {time.perf_counter() - started:.1f} s")
    return {"user": user, "balance": balance, "activity": activity, "churn": round(churn, 3)}


if __name__ == "__main__":
    print(mixed_flow())
