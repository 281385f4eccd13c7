"""The condition looks at the error: a 503 passes, and a 404 is the same at every attempt.

`raise_on_failure=False` matters: a condition that raises counts as no, and nothing is retried.
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
    error = state.result(raise_on_failure=False)
    return isinstance(error, ServiceError) and error.status == 503


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
