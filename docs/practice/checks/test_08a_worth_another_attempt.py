"""08a: 503 is retried, 404 is not."""

import logging

from exercise import Exercise, only_task_run


def test_a_503_is_retried_and_a_404_is_not(exercise: Exercise) -> None:
    run = exercise.run(101)
    attempts = only_task_run(run, "fetch_name").attempts
    errors = [log.message for log in run.logs if log.level >= logging.ERROR]
    assert not any("while running `retry_condition_fn`" in message for message in errors), (
        "A 503 should be retried. It was not: the retry condition itself raised an exception, "
        "which counts as no. The result() of a failed state raises what the task raised."
    )
    assert attempts > 1, (
        "A 503 should be retried. It was not: the task has no retries, or the condition says no."
    )
    assert run.state == "Completed", (
        "After two times 503 the third attempt succeeds, so the flow run should be Completed. "
        f"It is {run.state} after {attempts} attempts."
    )
    run = exercise.run(999)
    attempts = run.task_run("fetch_name").attempts
    assert attempts == 1, (
        f"A 404 should fail at the first attempt. It was retried: {attempts} attempts are recorded."
    )
    assert run.state == "Failed", (
        f"There is no user 999, so the flow run should be Failed. It is {run.state}."
    )
