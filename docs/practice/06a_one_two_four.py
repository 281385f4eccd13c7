"""Who is about to leave? The user service is overloaded, and we ask it again every second.

Run:   python docs/practice/06a_one_two_four.py
Now:   three attempts fail, and the task waits 1 s before each retry.
Goal:  it waits 1 s after the first failure, 2 s after the second, 4 s after the third.
"""

from prefect import flow, task
from prefect.runtime import task_run

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}


@task(retries=3, retry_delay_seconds=1)
def fetch_name(user_id: int, outages: int) -> str:
    """Return the user's name; raise ConnectionError in the first `outages` attempts."""
    if task_run.run_count <= outages:
        raise ConnectionError(f"user service is down (attempt {task_run.run_count})")
    return USERS[user_id]


@flow
def patient_flow(user_id: int = 101, outages: int = 3) -> str:
    """Return the user's name."""
    return fetch_name(user_id, outages)


if __name__ == "__main__":
    print(patient_flow())
