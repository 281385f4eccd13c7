"""Tasks are the steps of a flow: the result of one is the input of the next.

Run:    python 02_flows_and_tasks.py
Notice: two task runs inside one flow run, each with its own state.
"""

import time
from typing import Any

from prefect import flow, task

USER_SECONDS = 1

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}


@task
def fetch_user_info(user_id: int) -> dict[str, Any]:
    """Return the user's id and name; raise LookupError if there is no such user."""
    time.sleep(USER_SECONDS)
    if user_id not in USERS:
        raise LookupError(f"no user {user_id}")
    return {"user_id": user_id, "name": USERS[user_id]}


@task
def compose_greeting(user: dict[str, Any]) -> str:
    """Return a greeting for the user."""
    return f"Hello, {user['name']}!"


@flow
def greeting_flow(user_id: int = 101) -> str:
    """Return a greeting for the user; raise LookupError if there is no such user."""
    user = fetch_user_info(user_id)
    return compose_greeting(user)


if __name__ == "__main__":
    print(greeting_flow())
