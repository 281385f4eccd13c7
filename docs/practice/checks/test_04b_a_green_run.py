"""04b: a task run that fails also fails the flow run."""

from exercise import Exercise


def test_the_failed_task_run_is_found_and_fails_the_flow_run(exercise: Exercise) -> None:
    run = exercise.run()
    assert len(run.task_runs) == 3, (
        "Three task runs of average_logins were expected, one for each user. "
        f"Recorded: {len(run.task_runs)}."
    )
    failed = [each.states[-1] for each in run.task_runs if each.states[-1].name == "Failed"]
    assert failed, "No task run failed. The data and the task should stay as they are."
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
    exercise.module.LOGINS[int(answer)] = [1]
    run = exercise.run()
    assert run.state == "Completed", (
        "With logins for every user no task run fails, so the flow run should be Completed. "
        f"It is {run.state}."
    )
