"""08c: one message for each event, whatever is repeated."""

from exercise import Exercise


def test_one_message_for_each_user_and_night(exercise: Exercise) -> None:
    delivered = exercise.module.DELIVERED

    def count() -> list[int]:
        """Return how many messages user 101 and user 103 have got."""
        return [sum(str(user) in each for each in delivered.values()) for user in (101, 103)]

    run = exercise.run("2026-01-31")
    assert run.state == "Completed", (
        "The first answer of the message service gets lost, so the task needs its retries. "
        f"The flow run is {run.state}."
    )
    assert 0 not in count(), (
        "Each of the users 101 and 103 should get a message. Only one did: both messages have the "
        f"same key. Delivered: {list(delivered.values())}."
    )
    assert count() == [1, 1], (
        f"Each user should get one message in a night. They got {count()}: "
        "each attempt has another key."
    )
    exercise.run_completed("2026-01-31")
    assert count() == [1, 1], (
        "The flow was run again for the same night, and the messages went out again. "
        "The key should name the event, that is user and night, not the flow run."
    )
    exercise.run_completed("2026-02-01")
    assert count() == [2, 2], (
        f"In the next night each user should get a second message. They got {count()} in all: "
        "the key does not name the night."
    )
