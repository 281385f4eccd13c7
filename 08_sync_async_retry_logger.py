"""The whole pipeline: fetch, predict, notify; concurrent, retried and logged.

Run:    python 08_sync_async_retry_logger.py
Notice: the balance service is down once; only that step is tried again, the others go on.
"""

import math
import time
from http import HTTPStatus
from typing import Any

import requests
from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run, task_run
from prefect.tasks import Task

USER_SECONDS = 1
BALANCE_SECONDS = 2
ACTIVITY_SECONDS = 3
PREDICTION_SECONDS = 1
NOTIFICATION_SECONDS = 1

# How many attempts a service fails at first. Empty it, and every service is up.
OUTAGES = {"balances": 1}

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}
LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}

# What the message service has delivered, by idempotency key: one message a key.
DELIVERED: dict[str, str] = {}

# Fixed weights stand for a trained model: savings and logins keep a user.
BIAS = 2.0
BALANCE_WEIGHT = -0.002  # per dollar
LOGIN_WEIGHT = -0.1  # per login in four weeks

# What another attempt can cure. The errors of requests are not Python's own of those names.
TRANSIENT_STATUSES = (429, 502, 503, 504)
TRANSIENT_ERRORS = (
    *(requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError),
    *(ConnectionError, TimeoutError),
)


def call_service(service: str, user_id: int, message: str = "", key: str = "") -> Any:
    """Return what the service answers about the user, or deliver a message; put yours here.

    Messages with the same idempotency key are one message. Raises requests.HTTPError: status 503
    in the first OUTAGES[service] attempts of the task that calls it, 404 for an unknown user.
    """
    logger = get_run_logger()
    services: dict[str, tuple[float, dict[int, Any]]] = {
        "users": (USER_SECONDS, USERS),
        "balances": (BALANCE_SECONDS, BALANCES),
        "logins": (ACTIVITY_SECONDS, LOGINS),
        "messages": (NOTIFICATION_SECONDS, USERS),
    }
    seconds, table = services[service]
    time.sleep(seconds)
    if service == "messages":
        DELIVERED.setdefault(key, message)
        logger.info("Messages delivered: %s", len(DELIVERED))
    status = HTTPStatus.OK if user_id in table else HTTPStatus.NOT_FOUND
    if task_run.run_count <= OUTAGES.get(service, 0):
        status = HTTPStatus.SERVICE_UNAVAILABLE
    response = requests.Response()
    response.status_code, response.reason = status, status.phrase
    response.url = f"/{service}/{user_id}"
    if not response.ok:
        logger.warning("Service %s answers %s, attempt %s", service, status, task_run.run_count)
    response.raise_for_status()
    return table[user_id]


def is_transient(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a failed attempt is worth another: an outage is, an unknown user is not."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in TRANSIENT_STATUSES
    return isinstance(error, TRANSIENT_ERRORS)


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_transient)
def fetch_user_info(user_id: int) -> dict[str, Any]:
    """Return the user's id and name."""
    name = call_service("users", user_id)
    get_run_logger().info("User %s is %s", user_id, name)
    return {"user_id": user_id, "name": name}


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_transient)
def fetch_account_balance(user: dict[str, Any]) -> float:
    """Return the account's balance in dollars."""
    balance: float = call_service("balances", user["user_id"])
    get_run_logger().info("Balance is %.2f dollars", balance)
    return balance


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_transient)
def fetch_recent_activity(user: dict[str, Any]) -> list[int]:
    """Return the logins per week of the last four weeks."""
    activity: list[int] = call_service("logins", user["user_id"])
    get_run_logger().info("Logins per week are %s", activity)
    return activity


@task
def predict_churn(balance: float, activity: list[int]) -> float:
    """Return the probability, 0 to 1, that a user with this balance (dollars) and activity leaves.

    Logistic model: 1 / (1 + exp(-score)), see Hastie, Tibshirani and Friedman, The Elements
    of Statistical Learning, 4.4. Written with tanh, it is the same number and never overflows.
    """
    time.sleep(PREDICTION_SECONDS)
    score = BIAS + BALANCE_WEIGHT * balance + LOGIN_WEIGHT * sum(activity)
    churn = (1 + math.tanh(score / 2)) / 2
    get_run_logger().info("Probability of leaving is %.3f", churn)
    return churn


@task(retries=3, retry_delay_seconds=5, retry_condition_fn=is_transient)
def send_notification(user: dict[str, Any], churn: float) -> str:
    """Send one message about the user, and return it."""
    message = f"{user['name']} leaves with a probability of {churn:.0%}"
    # The answer can get lost after the message went out. The key is the same in every
    # attempt of a flow run, so the service knows a message that it has delivered already.
    call_service("messages", user["user_id"], message, f"churn-{flow_run.id}-{user['user_id']}")
    get_run_logger().info("Sent: %s", message)
    return message


@flow
def pipeline_flow(user_id: int = 101) -> dict[str, Any]:
    """Return what is known of the user and the probability that they leave, `churn`.

    Raises requests.HTTPError for an unknown user (404), and what an outage raises that outlasts
    the four attempts of a step.
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
