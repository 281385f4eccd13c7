"""`interval` is in seconds; it gives the deployment a schedule, which the server keeps.

The serving process looks for runs that are due, whether the schedule or a trigger made them.
"""

from prefect import flow, task

LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}


@task
def find_quiet_users(weeks: int) -> list[int]:
    """Return the ids of the users who did not log in for so many weeks."""
    return [user_id for user_id, logins in LOGINS.items() if not any(logins[-weeks:])]


@flow
def quiet_flow(weeks: int = 2) -> list[int]:
    """Return the ids of the users who did not log in for so many weeks."""
    return find_quiet_users(weeks)


if __name__ == "__main__":
    quiet_flow.serve("quiet-users", interval=600)
