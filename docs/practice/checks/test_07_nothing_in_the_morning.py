"""07: the warning belongs to the task run, on the server."""

import logging

from exercise import Exercise
from prefect.exceptions import MissingContextError


def test_the_warning_is_a_record_of_the_task_run(exercise: Exercise) -> None:
    try:
        run = exercise.run_completed(103)
    except MissingContextError as error:
        raise AssertionError(
            "At the top of the file no run is in progress: call get_run_logger() inside the task."
        ) from error
    found = [log for log in run.user_logs() if "Grace" in log.message or "103" in log.message]
    assert found, (
        "A record that names Grace Hopper was expected. The server has none: what the exercise "
        "writes goes to the terminal only."
    )
    record = found[0]
    assert record.task == "fetch_account_balance", (
        "The record is there, but it belongs to the flow run. The task run that found the low "
        "balance should write it."
    )
    assert record.level == logging.WARNING, (
        "The record is there, but a filter for warnings misses it: its level is "
        f"{logging.getLevelName(record.level)}, not WARNING."
    )
    run = exercise.run_completed(101)
    assert not [log for log in run.user_logs() if log.level >= logging.WARNING], (
        "Ada's balance is not low, and yet there is a warning about her."
    )
