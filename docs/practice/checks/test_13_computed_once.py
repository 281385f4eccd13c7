"""13: the same input is not computed again, another one is."""

import random

from exercise import Exercise
from recorded import FlowRun


def run_average(exercise: Exercise, logins: list[int]) -> FlowRun:
    """Return a run of the flow with these logins of user 101."""
    exercise.module.LOGINS[101] = logins
    run = exercise.run_completed(101)
    average = sum(logins) / len(logins)
    assert run.result == average, (
        f"The average of the logins {logins} is {average:g}. The result is {run.result!r}: "
        "an old result, of other logins, or not an average at all."
    )
    return run


def test_the_same_logins_are_computed_once(exercise: Exercise) -> None:
    one, other = random.sample(range(10**9), 2)  # never averaged before
    run = run_average(exercise, [one, 3, 2, 1])
    assert run.task_run("average").states[-1].name == "Completed", "It was not computed at all."
    exercise.runs.clear()
    next_run = Exercise(exercise.path)  # as in another process
    exercise.runs.append(run_average(next_run, [one, 3, 2, 1]))
    state = exercise.runs[-1].task_run("average").states[-1].name
    assert state == "Cached", (
        "The second run had the same logins, so its task run should be Cached. "
        f"It is {state}: the average was computed again."
    )
    exercise.runs.append(run_average(next_run, [other, 3, 2, 1]))
    state = exercise.runs[-1].task_run("average").states[-1].name
    assert state == "Completed", f"With other logins it should be computed. It is {state}."
