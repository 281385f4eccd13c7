"""Who is about to leave? Every night a flow averages the logins of all users, and its run is green.

Run:   python docs/practice/04b_a_green_run.py
Now:   the flow run is Completed, but one of its task runs is not. Nobody noticed for a week.
Goal:  1. Find the task run in the UI or in the records of your terminal. Write the id of its
          user into FAILED_USER.
       2. Make the flow run fail whenever a task run fails. Leave the data and the task as they are.
"""

import time

from prefect import flow, task

FAILED_USER = 0  # your answer

LOGINS: dict[int, list[int]] = {
    101: [5, 3, 2, 1],
    102: [],  # joined today
    103: [2, 1, 0, 0],
}


@task
def average_logins(user_id: int) -> float:
    """Return the logins per week; raise LookupError if there are none yet."""
    time.sleep(0.3)
    if not LOGINS[user_id]:
        raise LookupError(f"user {user_id} has no logins yet")
    return sum(LOGINS[user_id]) / len(LOGINS[user_id])


@flow
def averages_flow() -> str:
    """Average the logins of each user."""
    for user_id in LOGINS:
        average_logins.submit(user_id)
    return f"{len(LOGINS)} users are done"


if __name__ == "__main__":
    print(averages_flow())
