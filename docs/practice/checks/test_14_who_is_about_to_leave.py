"""14: a pipeline from its description."""

import logging

from exercise import Exercise, most_at_a_time

LOOKUPS = {"fetch_account_balance", "fetch_recent_activity"}


def test_the_pipeline_does_what_is_described(exercise: Exercise) -> None:
    run = exercise.run()
    ends = [each.states[-1].name for each in run.task_runs if each.name == "fetch_account_balance"]
    assert "Failed" not in ends, (
        "The balance service fails at the first attempt, and then the task run is Failed: "
        "the task has no second attempt."
    )
    assert run.state == "Completed", f"The flow run should be Completed. It is {run.state}."
    for name in [*sorted(LOOKUPS), "predict_churn"]:
        number = run.names().count(name)
        assert number == 3, (
            f"Three task runs of {name} were expected, one for each user. Recorded: {number}."
        )
    most = most_at_a_time(run)
    assert most > 3, (
        "The lookups of all users, six in all, should run at the same time. "
        f"At most {most} task runs did: something waits before everything is submitted."
    )
    names = {each.id: each.name for each in run.task_runs}
    for task_run in [each for each in run.task_runs if each.name == "predict_churn"]:
        missing = LOOKUPS - {names[need] for need in task_run.upstream_ids & set(names)}
        assert not missing, (
            "Each prediction should get what the two lookups of its user returned. In the run "
            f"graph there is no arrow to predict_churn from {' and '.join(sorted(missing))}."
        )
    assert run.result == 103, (
        "User 103 is most likely to leave, so 103 should be returned. "
        f"The result is {run.result!r}."
    )
    warnings = [log.message for log in run.user_logs() if log.level == logging.WARNING]
    assert any("Grace" in message or "103" in message for message in warnings), (
        "A WARNING that names Grace Hopper was expected among the records of the run. "
        f"Recorded: {warnings or 'no warning'}."
    )
    exercise.module.BALANCES[101], exercise.module.LOGINS[101] = 1.0, [0, 0, 0, 0]
    run = exercise.run_completed()
    assert run.result == 101, (
        "Without logins and with 1 dollar, user 101 is most likely to leave, so 101 should be "
        f"returned. The result is {run.result!r}."
    )
