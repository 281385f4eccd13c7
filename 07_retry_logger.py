"""Use the run logger, and the server stores each log record with its run.

Run:    python 07_retry_logger.py
Notice: INFO and WARNING records, each with the name of the flow run or task run that wrote it.
"""

import time
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.runtime import task_run

USER_SECONDS = 1

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}


@task(retries=3, retry_delay_seconds=5)
def fetch_user_info(user_id: int, outages: int) -> dict[str, Any]:
    """Return the user's id and name.

    Raises ConnectionError in the first `outages` attempts, LookupError if there is no such user.
    """
    logger = get_run_logger()
    logger.info("Looking up user %s, attempt %s", user_id, task_run.run_count)
    time.sleep(USER_SECONDS)
    # run_count is the attempt's number, so the outage lasts exactly as long as we say.
    if task_run.run_count <= outages:
        logger.warning("User service is down, attempt %s failed", task_run.run_count)
        raise ConnectionError(f"user service is down (attempt {task_run.run_count})")
    if user_id not in USERS:
        raise LookupError(f"no user {user_id}")
    return {"user_id": user_id, "name": USERS[user_id]}


@flow
def logging_flow(user_id: int = 101, outages: int = 2) -> dict[str, Any]:
    """Return the user's id and name; raise ConnectionError if the outage outlasts four attempts."""
    logger = get_run_logger()
    logger.info("Starting for user %s", user_id)
    try:
        user = fetch_user_info(user_id, outages)
    except ConnectionError:
        logger.error("No answer about user %s, giving up", user_id)
        raise
    logger.info("Finished: user %s is %s", user_id, user["name"])
    return user


if __name__ == "__main__":
    print(logging_flow())
