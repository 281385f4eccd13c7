"""Who is about to leave? The balance service is unreliable, and somebody asks how often we call it.

Run:   python docs/practice/06b_how_many_attempts.py
Now:   nobody knows.
Goal:  run the flow and answer the three questions from the records of your run. You find them in
       your terminal, or in the UI if you open the flow run and then its task runs. The terminal
       doesn't show the third answer, but the timeline of lesson 06 does.
"""

from prefect import flow, task
from prefect.runtime import task_run

TASK_RUNS = 0  # How many task runs does the flow run have?
ATTEMPTS = 0  # How many attempts did the task run of fetch_account_balance have?
STATE = ""  # What is the state of a task run that waits for its next attempt?

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}


@task(retries=2, retry_delay_seconds=1)
def fetch_name(user_id: int) -> str:
    """Return the user's name."""
    return USERS[user_id]


@task(retries=6, retry_delay_seconds=0.3)
def fetch_account_balance(user_id: int) -> float:
    """Return the account's balance in dollars; raise ConnectionError now and then."""
    if task_run.run_count <= user_id**2 % 9:
        raise ConnectionError("balance service is down")
    return BALANCES[user_id]


@flow
def moody_flow(user_id: int = 101) -> str:
    """Return a sentence about the user's balance."""
    return f"{fetch_name(user_id)} has {fetch_account_balance(user_id):.2f} dollars"


if __name__ == "__main__":
    print(moody_flow())
