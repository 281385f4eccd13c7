"""Who is about to leave? Perhaps somebody who stops logging in, so count the logins.

Run:   python docs/practice/02a_a_step_without_a_record.py
Now:   the flow does two things, and only one of them is recorded.
Goal:  the run has two task runs, fetch_name and count_logins. Its result stays the same.
"""

import time

from prefect import flow, task

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}


@task
def fetch_name(user_id: int) -> str:
    """Return the user's name."""
    time.sleep(0.3)
    return USERS[user_id]


def count_logins(user_id: int) -> int:
    """Return the number of logins in four weeks."""
    time.sleep(0.3)
    return sum(LOGINS[user_id])


@flow
def logins_flow(user_id: int = 101) -> str:
    """Return a sentence about the user's logins."""
    name = fetch_name(user_id)
    logins = count_logins(user_id)
    return f"{name} logged in {logins} times"


if __name__ == "__main__":
    print(logins_flow())
