"""`.result()` raises what the task raised, and an exception in the flow fails the flow run.

All tasks are submitted before the first result is asked for, so all of them run.
"""

import time

from prefect import flow, task

FAILED_USER = 102

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
    for future in futures:
        future.result()
    return f"{len(USERS)} users are done"


if __name__ == "__main__":
    print(averages_flow())
