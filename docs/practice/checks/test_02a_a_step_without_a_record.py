"""02a: each of the two steps leaves a task run."""

from exercise import Exercise


def test_both_steps_are_recorded(exercise: Exercise) -> None:
    run = exercise.run_completed(102)
    assert run.result == "Alan Turing logged in 36 times", (
        "The result for user 102 should stay 'Alan Turing logged in 36 times'. "
        f"It is {run.result!r}."
    )
    assert "count-logins" not in run.names(), (
        "count_logins ran as a flow inside the flow. A step should be a task."
    )
    for name in ("fetch_name", "count_logins"):
        assert name in run.names(), (
            f"Both steps should be recorded as task runs of the flow run. {name} is not: "
            "it ran as a plain function, or was not called, so Prefect has no record of it."
        )
    assert len(run.names()) == 2, (
        f"Two task runs were expected, one for each step. Recorded: {', '.join(run.names())}."
    )
