"""Run the tasks of lesson 08 for many users in one flow run, with threads or on Dask.

Run:    python docs/growing/many_users.py 101 102 103
        python docs/growing/many_users.py --dask tcp://127.0.0.1:8786 101 102 103
Notice: if you add 999, the other users still get their result, user 999 is reported with an
        error, and the flow run is Failed.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.states import Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect_dask.task_runners import DaskTaskRunner

sys.path.append(str(Path(__file__).parents[2]))  # the folder of the lessons
lesson = importlib.import_module("08_sync_async_retry_logger")


@flow
def many_users_flow(user_ids: list[int]) -> dict[int, float] | State:
    """Return the probability that each user leaves, by the user's ID.

    If a task fails, the flow run is Failed. Its result has the other users, and its message lists
    each user whose task failed, with the error.
    """
    users = lesson.fetch_user_info.map(user_ids)
    balances = lesson.fetch_account_balance.map(users)
    activities = lesson.fetch_recent_activity.map(users)
    churns = lesson.predict_churn.map(balances, activities)
    sent = lesson.send_notification.map(users, churns)

    churn, errors = {}, []
    for user_id, *steps in zip(user_ids, users, balances, activities, churns, sent, strict=True):
        try:
            # In the order of the tasks: the first one without a result raises the user's error.
            # The tasks after it never started, and their own error would not say why.
            churn[user_id] = [step.result() for step in steps][3]
        except Exception as error:  # noqa: BLE001 - whatever it is, the other users go on
            errors.append(f"user {user_id}: {type(error).__name__}: {error}")
    if errors:
        message = "\n".join([f"{len(errors)} of {len(user_ids)} failed", *errors])
        return Failed(message=message, data=churn)
    return churn


def main() -> None:
    """Run the flow for the users of the command line; exit with 1 if the flow run fails."""
    parser = argparse.ArgumentParser(description="Predict and notify for many users at once.")
    parser.add_argument("user_ids", nargs="+", type=int, metavar="USER_ID")
    parser.add_argument("--dask", metavar="ADDRESS", help="run on this Dask scheduler")
    arguments = parser.parse_args()
    runner: TaskRunner[Any] = ThreadPoolTaskRunner()
    if arguments.dask:
        runner = DaskTaskRunner(address=arguments.dask)
    state = many_users_flow.with_options(task_runner=runner)(arguments.user_ids, return_state=True)
    result = state.result(raise_on_failure=False)
    for user_id, churn in result.items() if isinstance(result, dict) else ():
        print(f"user {user_id}: {churn:.3f}")
    if not state.is_completed():
        sys.exit(f"error: {state.message}")


if __name__ == "__main__":
    main()
