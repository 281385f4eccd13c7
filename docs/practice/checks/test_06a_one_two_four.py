"""06a: delays of 1 s, 2 s and 4 s."""

from exercise import Exercise, planned_delays


def test_the_delays_are_1_2_and_4_seconds(exercise: Exercise) -> None:
    run = exercise.run(102, 3)
    task_run = run.task_run("fetch_name")
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
    assert delays == [1, 2, 4], f"Delays of [1, 2, 4] s were expected. Recorded: {delays} s."
