"""Who is about to leave? Not user 999: there is no such user, and we ask four times to make sure.

Run:   python docs/practice/08a_worth_another_attempt.py
Now:   the user service returns 503 while it is overloaded and 404 for an unknown user. Both are
       retried.
Goal:  a 503 is retried as before. A 404 fails the task at its first attempt.
"""

from typing import Any

from prefect import State, flow, task
from prefect.runtime import task_run

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}


class ServiceError(Exception):
    """The service returned an HTTP status that is an error."""

    def __init__(self, status: int) -> None:
        """Take the status, such as 503."""
        super().__init__(f"user service returned {status}")
        self.status = status


def is_transient(_task: Any, _task_run: Any, state: State) -> bool:
    """Return whether another attempt can help."""
    return True


@task(retries=3, retry_delay_seconds=0.3, retry_condition_fn=is_transient)
def fetch_name(user_id: int) -> str:
    """Return the user's name; raise ServiceError with status 503 twice, or with 404."""
    if user_id not in USERS:
        raise ServiceError(404)
    if task_run.run_count <= 2:
        raise ServiceError(503)
    return USERS[user_id]


@flow
def name_flow(user_id: int = 999) -> str:
    """Return the user's name."""
    return fetch_name(user_id)


if __name__ == "__main__":
    print(name_flow())
