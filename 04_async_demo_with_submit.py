"""Submitted, independent tasks run at the same time.

Run:    python 04_async_demo_with_submit.py
Notice: all three start at once; together they take 3 s, as long as the slowest.
"""

import time
from typing import Any

from prefect import flow, task

USER_SECONDS = 1
BALANCE_SECONDS = 2
ACTIVITY_SECONDS = 3

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}
LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}


@task
def fetch_user_info(user_id: int) -> dict[str, Any]:
    """Return the user's id and name; raise LookupError if there is no such user."""
    time.sleep(USER_SECONDS)
    if user_id not in USERS:
        raise LookupError(f"no user {user_id}")
    return {"user_id": user_id, "name": USERS[user_id]}


@task
def fetch_account_balance(user_id: int) -> float:
    """Return the account's balance in dollars; raise LookupError for an unknown user."""
    time.sleep(BALANCE_SECONDS)
    if user_id not in BALANCES:
        raise LookupError(f"no user {user_id}")
    return BALANCES[user_id]


@task
def fetch_recent_activity(user_id: int) -> list[int]:
    """Return the logins per week, four weeks; raise LookupError for an unknown user."""
    time.sleep(ACTIVITY_SECONDS)
    if user_id not in LOGINS:
        raise LookupError(f"no user {user_id}")
    return LOGINS[user_id]


@flow
def async_flow(user_id: int = 101) -> dict[str, Any]:
    """Return what is known of the user; raise LookupError if there is no such user."""
    started = time.perf_counter()
    user_future = fetch_user_info.submit(user_id)
    balance_future = fetch_account_balance.submit(user_id)
    activity_future = fetch_recent_activity.submit(user_id)
    user = user_future.result()
    balance = balance_future.result()
    activity = activity_future.result()
    print(f"Elapsed: {time.perf_counter() - started:.1f} s")
    return {"user": user, "balance": balance, "activity": activity}


if __name__ == "__main__":
    print(async_flow())
