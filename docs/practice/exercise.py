"""An exercise as the checks see it: its module, and what the server recorded of its runs."""

import importlib.util
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from prefect import Flow, Task
from recorded import FlowRun, TaskRun, record_flow


class Exercise:
    """One exercise, loaded afresh, with the records of its flow runs."""

    def __init__(self, path: Path) -> None:
        """Take the exercise at `path`; nothing of it runs yet."""
        self.path = path
        self.runs: list[FlowRun] = []
        self._module: ModuleType | None = None

    @property
    def module(self) -> ModuleType:
        """Return the exercise as a module. Raises what the exercise raises when it is imported."""
        if self._module is None:
            spec = importlib.util.spec_from_file_location(self.path.stem, self.path)
            assert spec
            assert spec.loader
            module = importlib.util.module_from_spec(spec)
            sys.modules[self.path.stem] = module  # where Prefect looks for the parts of a flow
            spec.loader.exec_module(module)
            self._module = module
        return self._module

    def flow(self) -> Flow[..., Any]:
        """Return the flow of the exercise; the last one, if there are several."""
        flows = [each for each in vars(self.module).values() if isinstance(each, Flow)]
        assert flows, "There is no flow in this exercise: is its @flow missing?"
        return flows[-1]

    def run(self, *arguments: Any, **keywords: Any) -> FlowRun:
        """Run the flow, and return what the server recorded, its result or exception included."""
        self.runs.append(record_flow(self.flow(), *arguments, **keywords))
        return self.runs[-1]

    def run_completed(self, *arguments: Any, **keywords: Any) -> FlowRun:
        """Run the flow, and fail unless the flow run is Completed."""
        run = self.run(*arguments, **keywords)
        assert run.state == "Completed", f"The flow run should be Completed. It is {run.state}."
        return run

    def run_as_script(self) -> None:
        """Run the exercise as `python FILE` does, without arguments."""
        runpy.run_path(str(self.path), run_name="__main__")

    def replace_task_body(self, task_name: str, body: Callable[..., Any]) -> None:
        """Give the task another body, as if the world were another one."""
        tasks = [each for each in vars(self.module).values() if isinstance(each, Task)]
        found = [each for each in tasks if each.name == task_name]
        assert found, f"The exercise has no task with the name {task_name}."
        found[0].fn = body


def only_task_run(run: FlowRun, name: str) -> TaskRun:
    """Return the one task run of the task; if there is none, fail with what its call raised."""
    never_started = not run.task_runs and isinstance(run.result, BaseException)
    assert not never_started, (
        f"The call of {name} raised an exception before it started: "
        f"{type(run.result).__name__} (see below)."
    )
    return run.task_run(name)


def seconds_from_start(run: FlowRun) -> list[tuple[str, float, float]]:
    """Return name, start and end of each task run, in seconds since the first one started."""
    first = min((each.start for each in run.task_runs), default=None)
    return [
        (each.name, (each.start - first).total_seconds(), (each.end - first).total_seconds())
        for each in run.task_runs
        if first
    ]


def most_at_a_time(run: FlowRun) -> int:
    """Return how many task runs ran at the same time, at the most."""
    spans = seconds_from_start(run)
    return max((sum(a <= at < b for _, a, b in spans) for _, at, _ in spans), default=0)


def describe_run(run: FlowRun) -> str:
    """Return the record of the flow run as a few lines of text."""
    lines = [f"Flow run {run.record.name} of {run.flow_name}: {run.state}"]
    for task_run, (name, start, end) in zip(run.task_runs, seconds_from_start(run), strict=True):
        state = task_run.states[-1].name
        attempts = "" if task_run.attempts < 2 else f", {task_run.attempts} attempts"
        lines.append(f"  {name:24} {start:4.1f} s to {end:4.1f} s   {state}{attempts}")
    if not run.task_runs:
        lines.append("  no task run")
    lines += [f"  {first} -> {then}" for first, then in sorted(run.edges())]
    return "\n".join(lines)


def describe_error(error: BaseException, path: Path) -> str:
    """Return the error with those lines of its traceback that are in the exercise at `path`."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == path.name
    ]
    return "".join(traceback.format_list(frames) + traceback.format_exception_only(error))


def planned_delays(task_run: TaskRun) -> list[float]:
    """Return the seconds for which Prefect planned to wait before each further attempt."""
    return [
        round((state.state_details.scheduled_time - state.timestamp).total_seconds(), 1)
        for state in task_run.states
        if state.state_details.scheduled_time
    ]
