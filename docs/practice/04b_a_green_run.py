"""Who is about to leave? Every night a flow averages the logins of all users, and its run is green.

Run:   python docs/practice/04b_a_green_run.py
Now:   the flow run is Completed, but one of its task runs is not. Nobody noticed for a week.
Goal:  1. Find the task run in the UI or in the records of your terminal. Write the id of its
          user into FAILED_USER.
       2. Make the flow run fail whenever a task run fails. All three task runs must still happen.
          Leave the data and the task as they are.
"""

import time

from prefect import flow, task
from prefect.futures import wait

FAILED_USER = 0  # your answer

USERS = [101, 102, 103]
LOGINS = [(101, 5), (103, 2), (101, 3), (103, 1), (103, 0), (101, 2)]  # user and logins, by week


@task
def average_logins(user_id: int) -> float:
    """Return the logins per week; raise LookupError if there are none yet."""
    time.sleep(0.3)
    logins = [count for user, count in LOGINS if user == user_id]
    if not logins:
        raise LookupError(f"user {user_id} has no logins yet")
    return sum(logins) / len(logins)


@flow
def averages_flow() -> str:
    """Average the logins of each user."""
    futures = [average_logins.submit(user_id) for user_id in USERS]
    wait(futures)
    return f"{len(USERS)} users are done"


if __name__ == "__main__":
    print(averages_flow())
