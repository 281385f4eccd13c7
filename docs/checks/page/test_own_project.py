"""docs/testing.md: its examples, and the lessons' fixtures and tests in other projects."""

import re
import shutil
from pathlib import Path

import pytest
from machinery import ROOT, run, script
from prefect import flow, get_run_logger, task
from recorded import Record

PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
SALES, TEST_SALES, HARNESS = re.findall(r"(?ms)^```python notest\n(.*?)^```$", PAGE)

pytestmark = pytest.mark.timeout(300)

# A project that is not like the lessons: its logging level, names, retries and cache policies.
CHURN = """
import asyncio

from prefect import flow, get_run_logger, task
from prefect.cache_policies import INPUTS, TASK_SOURCE

CACHE_MAX_AGE_SECONDS = 86_400
attempts = []


@task(task_run_name="sales-of-{shop}")
def fetch_sales(shop):
    get_run_logger().warning("asked for %s", shop)


@flow
def many_shops():
    fetch_sales.map(range(20)).result()


@task(cache_policy=INPUTS + TASK_SOURCE)
def cached(number):
    return number


@flow
def cached_flow():
    return cached(1)


@flow(retries=1, retry_delay_seconds=1000)
def retried_flow():
    attempts.append(1)
    assert len(attempts) == 2


@task
async def wait_for(number):
    return number


@flow
async def async_flow():
    return await asyncio.gather(*[wait_for(number) for number in range(3)])
"""
TEST_CHURN = """
import asyncio
import os
import sys

import pytest


def test_without_a_flow_nothing_is_changed():
    assert os.environ["PREFECT_API_KEY"] == "key", "the environment is changed for other tests"
    assert "churn" not in sys.modules


def test_records_are_whole_and_have_the_name_of_the_task(lesson, record):
    assert lesson.CACHE_MAX_AGE_SECONDS == 86_400, "shortened, and not in SHORTEN"
    for _ in range(5):
        run = record(lesson.many_shops)
        assert run.names() == ["fetch_sales"] * 20
        assert [log.task for log in run.user_logs()] == ["fetch_sales"] * 20


def test_a_result_is_cached(lesson, record):
    assert [record(lesson.cached_flow).result for _ in range(2)] == [1, 1]


def test_the_cache_is_empty_in_the_next_test(lesson, record, replace_task_body):
    replace_task_body("cached", lambda number: 99)
    assert record(lesson.cached_flow).result == 99


def test_the_delay_of_a_flow_is_short(lesson, record):
    assert record(lesson.retried_flow).state == "Completed"


def test_an_asynchronous_flow_is_recorded(lesson, record):
    run = record(lesson.async_flow)
    assert (run.result, run.names()) == ([0, 1, 2], ["wait_for"] * 3)


def test_a_running_event_loop_is_refused(lesson, record):
    async def test():
        record(lesson.async_flow)

    with pytest.raises(AssertionError, match="blocks the event loop"):
        asyncio.run(test())


def test_the_module_is_gone_again():
    assert "churn" not in sys.modules
"""


def test_a_flow_run_of_many_records_is_read_whole(record: Record) -> None:
    double = task(lambda number: 2 * number)

    @flow
    def wordy() -> None:
        for number in range(450):
            get_run_logger().info("Number %s", number)
        double.map(range(210)).result()

    run = record(wordy)
    assert len(run.task_runs) == 210
    assert len([log for log in run.user_logs() if log.message.startswith("Number")]) == 450


def test_the_block_on_the_harness_runs_by_itself() -> None:
    result = run("-c", HARNESS, seconds=280)  # it has a server of its own
    assert result.returncode == 0, result.stderr[-3000:]


def run_alone(folder: Path, *needed: str, **environment: str) -> None:
    """Run the tests in a folder with prefect and pytest, no pyproject.toml, the plugins needed."""
    for name in ("conftest.py", "recorded.py"):
        shutil.copy(ROOT / "tests" / name, folder)
    others = {"xdist", "timeout", "pytest_httpserver", "cacheprovider"} - {*needed}
    plugins = [f"-pno:{name}" for name in others]
    result = run("-m", "pytest", "-q", *plugins, cwd=folder, seconds=280, **environment)
    assert result.returncode == 0, f"copied, it fails:\n{result.stdout[-3000:]}"


def test_the_example_of_the_page_passes(tmp_path: Path) -> None:
    (tmp_path / "sales.py").write_text(SALES, encoding="utf-8")
    (tmp_path / "test_sales.py").write_text(TEST_SALES, encoding="utf-8")
    run_alone(tmp_path)


def test_the_fixtures_fit_another_project(tmp_path: Path) -> None:
    (tmp_path / "churn.py").write_text(CHURN, encoding="utf-8")
    (tmp_path / "test_churn.py").write_text(TEST_CHURN, encoding="utf-8")
    (tmp_path / "prefect.toml").write_text('[logging]\nlevel = "WARNING"\n', encoding="utf-8")
    run_alone(tmp_path, PREFECT_API_KEY="key")


@pytest.mark.parametrize("number", ["02", "08"])
def test_a_stage_passes_beside_a_copy_of_its_lesson(tmp_path: Path, number: str) -> None:
    shutil.copy(script(number), tmp_path)
    shutil.copy(ROOT / "tests" / f"test_{script(number).name}", tmp_path)
    run_alone(tmp_path)


def test_the_stage_of_lesson_12_passes_beside_a_copy_of_09_and_12(tmp_path: Path) -> None:
    test = f"test_{script('12').name}"
    for path in (script("09"), script("12"), ROOT / "tests" / "programs.py", ROOT / "tests" / test):
        shutil.copy(path, tmp_path)
    run_alone(tmp_path, "pytest_httpserver")
