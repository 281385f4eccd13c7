"""Fixtures for tests of flows: `record` runs a flow, and `lesson` is the script under test.

Copy this file and recorded.py into a folder of tests. They need prefect and pytest, and they apply
to each test that asks for their fixtures. Four things they cannot know:

- tests/__init__.py: set `pythonpath = ["tests"]` for pytest, or `recorded` is not found.
- src/ layout: define a fixture `lesson_path` in the test file that returns the script's path.
- `lesson` is a second copy of the script: compare with `lesson.Name`, not with an imported `Name`.
- While the test server runs, PREFECT_* variables are unset and proxies skip 127.0.0.1.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect import Flow, Task
from prefect.context import use_profile
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOCAL_STORAGE_PATH,
    Profile,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness
from recorded import Record, ReplaceTaskBody, record_flow

SHORT_SECONDS = 0.25  # what the constants in SHORTEN become: long enough to overlap
RETRY_SECONDS = 0.05  # what each retry delay becomes


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start Prefect's test server, with an empty database and none of your Prefect settings."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            environment.delenv(name)
        environment.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect-home")))
        environment.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        unproxied = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
        environment.setenv("no_proxy", f"{unproxied},127.0.0.1,localhost".strip(","))
        with (
            use_profile(Profile(name="tests", settings={}), include_current_context=False),
            prefect_test_harness(server_startup_timeout=120),
            # A flow run waits up to a second for its heartbeat to end: without it tests are faster.
            temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        ):
            yield


@pytest.fixture
def record(harness: None, tmp_path: Path) -> Iterator[Record]:
    """Return a function that runs a flow and returns what the server recorded of the flow run.

    The result cache is empty at the start of each test.
    """
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield record_flow


@pytest.fixture(scope="module")
def lesson_path(request: pytest.FixtureRequest) -> Path:
    """Return the script that the test file is named after: beside it, or in the folder above."""
    name = request.path.name.removeprefix("test_")
    folder = request.path.parent
    found = [path for path in (folder.parent / name, folder / name) if path.exists()]
    assert found, f"no {name} in {folder} or above: define a fixture lesson_path that returns it"
    return found[0]


@pytest.fixture
def lesson(
    lesson_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """Return the lesson, loaded afresh, with short retry delays of its tasks and flows.

    If the test file has a list SHORTEN of constants, they are set to SHORT_SECONDS, which the test
    file can change.
    """
    spec = importlib.util.spec_from_file_location(lesson_path.stem, lesson_path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, lesson_path.stem, module)  # Prefect looks for types there
    spec.loader.exec_module(module)
    seconds = getattr(request.module, "SHORT_SECONDS", SHORT_SECONDS)
    for name in getattr(request.module, "SHORTEN", []):
        monkeypatch.setattr(module, name, seconds)
    for value in vars(module).values():
        if isinstance(value, Flow | Task) and value.retry_delay_seconds:
            monkeypatch.setattr(value, "retry_delay_seconds", RETRY_SECONDS)
    return module


@pytest.fixture
def replace_task_body(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ReplaceTaskBody:
    """Return a function that gives a task of the lesson another body in this test."""

    def replace(name: str, body: Callable[..., Any]) -> None:
        task = getattr(lesson, name)
        assert isinstance(task, Task), f"{name} is a plain function: is its @task missing?"
        monkeypatch.setattr(task, "fn", body)

    return replace
