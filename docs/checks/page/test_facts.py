"""Facts about Prefect that LEARNINGS.md states in passing: measured, and compared with the page.

`stated` finds a number or a name on the page, and the test compares it with what Prefect does.
Blocks, transcripts, things to try and the table of symptoms have checks of their own.
"""

import asyncio
import importlib
import inspect
import re
import time
import tomllib
from functools import partial
from typing import Any

import prefect.states
import requests
from machinery import ROOT, run, script
from pages import LEARNINGS, find_stated
from prefect import Flow, flow, task
from prefect.client.schemas.objects import State
from prefect.runner import Runner
from prefect.runtime import task_run
from prefect.settings import PREFECT_API_URL
from prefect.settings.models.root import Settings
from recorded import FlowRun, record_flow, wait_until

stated = partial(find_stated, LEARNINGS)
NUMBERS = {
    word: number for number, word in enumerate(["no", "one", "two", "three", "four", "five", "six"])
}


def ran(body: Any, *arguments: Any, **options: Any) -> FlowRun:
    """Run a flow with this body and these options, and return what was recorded."""
    return record_flow(flow(name="fact", **options)(body), *arguments)


def test_a_flow_is_named_after_its_function() -> None:
    function, name = stated(r"named after the function, with dashes: `(\w+)` is `([\w-]+)`")
    lesson = importlib.import_module("01_basic_example_with_flows")
    assert getattr(lesson, function).name == name


def test_a_task_called_without_a_flow_is_a_task_run_of_no_flow_run() -> None:
    state: State[Any] = task(lambda: "done")(return_state=True)
    number = NUMBERS[stated(r"recorded as a task run of (\w+) flow run\.")]
    assert bool(state.state_details.flow_run_id) == number
    assert state.state_details.task_run_id


def test_submit_returns_a_future_at_once_and_the_runner_has_threads() -> None:
    returned: list[Any] = []

    def submits() -> None:
        future = task(lambda: time.sleep(0.5)).submit()
        returned.extend([future, future.state.is_final()])
        future.result()

    ran(submits)
    future, is_final = returned
    name = stated(r"`task.submit\(...\)` returns a `(\w+)` immediately")
    assert name in [each.__name__ for each in type(future).__mro__]
    assert not is_final, ".submit() waits for the task"
    runner = stated(r"The default task runner is a `(\w+)`")
    assert type(flow(submits).task_runner).__name__ == runner


def test_one_blocking_call_stops_the_other_coroutines() -> None:
    call = stated(
        r"One blocking call, such as `requests.get` or `(time\.sleep)`, stops all the others"
    )

    @task
    async def blocks() -> None:
        {"time.sleep": time.sleep}[call](0.2)

    async def both() -> None:
        await asyncio.gather(blocks(), blocks())

    first, second = ran(lambda: asyncio.run(both())).task_runs
    assert first.end <= second.start, "a blocking call lets other coroutines go on"


def test_arrows_come_from_the_identity_of_results() -> None:
    shared = "a string that two results share"
    one = task(name="one")(lambda: {"text": shared})
    other = task(name="other")(lambda: {"text": shared})
    takes = task(name="takes")(lambda value: None)

    def hands_over() -> None:
        result = one()
        other()
        takes(result)

    run = ran(hands_over)
    sources = {each.id: each.name for each in run.task_runs}
    arrows = [sources[need] for need in run.task_run("takes").upstream_ids]
    too_many = NUMBERS[{"an": "one"}[stated(r"share an object draw (\w+) arrow too many")]]
    assert len(arrows) == 1 + too_many, f"the arrows come from {arrows}"


def test_retries_are_attempts_beyond_the_first() -> None:
    retries, attempts = stated(
        r"`retries=(\d)` means up to (\w+) attempts: the first, and \w+ more"
    )
    counts: list[int] = []

    @task(retries=int(retries))
    def fails() -> None:
        counts.append(task_run.run_count or 0)
        raise ConnectionError("down")

    assert len(ran(lambda: fails()).task_runs) == 1
    first = int(
        stated(r"`prefect.runtime.task_run.run_count` is the number of the attempt, from (\d)\.")
    )
    assert counts == list(range(first, first + NUMBERS[attempts]))


