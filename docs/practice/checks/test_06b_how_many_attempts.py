"""06b: three questions that the records of a run answer."""

from exercise import Exercise


def test_the_answers_are_what_was_recorded(exercise: Exercise) -> None:
    run = exercise.run_completed()
    task_run = run.task_run("fetch_account_balance")
    waiting = [state.name for state in task_run.states if state.state_details.scheduled_time]
    exercise.runs.clear()  # a message shows the last run, and here that would be the answers
    module = exercise.module
    for name in ("TASK_RUNS", "ATTEMPTS", "STATE"):
        value = getattr(module, name)
        assert value, f"{name} is still {value!r}. Fill in what the records of your run say."
    assert len(run.task_runs) == module.TASK_RUNS, (
        f"TASK_RUNS is {module.TASK_RUNS}, and the server recorded another number. "
        "All attempts of a task are one task run."
    )
    assert task_run.attempts == module.ATTEMPTS, (
        f"ATTEMPTS is {module.ATTEMPTS}, and the server recorded another number. "
        "Count those that failed and the one that succeeded, not the retries that are allowed."
    )
    words = str(module.STATE).replace(" ", "").replace("_", "").lower()
    assert words == str(waiting[0]).lower(), (
        f"STATE is {module.STATE!r}, and the server recorded another name for the time between "
        "two attempts: see the timeline of lesson 06."
    )
