"""04b: a task run that fails also fails the flow run."""

from exercise import Exercise


def test_the_failed_task_run_is_found_and_fails_the_flow_run(exercise: Exercise) -> None:
    run = exercise.run()
    too_early = len(run.task_runs) < 3 and isinstance(run.result, LookupError)
    assert not too_early, (
        "The loop asked for a result before it had submitted the rest: expected three task runs, "
        f"got {len(run.task_runs)}."
    )
    assert len(run.task_runs) not in (1, 2), (
        f"{len(run.task_runs)} of three task runs were recorded: a user was left out, or the flow "
        "ended early. That hides the failure. Keep all users, and let the failure show."
    )
    assert len(run.task_runs) == 3, (
        "Three task runs of average_logins were expected, one for each user. "
        f"Recorded: {len(run.task_runs)}."
    )
    last = [each.states[-1] for each in run.task_runs]
    failed = [state for state in last if state.name == "Failed"]
    assert failed, (
        "One Failed task run was expected. Recorded: "
        f"{', '.join(sorted(str(state.name) for state in last))}. The data and the task should "
        "stay as they are, and the flow should not end before its tasks."
    )
    answer = exercise.module.FAILED_USER
    assert answer, "FAILED_USER is still 0. One of the three task runs is Failed: for which user?"
    assert f"user {answer} " in str(failed[0].message), (
        f"FAILED_USER is {answer}. The task run that failed is about another user: "
        "its error names the user."
    )
    assert run.state == "Failed", (
        "FAILED_USER is right. But the flow run is still green although a task run failed: "
        "it does not ask for the result of that task, or it ignores the error."
    )
    exercise.module.LOGINS.append((int(answer), 1))
    run = exercise.run()
    assert run.state == "Completed", (
        "With logins for every user no task run fails, so the flow run should be Completed. "
        f"It is {run.state}."
    )
