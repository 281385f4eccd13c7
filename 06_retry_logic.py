"""A task that fails is retried, with a delay between the attempts.

Run:    python 06_retry_logic.py
Notice: two attempts fail, five seconds apart, and the third one succeeds.
"""

import time
from typing import Any

from prefect import flow, task
from prefect.runtime import task_run

USER_SECONDS = 1

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}


@task(retries=3, retry_delay_seconds=5)
def fetch_user_info(user_id: int, outages: int) -> dict[str, Any]:
    """Return the user's id and name.

    Raises ConnectionError in the first `outages` attempts, LookupError if there is no such user.
    """
    time.sleep(USER_SECONDS)
    # run_count is the attempt's number, so the outage lasts exactly as long as we say.
    if task_run.run_count <= outages:
        raise ConnectionError(f"user service is down (attempt {task_run.run_count})")
    if user_id not in USERS:
        raise LookupError(f"no user {user_id}")
    return {"user_id": user_id, "name": USERS[user_id]}


@flow
def retry_flow(user_id: int = 101, outages: int = 2) -> dict[str, Any]:
    """Return the user's id and name; raise ConnectionError if the outage outlasts four attempts."""
    return fetch_user_info(user_id, outages)


if __name__ == "__main__":
    print(retry_flow())
