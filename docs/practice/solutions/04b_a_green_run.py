"""`.result()` raises what the task raised, and an exception in the flow fails the flow run.

All tasks are submitted before the first result is asked for, so they still run at the same time.
"""

import time

from prefect import flow, task

FAILED_USER = 102

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
    futures = [average_logins.submit(user_id) for user_id in LOGINS]
    for future in futures:
        future.result()
    return f"{len(LOGINS)} users are done"


if __name__ == "__main__":
    print(averages_flow())
