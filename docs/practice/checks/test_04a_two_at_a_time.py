"""04a: two of three lookups run at the same time, never three."""

from exercise import Exercise, most_at_a_time

LOOKUPS = ["fetch_account_balance", "fetch_name", "fetch_recent_activity"]


def test_two_lookups_run_at_a_time(exercise: Exercise) -> None:
    run = exercise.run_completed(102)
    assert run.result == ["Alan Turing", 980.0, [9, 8, 9, 10]], (
        "The result for user 102 should stay ['Alan Turing', 980.0, [9, 8, 9, 10]]. "
        f"It is {run.result!r}."
    )
    assert sorted(run.names()) == LOOKUPS, (
        f"Each of the three lookups should run once. Recorded: {', '.join(run.names())}."
    )
    most = most_at_a_time(run)
    assert most < 3, "All three lookups ran at the same time; at most two may."
    assert most == 2, (
        "Two lookups should run at the same time. They ran one after the other: "
        "each of them ended before the next one started."
    )
