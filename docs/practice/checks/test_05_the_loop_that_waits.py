"""05: first all .submit(), then all .result()."""

from exercise import Exercise, most_at_a_time
from prefect import State
from prefect.futures import PrefectFuture


def test_all_three_counts_run_at_the_same_time(exercise: Exercise) -> None:
    run = exercise.run_completed()
    returned = run.result if isinstance(run.result, list) else [run.result]
    assert not any(isinstance(each, State | PrefectFuture) for each in returned), (
        "You returned futures whose results nobody asked for. Three numbers were expected."
    )
    assert isinstance(run.result, list), (
        f"The result should be a list of three numbers. It is {run.result!r}."
    )
    assert all(isinstance(each, int) for each in run.result), (
        f"The result should be a list of three numbers. It is {run.result!r}."
    )
    assert sorted(run.result) == [3, 11, 36], (
        f"The result should be the counts [11, 36, 3]. It is {run.result!r}."
    )
    assert len(run.task_runs) == 3, (
        "Each count should be a task run, three in all. "
        f"Recorded: {', '.join(run.names()) or 'none'}."
    )
    most = most_at_a_time(run)
    assert most > 1, (
        "The three counts ran one after the other: the loop waits for a result before it submits "
        "the next task."
    )
    assert most == 3, f"All three counts should run at the same time. At most {most} did."
    assert run.result == [11, 36, 3], (
        "The counts are there, but not in the order of the users: "
        f"[11, 36, 3] was expected, got {run.result!r}."
    )
