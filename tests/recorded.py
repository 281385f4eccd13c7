"""What the server recorded of a flow run, read with Prefect's own client."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, TypeVar
from uuid import UUID

from prefect import Flow, get_client
from prefect.client.schemas import objects
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import LogSort, TaskRunSort

T = TypeVar("T")

# How the log records begin that Prefect writes by itself.
PREFECT_LOG_PREFIXES = (
    "Beginning flow run",
    "View at",
    "Finished in state",
    "Task run failed with",
    "Encountered exception",
)


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
    name: str  # of the task
    start: datetime
    end: datetime
    attempts: int
    states: list[State]
    upstream_ids: set[UUID]  # the task runs whose results went in: the arrows of the run graph

    def state_names(self) -> list[str]:
        """Return the names of its states, in order."""
        return [state.name or "" for state in self.states]

    def delays(self) -> list[float]:
        """Return the seconds that each further attempt waited after the one before, 0 for none."""
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

    def is_final(self) -> bool:
        """Return whether it has come to its end."""
        return bool(self.record.state and self.record.state.is_final())

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
        """Return whether the one task run had ended when the other started."""
        return self.task_run(first).end <= self.task_run(second).start

    def overlap(self, first: str, second: str) -> bool:
        """Return whether the two task runs ran at the same time for a while."""
        one, other = self.task_run(first), self.task_run(second)
        return one.start < other.end and other.start < one.end

    def user_logs(self) -> list[LogRecord]:
        """Return the log records that the flow and its tasks wrote, without Prefect's own."""
        return [log for log in self.logs if not log.message.startswith(PREFECT_LOG_PREFIXES)]

    def edges(self) -> set[tuple[str, str]]:
        """Return the arrows of the run graph: (task whose result is used, task that uses it)."""
        names = {run.id: run.name for run in self.task_runs}
        return {
            (names[need], run.name)
            for run in self.task_runs
            for need in run.upstream_ids & set(names)
        }


Record = Callable[..., FlowRun]  # what the fixture `record` is
ReplaceTaskBody = Callable[
    [str, Callable[..., Any]], None
]  # what the fixture `replace_task_body` is


def record_flow(flow: Flow[..., Any], *arguments: Any, **keywords: Any) -> FlowRun:
    """Run the flow and return what was recorded, its result or exception included."""
    assert isinstance(flow, Flow), f"{flow} is a plain function: is its @flow missing?"
    state: Any = flow(*arguments, **keywords, return_state=True)
    run = read_ended(state.state_details.flow_run_id)
    run.result = state.result(raise_on_failure=False)
    return run


def read_ended(flow_run_id: UUID, seconds: float = 60) -> FlowRun:
    """Return the record of the flow run once it has ended and all of it is there: it comes late."""

    def read() -> FlowRun | None:
        run = read_flow_run(flow_run_id)
        said = [log for log in run.logs if log.message.startswith("Finished in state")]
        # What a failed task keeps from starting says that it has finished as NotReady.
        ends = {log.task_run_id for log in said if "NotReady" not in log.message}
        recorded = {task_run.id for task_run in run.task_runs if task_run.states[-1].is_final()}
        # The flow's own last record has no task run. A flow run that crashed may not have
        # written it, nor one whose parameters were refused, which was never run.
        is_whole = None in ends or run.state == "Crashed" or run.record.run_count == 0
        return run if run.is_final() and is_whole and ends - {None} <= recorded else None

    return wait_until(f"flow run {flow_run_id} has ended and is recorded", read, seconds)


def read_flow_run(flow_run_id: UUID) -> FlowRun:
    """Return what is recorded of the flow run by now."""
    mine = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        record = client.read_flow_run(flow_run_id)
        logs = _read_pages(client.read_logs, log_filter=of_run, sort=LogSort.TIMESTAMP_ASC)
        found = _read_pages(client.read_task_runs, flow_run_filter=mine, sort=TaskRunSort.ID_DESC)
        runs = [run for run in found if run.start_time]
        task_runs = [_task_run(run, client.read_task_run_states(run.id)) for run in runs]
        flow_name = client.read_flow(record.flow_id).name
    return FlowRun(
        record,
        flow_name,
        sorted(task_runs, key=lambda run: run.start),
        [_log_record(log, task_runs) for log in logs],
    )


def _read_pages(read: Callable[..., list[T]], **what: Any) -> list[T]:
    """Return all that there is: the server gives 200 at a time."""
    found: list[T] = []
    while len(page := read(**what, limit=200, offset=len(found))) == 200:
        found += page
    return found + page


def _task_run(run: objects.TaskRun, states: list[State]) -> TaskRun:
    assert run.start_time
    inputs = [each for group in run.task_inputs.values() for each in group]
    return TaskRun(
        run.id,
        run.name.rsplit("-", 1)[0],
        run.start_time,
        run.end_time or run.start_time,
        run.run_count,
        states,
        {each.id for each in inputs if isinstance(each, objects.TaskRunResult)},
    )


def _log_record(log: objects.Log, task_runs: list[TaskRun]) -> LogRecord:
    names = [run.name for run in task_runs if run.id == log.task_run_id]
    return LogRecord(log.level, log.message, names[0] if names else None, log.task_run_id)
