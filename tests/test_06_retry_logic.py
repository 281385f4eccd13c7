"""Lesson 06: a task that fails for a while is tried again, after a delay."""

from types import ModuleType

import pytest
from recorded import Record


@pytest.mark.parametrize("outages", [0, 1, 3])
def test_an_outage_of_up_to_three_attempts_is_survived(
    lesson: ModuleType, record: Record, outages: int
) -> None:
    run = record(lesson.retry_flow, 102, outages)
    assert run.state == "Completed", f"{outages} outages end in {run.state}: is retries=3 missing?"
    assert run.result["name"] == lesson.USERS[102], "the last attempt's result is not the flow's"
    step = run.task_run("fetch_user_info")
    assert step.attempts == outages + 1, (
        f"{outages} outages took {step.attempts} attempts: the outage does not go by their number"
    )


def test_there_is_a_delay_before_each_further_attempt(lesson: ModuleType, record: Record) -> None:
    assert lesson.fetch_user_info.retry_delay_seconds, "no retry_delay_seconds"
    delays = record(lesson.retry_flow, 101, 2).task_run("fetch_user_info").delays()
    assert len(delays) == 2, f"two outages, and it was tried again {len(delays)} times"
    assert min(delays) > 0, f"a service in trouble is asked again at once: waited {delays} s"


def test_an_outage_that_outlasts_four_attempts_fails_the_flow_run(
    lesson: ModuleType, record: Record
) -> None:
    run = record(lesson.retry_flow, 101, 4)
    assert run.task_run("fetch_user_info").attempts == 4, "retries=3 are four attempts, and no more"
    assert run.state == "Failed", f"the last attempt failed, and the flow run is {run.state}"
    assert isinstance(run.result, ConnectionError), f"the error became {run.result!r}"


def test_the_script_shows_an_outage_that_is_survived(lesson: ModuleType, record: Record) -> None:
    run = record(lesson.retry_flow)
    assert run.task_run("fetch_user_info").attempts > 1, "nothing fails, so nothing is tried again"
    assert run.state == "Completed", f"the flow run ended as {run.state}"
