"""06a: delays of 1 s, 2 s and 4 s."""

from exercise import Exercise, only_task_run, planned_delays


def test_the_delays_are_1_2_and_4_seconds(exercise: Exercise) -> None:
    run = exercise.run(102, 3)
    task_run = only_task_run(run, "fetch_name")
    assert task_run.attempts == 4, (
        "With three outages the fourth attempt succeeds, so four attempts were expected. "
        f"Recorded: {task_run.attempts}. The first attempt is not a retry."
    )
    assert run.result == "Alan Turing", (
        f"The result for user 102 should be 'Alan Turing'. It is {run.result!r}."
    )
    delays = planned_delays(task_run)
    assert sorted(delays) != [1, 2, 4] or delays == [1, 2, 4], (
        f"The delays are right, but not their order: expected [1, 2, 4] s, got {delays} s."
    )
    assert delays != [1, 2, 2], (
        f"Delays of [1, 2, 4] s were expected. Recorded: {delays} s. "
        "The list has two delays, and the last delay of the list is repeated."
    )
    assert delays == [1, 2, 4], (
        f"Delays of [1, 2, 4] s were expected. Recorded: {delays} s. "
        "A sleep in the task isn't a delay between attempts."
    )
