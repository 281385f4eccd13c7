"""Who is about to leave? The functions are there. Now write the pipeline.

Run:   python docs/practice/14_who_is_about_to_leave.py
Now:   the flow returns 0, and nothing is recorded.
Goal:  - Each of the three functions is a task, and each task runs once for each user.
       - The lookups of all users run at the same time.
       - The balance service fails at each first attempt, and its task is retried.
       - A prediction gets what the two lookups of its user returned. The run graph shows this.
       - The flow logs a WARNING that names the user who is most likely to leave.
       - It returns the id of this user.
"""

import math
import time

from prefect import flow
from prefect.runtime import task_run

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}
LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}


def fetch_account_balance(user_id: int) -> float:
    """Return the account's balance in dollars; raise ConnectionError at the first attempt."""
    time.sleep(0.5)
    if task_run.run_count == 1:
        raise ConnectionError("balance service is down")
    return BALANCES[user_id]


def fetch_recent_activity(user_id: int) -> list[int]:
    """Return the logins per week of the last four weeks."""
    time.sleep(0.5)
    return LOGINS[user_id]


def predict_churn(balance: float, activity: list[int]) -> float:
    """Return the probability, 0 to 1, that a user with this balance and activity leaves."""
    return (1 + math.tanh(1 - 0.001 * balance - 0.05 * sum(activity))) / 2


@flow
def leaving_flow() -> int:
    """Return the id of the user who is most likely to leave."""
    return 0


if __name__ == "__main__":
    print(leaving_flow())
