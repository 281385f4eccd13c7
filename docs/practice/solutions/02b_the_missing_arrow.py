"""The result of `fetch_user_info` is handed on, so the service is asked once.

Prefect draws an arrow where the result of one task is an argument of another.
"""

import time
from typing import Any

from prefect import flow, task

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}


def ask_user_service(user_id: int) -> dict[str, Any]:
    """Return the user's id and name, as the user service knows them."""
    time.sleep(0.3)
    return {"user_id": user_id, "name": USERS[user_id]}


@task
def fetch_user_info(user_id: int) -> dict[str, Any]:
    """Return the user's id and name."""
    return ask_user_service(user_id)


@task
def compose_message(user: dict[str, Any]) -> str:
    """Return a message for the user."""
    return f"We miss you, {user['name']}!"


@flow
def message_flow(user_id: int = 101) -> str:
    """Return a message for the user."""
    user = fetch_user_info(user_id)
    return compose_message(user)


if __name__ == "__main__":
    print(message_flow())
