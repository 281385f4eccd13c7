"""Who is about to leave? Grace's balance is low, and the account managers want to know about it.

Run:   python docs/practice/07_nothing_in_the_morning.py
Now:   the terminal shows a warning. In the morning, the terminal is closed, and the records of
       the run on the server don't mention Grace.
Goal:  the warning is among the records of the run, as a WARNING of the task run that found it.
"""

import logging

from prefect import flow, task

logger = logging.getLogger(__name__)

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}
LOW_BALANCE = 20.0  # dollars


@task
def fetch_account_balance(user_id: int) -> float:
    """Return the account's balance in dollars, and warn if it is low."""
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
