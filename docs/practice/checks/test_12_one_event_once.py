"""12: one flow run for each event, whatever asks for it again."""

import os
import random
from typing import Any
from unittest.mock import patch
from uuid import UUID

import requests
from exercise import Exercise
from prefect import get_client
from prefect.settings import PREFECT_API_URL
from recorded import wait_until


def ask(module: Any, user_id: int, night: str) -> str:
    """Return what `trigger` of the exercise returns; while the database is locked, ask again."""

    def answer() -> Any:
        try:
            return module.trigger(user_id, night)
        except requests.HTTPError as error:
            if error.response.status_code != 503:
                raise

    return str(wait_until("the server answers", answer))


def test_an_event_triggers_one_flow_run(exercise: Exercise) -> None:
    year = random.randrange(2100, 9999)  # nights that nobody has asked for yet
    night, next_night = f"{year}-01-31", f"{year}-02-01"
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow_from_name("user-flow")
        client.create_deployment(flow_id, "user-deployment")
        with patch.dict(os.environ, PREFECT_API_URL=str(PREFECT_API_URL.value())):
            first = ask(exercise.module, 101, night)
            restarted = Exercise(exercise.path).module  # as if it was started again
            again = ask(restarted, 101, night)
            other_user = ask(restarted, 103, night)
            other_night = ask(restarted, 101, next_night)
        parameters = client.read_flow_run(UUID(first)).parameters
    assert first == again, (
        f"Asked twice for user 101 in the night of {night}, the server scheduled two flow runs: "
        "the second request did not carry the idempotency key of the first one."
    )
    assert first != other_user, (
        "Asked for user 103 in the same night, the server returned the flow run of user 101: "
        "the key does not name the user."
    )
    assert first != other_night, (
        "Asked for user 101 in the next night, the server returned the flow run of the night "
        "before: the key does not name the night."
    )
    assert parameters == {"user_id": 101}, (
        "The flow run should have the parameters {'user_id': 101}. "
        f"Recorded: {parameters}. The key is not a parameter of the flow."
    )
