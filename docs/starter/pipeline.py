"""Who is about to leave? Ask three services about a user, predict, and send one message a day.

Run:    python pipeline.py 101      (fake services answer, unless SERVICE_URL names yours)
Notice: two requests fail at first; only their tasks are retried, and one message is delivered.
"""

import argparse
import math
import os
import sys
import time
from contextlib import ExitStack
from datetime import date
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.runtime import task_run

from services import (
    Activity,
    AnswerT,
    Balance,
    OutageError,
    Receipt,
    ServiceError,
    User,
    request_json,
)

RETRY_DELAYS = [2.0, 10.0, 30.0]  # seconds before the second, third and fourth attempt

# Fixed weights stand for a trained model: savings and logins keep a user.
BIAS = 2.0
BALANCE_WEIGHT = -0.002  # per dollar
LOGIN_WEIGHT = -0.1  # per login in four weeks


def is_outage(_task: Any, _task_run: Any, state: State) -> bool:
    """Return whether a retry can help: after an outage it can, after a refusal it cannot."""
    return isinstance(state.result(raise_on_failure=False), OutageError)


def call_service(
    service: str, user_id: int, answer_type: type[AnswerT], body: Any = None, key: str = ""
) -> AnswerT:
    """Return the service's answer; log an attempt that fails, and raise what request_json raises.

    Prefect waits RETRY_DELAYS between two attempts. If the service asks for more, wait here.
    """
    attempt = task_run.run_count
    try:
        answer = request_json(f"{service}/{user_id}", answer_type, body, key)
        if isinstance(answer, User) and answer.user_id != user_id:
            raise ServiceError(f"the user service returned another user: {answer!r}")
        return answer
    except (OutageError, ServiceError) as error:
        get_run_logger().warning(
            "%s service, user %s, attempt %s failed: %s", service, user_id, attempt, error
        )
        if isinstance(error, OutageError) and attempt <= len(RETRY_DELAYS):
            time.sleep(max(0.0, error.retry_after - RETRY_DELAYS[attempt - 1]))
        raise


@task(retries=len(RETRY_DELAYS), retry_delay_seconds=RETRY_DELAYS, retry_condition_fn=is_outage)
def fetch_user_info(user_id: int) -> User:
    """Return the user's id and name; raise ServiceError if there is no such user."""
    return call_service("user", user_id, User)


@task(retries=len(RETRY_DELAYS), retry_delay_seconds=RETRY_DELAYS, retry_condition_fn=is_outage)
def fetch_account_balance(user: User) -> float:
    """Return the account's balance in dollars."""
    return call_service("balance", user.user_id, Balance).balance


@task(retries=len(RETRY_DELAYS), retry_delay_seconds=RETRY_DELAYS, retry_condition_fn=is_outage)
def fetch_recent_activity(user: User) -> list[int]:
    """Return the logins per week of the last four weeks."""
    return call_service("activity", user.user_id, Activity).logins


@task
def predict_churn(balance: float, activity: list[int]) -> float:
    """Return the probability, 0 to 1, that a user with this balance (dollars) and activity leaves.

    Logistic model: 1 / (1 + exp(-score)). Written with tanh, it never overflows.
    """
    score = BIAS + BALANCE_WEIGHT * balance + LOGIN_WEIGHT * sum(activity)
    return (1 + math.tanh(score / 2)) / 2


@task(retries=len(RETRY_DELAYS), retry_delay_seconds=RETRY_DELAYS, retry_condition_fn=is_outage)
def send_notification(user: User, churn: float, day: date) -> str:
    """Send one message about the user on this day, and return the message's id.

    The key names the event. All attempts send it, and so does a second run of the day, even if
    the probability has changed: the service delivers the first message, and no other.
    """
    key = f"churn-{user.user_id}-{day}"
    body = {"message": f"{user.name} leaves with a probability of {churn:.0%}"}
    message_id = call_service("message", user.user_id, Receipt, body, key).message_id
    get_run_logger().info("Delivered under the key %s: message %s", key, message_id)
    return message_id


@flow
def churn_flow(user_id: int = 101, day: date | None = None) -> dict[str, Any]:
    """Return what is known of the user, the probability that they leave, and the message's id.

    The day is today's date where this runs, unless it is given. Raises ServiceError if a service
    refuses or its answer cannot be used, and OutageError if an outage outlasts four attempts.
    """
    user = fetch_user_info(user_id)
    balance_future = fetch_account_balance.submit(user)
    activity_future = fetch_recent_activity.submit(user)
    balance = balance_future.result()
    activity = activity_future.result()
    churn = predict_churn(balance, activity)
    message_id = send_notification(user, churn, day or date.today())
    return {"name": user.name, "churn": round(churn, 3), "message_id": message_id}


def main() -> None:
    """Run the flow once; exit with 1 and one line if the run does not complete."""
    parser = argparse.ArgumentParser(description="Predict whether a user leaves, and report it.")
    parser.add_argument("user_id", type=int, nargs="?", default=101, metavar="USER_ID")
    parser.add_argument("--day", type=date.fromisoformat, metavar="YYYY-MM-DD", help="not today")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        if not os.environ.get("SERVICE_URL"):
            from fake_services import fake_services  # delete these lines with the file

            os.environ["SERVICE_URL"] = stack.enter_context(fake_services())
        try:
            state = churn_flow(arguments.user_id, arguments.day, return_state=True)
        except RuntimeError as error:  # Prefect's: the flow's own errors are in its state
            sys.exit(f"error: {error}. Start the server, or unset PREFECT_API_URL.")
    if not state.is_completed():
        sys.exit(f"error: {state.message}")
    print(state.result())


if __name__ == "__main__":
    main()
