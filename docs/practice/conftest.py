"""`pytest docs/practice` goes through the exercises in order and stops at the first unsolved one.

An exercise is a script of this folder; checks/test_EXERCISE.py judges it by what the server
recorded when it ran. What is solved is not run again until its file changes.
"""

import hashlib
import linecache
from collections.abc import Generator
from pathlib import Path

import pytest
from exercise import Exercise, describe_error, describe_run

from tests.conftest import harness

__all__ = ["harness"]

FOLDER = Path(__file__).parent
EXERCISES = sorted(FOLDER.glob("[01]*.py"))
EXERCISE = pytest.StashKey[Exercise]()
NEWLY_SOLVED = pytest.StashKey[list[str]]()  # the files that this run has solved
SOLVED = "practice/solved"  # in pytest's cache: the text of each solved file, as a digest


def path_of(item: pytest.Item) -> Path:
    """Return the file of the exercise that the test is about."""
    return FOLDER / item.path.name.removeprefix("test_")


def digest(path: Path) -> str:
    """Return a short text that changes with the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_solved(config: pytest.Config) -> dict[str, str]:
    """Return the exercises that are solved as they stand: file name and digest."""
    solved = config.cache.get(SOLVED, {}) if config.cache else {}
    return {path.name: digest(path) for path in EXERCISES if solved.get(path.name) == digest(path)}


@pytest.fixture
def exercise(request: pytest.FixtureRequest, harness: None) -> Exercise:
    """Return the exercise that the test file is named after."""
    exercise = Exercise(path_of(request.node))
    request.node.stash[EXERCISE] = exercise
    return exercise


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is solved, unless -k asks for it."""
    solved = {} if config.getoption("keyword") else read_solved(config)
    for item in items:
        if path_of(item).name in solved:
            item.add_marker(pytest.mark.skip(reason="solved before"))


def pytest_report_collectionfinish(items: list[pytest.Item]) -> str | list[str]:
    """Say why nothing happens for a while, if there is anything to run."""
    if all(item.get_closest_marker("skip") for item in items):
        return []
    return "Starting a server. This takes some seconds."


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember a solved exercise; put words in the place of the traceback of an unsolved one."""
    report = yield
    path = path_of(item)
    if call.when != "call":
        return report
    if report.passed and item.config.cache:
        solved = read_solved(item.config)
        if path.name not in solved:
            item.config.stash.setdefault(NEWLY_SOLVED, []).append(path.name)
        item.config.cache.set(SOLVED, solved | {path.name: digest(path)})
    if report.failed and call.excinfo:
        report.longrepr = explain(path, item.stash[EXERCISE], call.excinfo.value)
    return report


def explain(path: Path, exercise: Exercise, error: BaseException) -> str:
    """Return what a learner needs to know of an unsolved exercise, one screen at the most."""
    linecache.checkcache()
    parts = [f"{relative(path)} is not solved yet."]
    if isinstance(error, AssertionError):
        parts += [str(error)]
    else:
        parts += ["It raised an exception:", describe_error(error, path)]
    for run in exercise.runs[-1:]:
        parts += [describe_run(run)]
        if isinstance(run.result, BaseException):
            parts += [describe_error(run.result, path)]
    parts += [f"Hint: {relative(FOLDER / 'hints' / path.with_suffix('.md').name)}"]
    return "\n\n".join(part.strip("\n") for part in parts)


def relative(path: Path) -> str:
    """Return the path as it is typed in the repository's folder."""
    return path.relative_to(FOLDER.parent.parent).as_posix()


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Name the outcomes of an exercise."""
    if report.skipped or (report.when == "call" and report.passed):
        return "solved", ".", "SOLVED"
    if report.when == "call" and report.failed:
        return "failed", "F", "NOT SOLVED YET"
    return None


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which solutions to compare with, and how many exercises are solved."""
    terminalreporter.line("")
    for name in config.stash.get(NEWLY_SOLVED, []):
        terminalreporter.line(f"Compare yours with {relative(FOLDER)}/solutions/{name}")
    solved = read_solved(config)
    terminalreporter.line(f"Solved: {len(solved)} of {len(EXERCISES)} exercises.")
