"""Who is about to leave? The model wants the average of the logins, which takes long to compute.

Run:   python docs/practice/13_computed_once.py    (twice)
Now:   every run computes it again, though the logins are the same as an hour ago.
Goal:  a run with logins that were averaged before does not compute: the task run is Cached. Other
       logins are computed. `@task` takes a cache policy, `cache_policy`. INPUTS, one of those in
       `prefect.cache_policies`, says that the same inputs have the same result, in every run.
"""

import time

from prefect import flow, task

LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}


@task
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
