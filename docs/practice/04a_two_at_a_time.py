"""Who is about to leave? Three services are asked about a user, all at the same time.

Run:   python docs/practice/04a_two_at_a_time.py
Now:   our network operator writes: "Two requests at a time, please. Three is too many."
Goal:  two lookups run at the same time, and never three. The result stays the same.
"""

import time
from typing import Any

from prefect import flow, task

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}
LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}


@task
def fetch_name(user_id: int) -> str:
    """Return the user's name."""
    time.sleep(0.3)
    return USERS[user_id]


@task
def fetch_account_balance(user_id: int) -> float:
    """Return the account's balance in dollars."""
    time.sleep(0.6)
    return BALANCES[user_id]


@task
def fetch_recent_activity(user_id: int) -> list[int]:
    """Return the logins per week of the last four weeks."""
    time.sleep(0.6)
    return LOGINS[user_id]


@flow
def lookup_flow(user_id: int = 101) -> list[Any]:
    """Return name, balance and activity of the user."""
    name_future = fetch_name.submit(user_id)
    balance_future = fetch_account_balance.submit(user_id)
    activity_future = fetch_recent_activity.submit(user_id)
    return [name_future.result(), balance_future.result(), activity_future.result()]


if __name__ == "__main__":
    print(lookup_flow())
