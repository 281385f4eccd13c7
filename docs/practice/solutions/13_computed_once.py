"""INPUTS makes the arguments the key of a stored result, whichever run computed it.

The logins are an argument, so other logins have another key and are computed.
"""

import time

from prefect import flow, task
from prefect.cache_policies import INPUTS

LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}


@task(cache_policy=INPUTS)
def average(logins: list[int]) -> float:
    """Return the average of the logins."""
    time.sleep(0.5)
    return sum(logins) / len(logins)


@flow
def average_flow(user_id: int = 101) -> float:
    """Return the user's logins per week."""
    return average(LOGINS[user_id])


if __name__ == "__main__":
    print(average_flow())
