"""Who is about to leave? The user service complains that we ask for the same user twice.

Run:   python docs/practice/02b_the_missing_arrow.py
Now:   compose_message looks up the user again, and the run graph has no arrow.
Goal:  compose_message uses what fetch_user_info returned, and the run graph shows that arrow.
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
def compose_message(user_id: int) -> str:
    """Return a message for the user."""
    user = ask_user_service(user_id)
    return f"We miss you, {user['name']}!"


@flow
def message_flow(user_id: int = 101) -> str:
    """Return a message for the user."""
    fetch_user_info(user_id)
    return compose_message(user_id)


if __name__ == "__main__":
    print(message_flow())
