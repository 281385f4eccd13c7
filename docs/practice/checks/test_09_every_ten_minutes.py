"""09: the deployment has a schedule."""

from unittest.mock import patch

from exercise import Exercise
from prefect import get_client
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.runner import Runner

EVERY_TEN_MINUTES = {"*/10 * * * *", "0/10 * * * *", "0,10,20,30,40,50 * * * *"}


async def return_at_once(_: Runner, **_options: bool) -> None:
    """Stand for the serving process, which runs until Ctrl-C. The deployment is made before."""


def test_the_deployment_runs_every_ten_minutes(exercise: Exercise) -> None:
    with get_client(sync_client=True) as client:
        for left in client.read_deployments():
            client.delete_deployment(left.id)
        with patch.object(Runner, "start", return_at_once):
            exercise.run_as_script()
        deployments = client.read_deployments()
    assert deployments, (
        "No deployment is recorded. Does the exercise still serve the flow if it is run by itself?"
    )
    deployment = deployments[0]
    schedules = [each.schedule for each in deployment.schedules if each.active]
    assert schedules, (
        f"The deployment {deployment.name} has no schedule, so it runs only when it is triggered."
    )
    schedule = schedules[0]
    if isinstance(schedule, IntervalSchedule):
        seconds = schedule.interval.total_seconds()
        assert seconds == 600, f"Every 600 s was expected. The schedule says every {seconds:g} s."
    if isinstance(schedule, CronSchedule):
        assert schedule.cron in EVERY_TEN_MINUTES, (
            f"Every ten minutes was expected. The schedule says {schedule.cron!r}."
        )
    assert not deployment.paused, "The deployment is paused, so its schedule makes no runs."
