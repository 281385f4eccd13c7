"""The flow handles the one error that it has an answer to; every other error fails the flow run.

The flow handles it, not the task, so the task run stays Failed in the records.
"""

from prefect import flow, get_run_logger, task

BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}


@task
def fetch_account_balance(user_id: int, is_down: bool) -> float:
    """Return the account's balance in dollars.

    Raises ConnectionError if the service is down, LookupError if there is no such user.
    """
    if is_down:
        raise ConnectionError("balance service is down")
    if user_id not in BALANCES:
        raise LookupError(f"no user {user_id}")
    return BALANCES[user_id]


@flow
def balance_flow(user_id: int = 999, is_down: bool = False) -> float:
    """Return the user's balance in dollars, or 0 after an outage."""
    try:
        return fetch_account_balance(user_id, is_down)
    except ConnectionError:
        get_run_logger().warning("No balance of user %s, going on with 0 dollars", user_id)
        return 0.0


if __name__ == "__main__":
    print(balance_flow())
