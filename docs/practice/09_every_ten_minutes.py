"""Who is about to leave? The account managers want to know every ten minutes, without asking.

Run:   python docs/practice/09_every_ten_minutes.py    (Ctrl-C ends it)
Now:   the exercise serves the flow, which only runs when somebody triggers it.
Goal:  the flow also runs every ten minutes. The deployment's page in the UI shows its schedule.
"""

from prefect import flow, task

LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}


@task
def find_quiet_users(weeks: int) -> list[int]:
    """Return the ids of the users who have not logged in for this many weeks."""
    return [user_id for user_id, logins in LOGINS.items() if not any(logins[-weeks:])]


@flow
def quiet_flow(weeks: int = 2) -> list[int]:
    """Return the ids of the users who have not logged in for this many weeks."""
    return find_quiet_users(weeks)


if __name__ == "__main__":
    quiet_flow.serve("quiet-users")
