"""What every test of a flow needs: Prefect's test harness, the lesson, and a way to run a flow.

Copy this file, recorded.py and one test beside your own flow: they need prefect and pytest.
"""

import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Prefect reads its settings when it is imported: nothing that is configured here takes part.
for name in list(os.environ):
    if name.startswith("PREFECT_") or name.lower().endswith("_proxy"):
        del os.environ[name]
home = tempfile.TemporaryDirectory(prefix="prefect-home-", ignore_cleanup_errors=True)
os.environ["PREFECT_HOME"] = home.name
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["PREFECT_LOGGING_TO_API_BATCH_INTERVAL"] = "0.1"  # seconds: tests wait for log records

from prefect import Task  # noqa: E402
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings  # noqa: E402
from prefect.testing.utilities import prefect_test_harness  # noqa: E402
from recorded import Record, ReplaceTaskBody, record_flow  # noqa: E402

QUICK_SECONDS = 0.25  # what a step of a lesson takes here


@pytest.fixture(scope="session", autouse=True)
def harness() -> Iterator[None]:
    """Run all flows on a server of the tests' own, with a database that is thrown away."""
    with (
        prefect_test_harness(server_startup_timeout=120),
        # A flow run waits up to a second for its heartbeat to end: without it tests are faster.
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield
    logging.disable()  # Prefect logs once more when the output that pytest has taken is closed


@pytest.fixture(scope="session")
def record() -> Record:
    """Return a function that runs a flow and returns what the server recorded of the flow run."""
    return record_flow


@pytest.fixture(scope="module")
def lesson_path(request: pytest.FixtureRequest) -> Path:
    """Return the path of the script that the test file is named after, above it or beside."""
    name = request.path.name.removeprefix("test_")
    folder = request.path.parent
    found = [path for path in (folder.parent / name, folder / name) if path.exists()]
    assert found, f"{request.path.name} is the test of {name}, which is not here"
    return found[0]


@pytest.fixture
def lesson(lesson_path: Path) -> ModuleType:
    """Return the lesson, loaded afresh, with every constant of seconds made short."""
    return load_quickly(lesson_path)


@pytest.fixture
def replace_task_body(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ReplaceTaskBody:
    """Return a function that gives a task of the lesson another body in this test."""

    def replace(name: str, body: Callable[..., Any]) -> None:
        step = getattr(lesson, name)
        assert isinstance(step, Task), f"{name} is a plain function: is its @task missing?"
        monkeypatch.setattr(step, "fn", body)

    return replace


def load_quickly(path: Path) -> ModuleType:
    """Return the script as a module whose *_SECONDS are short, and the delays of its retries."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where Prefect looks for the parts of a flow
    spec.loader.exec_module(module)
    for name, value in vars(module).items():
        if name.endswith("_SECONDS"):
            setattr(module, name, QUICK_SECONDS)
        if isinstance(value, Task) and value.retry_delay_seconds:
            value.retry_delay_seconds = QUICK_SECONDS  # type: ignore[assignment]
    return module
