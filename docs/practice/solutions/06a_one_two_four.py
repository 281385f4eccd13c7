"""A list has a delay for each retry, so the service gets more time after every failure.

Growing delays (backoff) keep many clients from adding to the load of a service in trouble.
"""

from prefect import flow, task
from prefect.runtime import task_run

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}


@task(retries=3, retry_delay_seconds=[1, 2, 4])
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
