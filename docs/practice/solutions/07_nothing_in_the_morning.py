"""The logger of the run sends its records to the server, each with the task run that wrote it.

It is asked for in the task: at the top of the file there is no run yet.
"""

from prefect import flow, get_run_logger, task

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}
LOW_BALANCE = 20.0  # dollars


@task
def fetch_account_balance(user_id: int) -> float:
    """Return the account's balance in dollars, and warn if it is low."""
    logger = get_run_logger()
    balance = BALANCES[user_id]
    if balance < LOW_BALANCE:
        logger.warning("%s has %.2f dollars left", USERS[user_id], balance)
    return balance


@flow
def balance_flow(user_id: int = 103) -> float:
    """Return the balance of the user's account in dollars."""
    return fetch_account_balance(user_id)


if __name__ == "__main__":
    print(balance_flow())
