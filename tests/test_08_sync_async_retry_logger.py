"""Lesson 08: the whole pipeline: concurrent, retried and logged; one function stands for the world.

The tests put a service of their own in its place, as you will put your requests there: copy them
with the lesson, but for the last two, which are about the simulated service.
"""

import threading
import time
from dataclasses import dataclass, field
from logging import WARNING
from types import ModuleType
from typing import Any

import pytest
import requests
from prefect.states import Failed
from recorded import Record, ReplaceTaskBody

# The services, what they answer (no table of the lesson has it), and the step that asks each.
ANSWERS: dict[str, Any] = {
    "users": "Somebody Else",
    "balances": 500.25,
    "logins": [4, 4, 4, 4],
    "messages": None,
}
STEPS = {
    "users": "fetch_user_info",
    "balances": "fetch_account_balance",
    "logins": "fetch_recent_activity",
    "messages": "send_notification",
}
ARROWS = {
    ("fetch_user_info", "fetch_account_balance"),
    ("fetch_user_info", "fetch_recent_activity"),
    ("fetch_account_balance", "predict_churn"),
    ("fetch_recent_activity", "predict_churn"),
    ("fetch_user_info", "send_notification"),
    ("predict_churn", "send_notification"),
}


@dataclass
class Service:
    """What stands for the world: it answers, delivers, and raises the errors it is given first."""

    errors: dict[str, list[Exception]] = field(default_factory=dict)
    asked: dict[str, tuple[int, bool]] = field(default_factory=dict)  # whom; in the flow's thread?
    delivered: dict[str, str] = field(default_factory=dict)

    def __call__(self, service: str, user_id: int, message: str = "", key: str = "") -> Any:
        """Answer as `call_service` does."""
        self.asked[service] = (user_id, threading.current_thread() is threading.main_thread())
        if service == "messages":
            self.delivered.setdefault(key, message)
        time.sleep(0.25)  # or two lookups would not overlap
        if self.errors.get(service):
            raise self.errors[service].pop()
        return ANSWERS[service]


