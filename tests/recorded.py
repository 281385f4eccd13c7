"""What the server recorded of a flow run, read with Prefect's client."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
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
        """Return the names of its states, in order."""
        return [state.name or "" for state in self.states]

    def delays(self) -> list[float]:
        """Return the seconds before each further attempt, 0 where there was no delay."""
        return [
            (after.timestamp - before.timestamp).total_seconds()
            if before.name == "AwaitingRetry"
            else 0.0
            for before, after in pairwise(self.states)
            if after.name == "Retrying"
        ]


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

    def is_whole(self) -> bool:
        """Return whether it has ended, and so have its task runs, unless their process died."""
        state = self.record.state
        if not (state and state.is_final()):
            return False
        died = state.is_crashed() or state.is_cancelled()
        return died or all(run.states and run.states[-1].is_final() for run in self.task_runs)

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
        names = {run.id: run.name for run in self.task_runs}
        return {
            (names[need], run.name)
            for run in self.task_runs
            for need in run.upstream_ids & set(names)
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

    def read() -> FlowRun | None:
        with get_client(sync_client=True) as client:
            states = client.read_task_run_states(last.state_details.task_run_id)
        run = read_flow_run(state.state_details.flow_run_id)
        return run if states and states[-1].is_final() and run.is_whole() else None

    run = wait_until("the flow run has ended, and each task run is recorded", read, 60)
    run.result = state.result(raise_on_failure=False)
    return run


def read_ended(flow_run_id: UUID, seconds: float = 60) -> FlowRun:
    """Return the record of a flow run that another process runs, once it has ended.

    What that process has yet to send cannot be known, so its records must stay the same for
    QUIET_SECONDS.
    """

    def read() -> FlowRun | None:
        before = read_flow_run(flow_run_id)
        if not before.is_whole():
            return None
        time.sleep(QUIET_SECONDS)
        after = read_flow_run(flow_run_id)
        return after if (after.task_runs, after.logs) == (before.task_runs, before.logs) else None

    return wait_until(f"flow run {flow_run_id} has ended and is recorded", read, seconds)


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
    return FlowRun(
        record,
        flow_name,
        sorted(task_runs, key=lambda run: run.start),
        [_log_record(log, task_runs) for log in logs],
    )


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


def _log_record(log: objects.Log, task_runs: list[TaskRun]) -> LogRecord:
    names = [run.name for run in task_runs if run.id == log.task_run_id]
    return LogRecord(log.level, log.message, names[0] if names else None, log.task_run_id)
