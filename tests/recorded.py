"""What the server recorded of a flow run, read with Prefect's client."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from prefect import Flow, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import filters, objects, sorting
from prefect.client.schemas.objects import State
from prefect.logging import disable_run_logger
from prefect.logging.handlers import APILogHandler

T = TypeVar("T")

# How the log records begin that Prefect writes by itself.
PREFECT_LOG_PREFIXES = (
    "Beginning flow run",
    "View at",
    "Finished in state",
    "Task run failed with",
    "Encountered exception",
)
QUIET_SECONDS = 2


def wait_until(what: str, check: Callable[[], T | None], seconds: float = 30) -> T:
    """Return the first true value of `check`; fail with `what` if there is none in `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return value


@dataclass
class TaskRun:
    """A task run: when it ran, how often, and its states."""

    id: UUID
    name: str  # of the task, or of its function if the task has a task_run_name
    start: datetime
    end: datetime
    attempts: int
    states: list[State]
    upstream_ids: set[UUID]  # the task runs whose results went in: the arrows of the run graph

    def state_names(self) -> list[str]:
        """Return the names of its states, in order: AwaitingRetry is the delay before a retry."""
        return [state.name or "" for state in self.states]


@dataclass
class LogRecord:
    """A log record, and the name of the task that wrote it, or None if the flow did."""

    level: int
    message: str
    task: str | None
    task_run_id: UUID | None


@dataclass
class FlowRun:
    """A flow run: its record on the server, its task runs in order of start, its logs."""

    record: objects.FlowRun
    flow_name: str
    task_runs: list[TaskRun]
    logs: list[LogRecord]
    result: Any = None  # what the flow returned, or the exception that ended it

    @property
    def state(self) -> str:
        """The name of its last state."""
        return self.record.state_name or ""

    def has_ended(self) -> bool:
        """Return whether it has ended, and so have its task runs, unless their process died."""
        state = self.record.state
        if not (state and state.is_final()):
            return False
        died = state.is_crashed() or state.is_cancelled()
        return died or all(_end_in_final(run.states) for run in self.task_runs)

    def names(self) -> list[str]:
        """Return the names of the tasks that ran, in order of start."""
        return [run.name for run in self.task_runs]

    def task_run(self, name: str) -> TaskRun:
        """Return the one task run of the task with this name."""
        found = [run for run in self.task_runs if run.name == name]
        assert found, f"no task run of {name} is recorded: is its @task missing?"
        assert len(found) == 1, f"{name} is recorded as {len(found)} task runs, not one"
        return found[0]

    def is_before(self, first: str, second: str) -> bool:
        """Return whether the first task run had ended when the second one started."""
        return self.task_run(first).end <= self.task_run(second).start

    def overlap(self, first: str, second: str) -> bool:
        """Return whether the two task runs ran at the same time for a while."""
        one, other = self.task_run(first), self.task_run(second)
        return one.start < other.end and other.start < one.end

    def user_logs(self) -> list[LogRecord]:
        """Return the log records that the flow and its tasks wrote, without Prefect's."""
        return [log for log in self.logs if not log.message.startswith(PREFECT_LOG_PREFIXES)]

    def edges(self) -> set[tuple[str, str]]:
        """Return the arrows of the run graph: (task whose result is used, task that uses it)."""
        return {
            (before.name, after.name)
            for before in self.task_runs
            for after in self.task_runs
            if before.id in after.upstream_ids
        }


Record = Callable[..., FlowRun]  # the fixture `record`
ReplaceTaskBody = Callable[[str, Callable[..., Any]], None]  # the fixture `replace_task_body`


@task(cache_policy=NO_CACHE)
def last_task() -> None:
    """Do nothing: once this task run is recorded, so are those before it."""


def record_flow(flow: Flow[..., Any], *arguments: Any, **keywords: Any) -> FlowRun:
    """Run the flow in this process, and return its record with its result or exception."""
    assert isinstance(flow, Flow), f"{flow} is a plain function: is its @flow missing?"
    assert not _in_event_loop(), "record() blocks the event loop: call it in a test without async"
    state: Any = flow(*arguments, **keywords, return_state=True)
    if flow.isasync:
        state = asyncio.run(state)
    asyncio.run(APILogHandler.aflush())  # now the log records are on the server
    with disable_run_logger():
        last: Any = last_task(return_state=True)
    last_id = last.state_details.task_run_id
    with get_client(sync_client=True) as client:
        read_states = client.read_task_run_states
        wait_until("all is recorded", lambda: _end_in_final(read_states(last_id)), 60)
    run = _wait_for_end(state.state_details.flow_run_id, 60)
    run.result = state.result(raise_on_failure=False)
    return run


def read_ended(flow_run_id: UUID, seconds: float = 60) -> FlowRun:
    """Return the record of a flow run that another process runs, once it has ended.

    What that process has yet to send cannot be known, so its records must stay the same for
    QUIET_SECONDS.
    """
    found = [_wait_for_end(flow_run_id, seconds)]

    def is_quiet() -> bool:
        time.sleep(QUIET_SECONDS)
        found.append(read_flow_run(flow_run_id))
        before, after = found[-2:]
        return (after.task_runs, after.logs) == (before.task_runs, before.logs)

    wait_until(f"flow run {flow_run_id} sends no more records", is_quiet, seconds)
    return found[-1]


def read_flow_run(flow_run_id: UUID) -> FlowRun:
    """Return what is recorded of the flow run by now."""
    by_id = filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[flow_run_id]))
    of_run = filters.LogFilter(flow_run_id=filters.LogFilterFlowRunId(any_=[flow_run_id]))
    oldest_first, any_order = sorting.LogSort.TIMESTAMP_ASC, sorting.TaskRunSort.ID_DESC
    with get_client(sync_client=True) as client:
        record = client.read_flow_run(flow_run_id)
        logs = _read_pages(client.read_logs, log_filter=of_run, sort=oldest_first)
        found = _read_pages(client.read_task_runs, flow_run_filter=by_id, sort=any_order)
        runs = [run for run in found if run.start_time]
        task_runs = [_task_run(run, client.read_task_run_states(run.id)) for run in runs]
        flow_name = client.read_flow(record.flow_id).name
    names: dict[UUID | None, str] = {run.id: run.name for run in task_runs}
    return FlowRun(
        record,
        flow_name,
        sorted(task_runs, key=lambda run: run.start),
        [LogRecord(it.level, it.message, names.get(it.task_run_id), it.task_run_id) for it in logs],
    )


def _wait_for_end(flow_run_id: UUID, seconds: float) -> FlowRun:
    def read() -> FlowRun | None:
        run = read_flow_run(flow_run_id)
        return run if run.has_ended() else None

    return wait_until(f"flow run {flow_run_id} has ended", read, seconds)


def _end_in_final(states: list[State]) -> bool:
    return bool(states) and states[-1].is_final()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _read_pages(read: Callable[..., list[T]], **what: Any) -> list[T]:
    """Return all that there is: the server gives 200 at a time."""
    found: list[T] = []
    while len(page := read(**what, limit=200, offset=len(found))) == 200:
        found += page
    return found + page


def _task_run(run: objects.TaskRun, states: list[State]) -> TaskRun:
    assert run.start_time
    inputs = [each for group in run.task_inputs.values() for each in group]
    # The names that Prefect gives end in the first characters of this key.
    name = run.name.removesuffix(f"-{run.dynamic_key[:3]}")
    return TaskRun(
        run.id,
        run.task_key.rsplit("-", 1)[0] if name == run.name else name,
        run.start_time,
        run.end_time or run.start_time,
        run.run_count,
        states,
        {each.id for each in inputs if isinstance(each, objects.TaskRunResult)},
    )
