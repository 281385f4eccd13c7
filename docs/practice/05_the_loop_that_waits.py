"""Who is about to leave? The flow counts the logins of three users, and it is slower each week.

Run:   python docs/practice/05_the_loop_that_waits.py
Now:   the counts are submitted, but they still run one by one.
Goal:  all three run at the same time. The list keeps the order of the users.
"""

import time

from prefect import flow, task

LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}


@task
def count_logins(user_id: int) -> int:
    """Return the number of logins in four weeks. The older the account, the longer it takes."""
    time.sleep(0.3 * (104 - user_id))
    return sum(LOGINS[user_id])


@flow
def counts_flow() -> list[int]:
    """Return the number of logins of each user, in the order of LOGINS."""
    counts = []
    for user_id in LOGINS:
        future = count_logins.submit(user_id)
        counts.append(future.result())
    return counts


if __name__ == "__main__":
    print(counts_flow())
