"""Who is about to leave? Grace was, and then she got two letters in one night, and left.

Run:   python docs/practice/08c_one_message.py
Now:   the message goes out, the answer gets lost, the task is retried, the message goes out again.
Goal:  one message for each user and night, however often the task is retried or the whole flow is
       run again. The next night, there is a new message. The retries and deliver() stay.
"""

from uuid import uuid4

from prefect import flow, task
from prefect.runtime import task_run

DELIVERED: dict[str, str] = {}  # by idempotency key


def deliver(key: str, message: str) -> None:
    """Deliver the message, as the message service does: one for each idempotency key."""
    DELIVERED.setdefault(key, message)
    if task_run.run_count == 1:
        raise ConnectionError("message service: the answer got lost")


@task(retries=2, retry_delay_seconds=0.3)
def send_message(user_id: int, night: str) -> None:
    """Send the user a message."""
    key = str(uuid4())
    deliver(key, f"We miss you, user {user_id}!")


@flow
def messages_flow(night: str = "2026-01-31") -> None:
    """Send a message to those who may leave."""
    send_message(101, night)
    send_message(103, night)


if __name__ == "__main__":
    messages_flow()
    print(DELIVERED)