@pytest.fixture
def service(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Service:
    """Return a service that takes the place of the lesson's."""
    service = Service()
    monkeypatch.setattr(lesson, "call_service", service)
    return service


def http_error(status: int) -> requests.HTTPError:
    """Return the error that requests raises for an answer with this status."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


def test_the_steps_form_the_diamond_and_the_message_comes_last(
    lesson: ModuleType, record: Record, service: Service
) -> None:
    run = record(lesson.pipeline_flow, 102)
    assert run.state == "Completed", f"the flow run ended as {run.state}: {run.result}"
    assert run.overlap("fetch_account_balance", "fetch_recent_activity"), (
        "the two lookups ran one after the other: the first .result() came before the second "
        ".submit(), or one was called"
    )
    assert not service.asked["balances"][1] | service.asked["logins"][1], (
        "a lookup that need not wait is called instead of submitted"
    )
    assert run.is_before("predict_churn", "send_notification"), "the message came too early"
    assert run.edges() == ARROWS, "results are not passed along the arrows of the pipeline"
    users = {user_id for user_id, _ in service.asked.values()}
    assert users == {102}, "a service is asked about another user"
    returned = (run.result["user"]["name"], run.result["balance"], run.result["activity"])
    answers = (ANSWERS["users"], ANSWERS["balances"], ANSWERS["logins"])
    assert returned == answers, "the flow does not return what the services answer"
    writers = {log.task for log in run.user_logs()}
    assert writers >= {None, "predict_churn", *STEPS.values()}, f"only {writers} left log records"


def test_an_outage_of_a_service_repeats_its_step_alone(
    lesson: ModuleType, record: Record, service: Service
) -> None:
    service.errors = {name: [http_error(503), http_error(503)] for name in STEPS}
    run = record(lesson.pipeline_flow)
    gave_up = [step.name for step in run.task_runs if step.state_names()[-1] == "Failed"]
    assert not gave_up, f"two outages, and {gave_up[0]} gives up: has it its retries?"
    for name in STEPS.values():
        step = run.task_run(name)
        assert step.attempts == 3, f"two outages, and {name} took {step.attempts} attempts"
        assert min(step.delays()) > 0, f"{name} asks a service in trouble again at once"
    assert run.task_run("predict_churn").attempts == 1, "the prediction was repeated, too"
    assert len(service.delivered) == 1, f"one flow run, and {len(service.delivered)} messages"


def test_every_step_that_asks_a_service_gives_up_at_what_no_retry_cures(
    lesson: ModuleType, record: Record, service: Service
) -> None:
    for broken, name in STEPS.items():
        service.errors = {broken: [http_error(404)] * 4}
        run = record(lesson.pipeline_flow)
        assert isinstance(run.result, requests.HTTPError), f"a 404 in {name} became {run.result!r}"
        assert run.task_run(name).attempts == 1, f"{name} tries a 404 again: no retry_condition_fn?"


def test_an_outage_that_outlasts_four_attempts_fails_and_delivers_once(
    lesson: ModuleType, record: Record, service: Service
) -> None:
    service.errors = {"messages": [http_error(503) for _ in range(9)]}
    run = record(lesson.pipeline_flow)
    assert run.state == "Failed", f"the message service is down, and the flow run is {run.state}"
    assert run.task_run("send_notification").attempts == 4, "retries=3 are four attempts"
    assert len(service.delivered) == 1, "the service took the message four times, under four keys"


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        *((http_error(status), True) for status in (429, 502, 503, 504)),
        *((http_error(status), False) for status in (400, 401, 404, 409)),
        (requests.ConnectionError("refused"), True),
        (requests.ReadTimeout("too late"), True),
        (requests.exceptions.ChunkedEncodingError("cut short"), True),
        (requests.JSONDecodeError("no JSON", "", 0), False),
        (LookupError("no user"), False),
    ],
    ids=repr,
)
def test_what_is_transient_is_decided_by_the_error(
    lesson: ModuleType, error: Exception, transient: bool
) -> None:
    found = lesson.is_transient(lesson.fetch_user_info, None, Failed(data=error))
    assert found is transient, f"{error!r} is {'not ' * (not found)}tried again"


def test_a_prediction_that_fails_is_not_tried_again(
    lesson: ModuleType, record: Record, service: Service, replace_task_body: ReplaceTaskBody
) -> None:
    def fails(balance: float, activity: list[int]) -> float:
        raise ArithmeticError

    replace_task_body("predict_churn", fails)
    run = record(lesson.pipeline_flow)
    assert run.task_run("predict_churn").attempts == 1, "what only computes fails again"
    assert "messages" not in service.asked, "a message was sent without a prediction"


def test_every_flow_run_sends_a_message_of_its_own(
    lesson: ModuleType, record: Record, service: Service, replace_task_body: ReplaceTaskBody
) -> None:
    replace_task_body("predict_churn", lambda balance, activity: 0.6)
    for _ in range(2):
        record(lesson.pipeline_flow)
    messages = list(service.delivered.values())
    assert len(messages) == 2, "the key is not the flow run's own: two runs are two messages"
    assert ANSWERS["users"] in messages[0], "the message is not about what fetch_user_info returned"
    assert "60%" in messages[0], "the message is not about what predict_churn returned"


# --- the simulated service of the lesson ------------------------------------------------------


def test_the_simulated_outages_are_survived_and_logged(
    lesson: ModuleType, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson, "OUTAGES", dict.fromkeys(STEPS, 1))
    run = record(lesson.pipeline_flow, 102)
    assert run.state == "Completed", f"the flow run ended as {run.state}: {run.result}"
    warned = [log.task for log in run.user_logs() if log.level == WARNING]
    for name in STEPS.values():
        assert run.task_run(name).attempts == 2, f"the outage is not seen by {name}"
        assert name in warned, f"a failed attempt of {name} leaves no warning with its task run"
    found = (run.result["user"]["name"], run.result["balance"], run.result["activity"])
    assert found == (lesson.USERS[102], lesson.BALANCES[102], lesson.LOGINS[102])
    assert len(lesson.DELIVERED) == 1, f"one flow run delivers {len(lesson.DELIVERED)} messages"


def test_an_unknown_user_fails_at_once(
    lesson: ModuleType, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson, "OUTAGES", {})
    run = record(lesson.pipeline_flow, -1)
    assert isinstance(run.result, requests.HTTPError), f"an unknown user ends in {run.result!r}"
    assert run.result.response.status_code == 404, "the service answers something else"
    assert (run.names(), run.task_runs[0].attempts) == (["fetch_user_info"], 1), (
        "an unknown user was tried again, or asked about further"
    )
