"""Two loops: the first one submits everything, and only the second one waits.

The second one goes through the futures in their order, whichever task ends first.
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
    futures = [count_logins.submit(user_id) for user_id in LOGINS]
    return [future.result() for future in futures]


if __name__ == "__main__":
    print(counts_flow())
