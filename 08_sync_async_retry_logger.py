"""The whole pipeline: fetch, predict, notify; concurrent, retried and logged.

Run:    python 08_sync_async_retry_logger.py
Notice: the balance service is down once; only that task is retried, the others go on.
"""

import math
import time
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.runtime import flow_run, task_run

USER_SECONDS = 1
BALANCE_SECONDS = 2
ACTIVITY_SECONDS = 3
PREDICTION_SECONDS = 1
NOTIFICATION_SECONDS = 1

# How many attempts of a task fail because its service is down. Empty it, and every service is up.
OUTAGES = {"balance": 1}

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}
LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}

DELIVERED: dict[str, str] = {}  # what the message service has delivered, by idempotency key

# Fixed weights stand for a trained model: savings and logins keep a user.
BIAS = 2.0
BALANCE_WEIGHT = -0.002  # per dollar
LOGIN_WEIGHT = -0.1  # per login in four weeks


def is_outage(_task: Any, _task_run: Any, state: State) -> bool:
    """Return whether a retry can help: after an outage it can, for an unknown user it cannot."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, ConnectionError)


def check_service(service: str) -> None:
    """Raise ConnectionError in the first OUTAGES[service] attempts of the task that calls this."""
    attempt = task_run.run_count
    if attempt <= OUTAGES.get(service, 0):
        get_run_logger().warning("%s service is down, attempt %s failed", service, attempt)
        raise ConnectionError(f"{service} service is down (attempt {attempt})")


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_outage)
def fetch_user_info(user_id: int) -> dict[str, Any]:
    """Return the user's id and name; raise LookupError if there is no such user."""
    time.sleep(USER_SECONDS)
    check_service("user")
    if user_id not in USERS:
        raise LookupError(f"no user {user_id}")
    return {"user_id": user_id, "name": USERS[user_id]}


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_outage)
def fetch_account_balance(user: dict[str, Any]) -> float:
    """Return the account's balance in dollars."""
    time.sleep(BALANCE_SECONDS)
    check_service("balance")
    return BALANCES[user["user_id"]]


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_outage)
def fetch_recent_activity(user: dict[str, Any]) -> list[int]:
    """Return the logins per week of the last four weeks."""
    time.sleep(ACTIVITY_SECONDS)
    check_service("activity")
    return LOGINS[user["user_id"]]


@task
def predict_churn(balance: float, activity: list[int]) -> float:
    """Return the probability, 0 to 1, that a user with this balance (dollars) and activity leaves.

    Logistic model: 1 / (1 + exp(-score)). Written with tanh, it never overflows.
    """
    time.sleep(PREDICTION_SECONDS)
    score = BIAS + BALANCE_WEIGHT * balance + LOGIN_WEIGHT * sum(activity)
    return (1 + math.tanh(score / 2)) / 2


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_outage)
def send_notification(user: dict[str, Any], churn: float) -> str:
    """Send one message about the user, and return it."""
    message = f"{user['name']} leaves with a probability of {churn:.0%}"
    # The same key in every attempt: the service recognizes a message that it has already delivered.
    key = f"churn-{flow_run.id}-{user['user_id']}"
    time.sleep(NOTIFICATION_SECONDS)
    DELIVERED.setdefault(key, message)
    get_run_logger().info("Messages delivered: %s", len(DELIVERED))
    check_service("message")  # after the delivery: only the response is lost
    return message


@flow
def pipeline_flow(user_id: int = 101) -> dict[str, Any]:
    """Return what is known of the user and the probability that they leave, `churn`.

    Raises LookupError for an unknown user, ConnectionError if an outage outlasts four attempts.
    """
    logger = get_run_logger()
    started = time.perf_counter()
    logger.info("Starting for user %s", user_id)
    user = fetch_user_info(user_id)
    balance_future = fetch_account_balance.submit(user)
    activity_future = fetch_recent_activity.submit(user)
    balance = balance_future.result()
    activity = activity_future.result()
    churn = predict_churn(balance, activity)
    logger.info("Sent: %s", send_notification(user, churn))
    logger.info("Finished in %.1f s", time.perf_counter() - started)
    return {"user": user, "balance": balance, "activity": activity, "churn": round(churn, 3)}


if __name__ == "__main__":
    print(pipeline_flow())
