"""Everything is submitted before the first result is asked for, so all users are looked up at once.

The predictions get what the lookups returned, so the run graph has its arrows.
"""

import math
import time

from prefect import flow, get_run_logger, task
from prefect.runtime import task_run

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}
LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}


@task(retries=2)
def fetch_account_balance(user_id: int) -> float:
    """Return the account's balance in dollars; raise ConnectionError at the first attempt."""
    time.sleep(0.5)
    if task_run.run_count == 1:
        raise ConnectionError("balance service is down")
    return BALANCES[user_id]


@task
def fetch_recent_activity(user_id: int) -> list[int]:
    """Return the logins per week of the last four weeks."""
    time.sleep(0.5)
    return LOGINS[user_id]


@task
def predict_churn(balance: float, activity: list[int]) -> float:
    """Return the probability, 0 to 1, that a user with this balance and activity leaves."""
    return (1 + math.tanh(1 - 0.001 * balance - 0.05 * sum(activity))) / 2


@flow
def leaving_flow() -> int:
    """Return the id of the user who is most likely to leave."""
    balances = [fetch_account_balance.submit(user_id) for user_id in USERS]
    activities = [fetch_recent_activity.submit(user_id) for user_id in USERS]
    churns = [
        predict_churn(balance.result(), activity.result())
        for balance, activity in zip(balances, activities, strict=True)
    ]
    _, leaver = max(zip(churns, USERS, strict=True))
    get_run_logger().warning("%s is about to leave", USERS[leaver])
    return leaver


if __name__ == "__main__":
    print(leaving_flow())
