"""02b: the result of one task is the input of the next."""

from exercise import Exercise

FETCH, COMPOSE = "fetch_user_info", "compose_message"


def test_the_message_is_made_of_what_was_fetched(exercise: Exercise) -> None:
    run = exercise.run_completed(102)
    assert run.result == "We miss you, Alan Turing!", (
        f"The result for user 102 should stay 'We miss you, Alan Turing!'. It is {run.result!r}."
    )
    for name in (FETCH, COMPOSE):
        assert run.names().count(name) == 1, (
            f"One task run of {name} was expected. Recorded: {', '.join(run.names())}."
        )
    assert (COMPOSE, FETCH) not in run.edges(), (
        f"The arrow points the other way: {COMPOSE} calls {FETCH}. The flow should call both."
    )
    assert (FETCH, COMPOSE) in run.edges(), (
        f"The run graph should have an arrow from {FETCH} to {COMPOSE}. It has none: "
        f"{COMPOSE} is not given what {FETCH} returned. Give it the whole value: "
        "a small number such as the id makes no arrow."
    )
    exercise.replace_task_body(FETCH, lambda user_id: {"user_id": user_id, "name": "Joan Clarke"})
    run = exercise.run_completed(102)
    assert "Joan Clarke" in str(run.result), (
        f"The message should be made of what {FETCH} returned. The arrow is there, but the name "
        f"comes from elsewhere: {FETCH} returned Joan Clarke, and the message is {run.result!r}."
    )
