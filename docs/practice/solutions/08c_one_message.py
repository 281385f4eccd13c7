"""The key names the event, user and night, so whatever is repeated sends the same key.

An id that is made in the task or belongs to the run would be another one in the next run.
"""

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
    key = f"message-{night}-{user_id}"
    deliver(key, f"We miss you, user {user_id}!")


@flow
def messages_flow(night: str = "2026-01-31") -> None:
    """Send a message to those who may leave."""
    send_message(101, night)
    send_message(103, night)


if __name__ == "__main__":
    messages_flow()
    print(DELIVERED)
