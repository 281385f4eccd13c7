"""08b: the flow goes on with a default after an outage, and after nothing else."""

from exercise import Exercise


def test_only_an_outage_is_survived(exercise: Exercise) -> None:
    run = exercise.run_completed(102)
    assert run.result == 980.0, (
        f"User 102 has 980.0 dollars, and no service is down. The result is {run.result!r}."
    )
    run = exercise.run(101, is_down=True)
    assert run.state == "Completed", (
        "After an outage the flow should go on with 0 dollars. "
        f"It did not: the flow run is {run.state}."
    )
    assert run.result == 0, f"After an outage the result should be 0 dollars. It is {run.result!r}."
    state = run.task_run("fetch_account_balance").states[-1].name
    assert state == "Failed", (
        "The flow goes on after an outage, but the records hide the outage: the task run is "
        f"{state}, not Failed. The flow should handle the error, not the task."
    )
    run = exercise.run(999)
    assert run.state == "Failed", (
        "User 999 does not exist, and that is not an outage: the flow run should be Failed. "
        f"It is {run.state} with a balance of {run.result!r}."
    )