def test_jitter_spreads_the_delays() -> None:
    assert stated(r"`(retry_jitter_factor)` spreads the delays at random")

    @task(retries=3, retry_delay_seconds=0.2, retry_jitter_factor=2)
    def fails() -> None:
        raise ConnectionError("down")

    states = ran(lambda: fails()).task_run("fails").states
    delays = [
        (state.state_details.scheduled_time - state.timestamp).total_seconds()
        for state in states
        if state.state_details.scheduled_time and state.name == "AwaitingRetry"
    ]
    assert max(delays) > 1.05 * min(delays), f"the delays are all the same: {delays}"


def test_the_statuses_worth_another_attempt_are_those_of_lesson_08() -> None:
    lesson = importlib.import_module("08_sync_async_retry_logger")
    listed = stated(r"the statuses ([\d, ]+ and \d+) are worth another attempt")
    assert re.findall(r"\d+", listed) == [str(each) for each in lesson.TRANSIENT_STATUSES]
    once = int(stated(r"A (\d+) fails at once\."))
    assert once not in lesson.TRANSIENT_STATUSES


def test_the_limits_and_rhythms_of_serving() -> None:
    default, here = stated(
        r"It asks every (\d+) s by default; this repository's \S+ makes that (\d+) s"
    )
    runner = type(Settings().runner)
    assert int(default) == runner.model_fields["poll_frequency"].default
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert int(here) == project["tool"]["prefect"]["runner"]["poll_frequency"]
    late = type(Settings().server.services.late_runs).model_fields["after_seconds"].default
    assert int(stated(r"After (\d+) s it is called `Late`")) == late.total_seconds()
    lesson = importlib.import_module("09_user_flow")
    assert int(stated(r"`limit=(\d+)` is the")) == lesson.LIMIT
    assert stated(r"Without it, (every) run that is due starts at once")
    assert inspect.signature(Flow.serve).parameters["limit"].default is None
    assert Runner(name="unlimited", limit=None).limit is None


def test_what_the_api_answers() -> None:
    def takes(user_id: int = 101) -> None: ...

    deployable: Any = flow(name="takes")(takes)
    deployment_id = deployable.to_deployment("facts").apply()
    create = f"{PREFECT_API_URL.value()}/deployments/{deployment_id}/create_flow_run"

    def post(**body: Any) -> requests.Response:
        def answer() -> list[requests.Response]:
            response = requests.post(create, json=body, timeout=60)
            return [response] if response.status_code != 503 else []  # SQLite is busy

        return wait_until("an answer that is not 503", answer)[0]

    first, again = (post(idempotency_key="facts") for _ in "12")
    new, known = stated(r"The status is (\d+) for a new run, and (\d+) for one that exists already")
    assert (first.status_code, again.status_code) == (int(new), int(known))
    assert first.json()["id"] == again.json()["id"]
    assert first.json()["state"]["name"] == stated(r"It comes at once, in the state (\w+)\.")
    refused = int(stated(r"A wrong type is refused with (\d+)\."))
    assert post(parameters={"user_id": "Ada"}).status_code == refused
    accepted = post(parameters={"userid": 1}).status_code
    assert accepted == int(stated(r"does not have is accepted with (\d+), and the run"))
    assert accepted == int(stated(r"checks values, not names: (\d+), then `Crashed`"))


def test_the_deadline_of_lesson_12_and_its_exit_code_are_as_the_page_states() -> None:
    lesson = importlib.import_module("12_trigger_deployment_by_id_name_lookup")
    assert int(stated(r"`--timeout`, (\d+) s by default")) == lesson.TIMEOUT_SECONDS
    deployable: Any = flow(name="waits")(lambda: None)
    deployable.to_deployment("for-ever").apply()
    words = (script("12"), "waits/for-ever", "--wait", "--timeout", "3")  # nothing serves it
    code = run(*words, PREFECT_API_URL=str(PREFECT_API_URL.value())).returncode
    assert code == int(stated(r"(\d) when the time is over and the run goes on"))


def test_the_states_of_the_glossary_are_prefects() -> None:
    names = stated(r"\| state \| Where a run is: ([\w, ]+) \|").split(", ")
    assert [getattr(prefect.states, name)().name for name in names] == names
