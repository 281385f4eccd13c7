"""Who is about to leave? The model wants the average of the logins, which takes long to compute.

Run:   python docs/practice/13_computed_once.py    (twice)
Now:   every run computes the average again, even if the logins haven't changed.
Goal:  if the average of the same logins was computed before, the task run is Cached. The average of
       other logins is computed. `@task` accepts a `cache_policy`. With INPUTS, a policy from
       `prefect.cache_policies`, the same inputs have the same result in every run.
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
