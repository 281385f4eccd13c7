"""The whole pipeline: fetch, predict, notify; concurrent, retried and logged.

Run:    python 08_sync_async_retry_logger.py
Notice: the balance service is down once; only that step is tried again, the others go on.
"""

import math
import time
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run, task_run
from prefect.tasks import Task

USER_SECONDS = 1
BALANCE_SECONDS = 2
ACTIVITY_SECONDS = 3
PREDICTION_SECONDS = 1
NOTIFICATION_SECONDS = 1

# How many attempts of a step fail at first. Empty it, and every service is up.
OUTAGES = {"fetch_account_balance": 1}

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}
LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}

# Fixed weights stand for a trained model: savings and logins keep a user.
BIAS = 2.0
BALANCE_WEIGHT = -0.002  # per dollar
LOGIN_WEIGHT = -0.1  # per login in four weeks

# What the message service has delivered, by idempotency key: one message a key.
DELIVERED: dict[str, str] = {}

# Errors that another attempt can cure. With requests, add requests.ConnectionError and
# requests.Timeout: they are not the built-in exceptions of those names.
TRANSIENT_ERRORS = (ConnectionError, TimeoutError)


def is_transient(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a failed attempt is worth another: an outage is, an unknown user is not."""
    return isinstance(state.result(raise_on_failure=False), TRANSIENT_ERRORS)


def call_service(step: str, seconds: float) -> None:
    """Stand for a request that takes `seconds`; put yours in its place.

    Raises ConnectionError in the first OUTAGES[step] attempts of the task that calls it.
    """
    time.sleep(seconds)
    if task_run.run_count <= OUTAGES.get(step, 0):
        get_run_logger().warning("Service is down, attempt %s failed", task_run.run_count)
        raise ConnectionError(f"{step}: service is down (attempt {task_run.run_count})")


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_transient)
def fetch_user_info(user_id: int) -> dict[str, Any]:
    """Return the user's id and name; raise LookupError if there is no such user."""
    logger = get_run_logger()
    call_service("fetch_user_info", USER_SECONDS)
    if user_id not in USERS:
        logger.error("There is no user %s", user_id)
        raise LookupError(f"no user {user_id}")
    logger.info("User %s is %s", user_id, USERS[user_id])
    return {"user_id": user_id, "name": USERS[user_id]}


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_transient)
def fetch_account_balance(user: dict[str, Any]) -> float:
    """Return the account's balance in dollars."""
    logger = get_run_logger()
    call_service("fetch_account_balance", BALANCE_SECONDS)
    balance = BALANCES[user["user_id"]]
    logger.info("Balance is %.2f dollars", balance)
    return balance


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_transient)
def fetch_recent_activity(user: dict[str, Any]) -> list[int]:
    """Return the logins per week of the last four weeks."""
    logger = get_run_logger()
    call_service("fetch_recent_activity", ACTIVITY_SECONDS)
    activity = LOGINS[user["user_id"]]
    logger.info("Logins per week are %s", activity)
    return activity


@task
def predict_churn(balance: float, activity: list[int]) -> float:
    """Return the probability, 0 to 1, that a user with this balance (dollars) and activity leaves.

    Logistic model: 1 / (1 + exp(-score)), see Hastie, Tibshirani and Friedman, The Elements
    of Statistical Learning, 4.4. Written with tanh, it is the same number and never overflows.
    """
    logger = get_run_logger()
    time.sleep(PREDICTION_SECONDS)
    score = BIAS + BALANCE_WEIGHT * balance + LOGIN_WEIGHT * sum(activity)
    churn = (1 + math.tanh(score / 2)) / 2
    logger.info("Probability of leaving is %.3f", churn)
    return churn


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_transient)
def send_notification(user: dict[str, Any], churn: float) -> str:
    """Send one message about the user, and return it."""
    logger = get_run_logger()
    message = f"{user['name']} leaves with a probability of {churn:.0%}"
    # The answer can get lost after the message went out. The key is the same in every
    # attempt of a flow run, so the service knows a message that it has delivered already.
    DELIVERED.setdefault(f"churn-{flow_run.id}-{user['user_id']}", message)
    call_service("send_notification", NOTIFICATION_SECONDS)
    logger.info("Sent: %s", message)
    return message


@flow
def pipeline_flow(user_id: int = 101) -> dict[str, Any]:
    """Return what is known of the user and the probability that they leave, `churn`.

    Raises LookupError if there is no such user, ConnectionError if an outage outlasts four
    attempts of a step.
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
    send_notification(user, churn)
    logger.info("Finished in %.1f s", time.perf_counter() - started)
    return {"user": user, "balance": balance, "activity": activity, "churn": round(churn, 3)}


if __name__ == "__main__":
    print(pipeline_flow())
