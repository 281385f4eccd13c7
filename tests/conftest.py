"""One Prefect server for the whole session, and nothing of the caller's Prefect or proxies."""

import functools
import logging
import os
import runpy
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import certifi
import pytest
from _pytest import runner
from beside import Crew, Keep, at_work, early, own_fixtures, sort_by_waiting, start_cases
from forked import start_early
from support import (
    GIVE_UP,
    OTHER_RESULTS,
    QUICK_SERVER,
    Api,
    FlowRun,
    Served,
    calm,
    changed_copy,
    clean_environment,
    copy_database,
    free_port,
    load_afresh,
    load_lesson,
    read,
    replace_environment,
    script_path,
    seconds_scaled,
    served_flow,
    server,
    wait_until,
)
from transcripts import TRANSCRIPTS, Transcript, record_served, wanted_transcripts

END = "-----END CERTIFICATE-----"

# Before the first import of Prefect, which reads its settings only once.
_home = tempfile.TemporaryDirectory(prefix="prefect-home-", ignore_cleanup_errors=True)
# Nothing here speaks TLS, but every client reads all certificates, which takes 0.02 s each time.
_certificates = Path(_home.name) / "one.pem"
_certificates.write_text(certifi.contents().partition(END)[0] + END + "\n")
_environment = clean_environment(
    PREFECT_HOME=_home.name,
    PREFECT_LOGGING_TO_API_BATCH_INTERVAL="0.1",
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW="ignore",
    # For requests in this process, which would look through os.environ while pytest changes it.
    NO_PROXY="127.0.0.1,localhost",
    SSL_CERT_FILE=str(_certificates),
    **QUICK_SERVER,
)
replace_environment(_environment)
# Only for the flows in this process: a script is told by the test which server it is to use.
PORT = free_port()
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{PORT}/api"

# pytest sets and removes a variable for each test, while flows in other threads read them all.
runner._update_current_test_var = lambda item, when: None

# A script may start pytest with Ctrl-C ignored, and so would the lessons be, which end by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

start_early()

# Lesson 12 tries again on purpose; Prefect would show every attempt.
logging.getLogger("urllib3").setLevel(logging.ERROR)

import prefect  # noqa: E402
from prefect import Flow, Task, task  # noqa: E402
from prefect.events.worker import EventsWorker  # noqa: E402
from prefect.logging.handlers import APILogWorker  # noqa: E402
from prefect.settings import (  # noqa: E402
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)


@pytest.fixture(scope="session")
def tables(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a SQLite database with Prefect's tables is kept, once there is one.

    To make the tables takes most of a server's start, so it stays in pytest's cache.
    """
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)
    folder = cache.mkdir("prefect") if cache else tmp_path_factory.mktemp("prefect")
    return folder / f"{prefect.__version__}.db"


@pytest.fixture(scope="session")
def api(tables: Path) -> Iterator[Api]:
    """Return the API of the session's server, on which the flows of all tests run."""
    known = tables.exists()
    making = {**QUICK_SERVER, "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "true"}
    settings = {} if known else making
    # At its end a flow run joins its heartbeat thread, which costs up to a second.
    no_heartbeat = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    started = server(tables if known else None, port=PORT, calmly=True, **settings)
    with started as running, no_heartbeat:
        if not known:
            copy_database(calm(running.home) / "prefect.db", tables)
        yield Api(running.api_url)
        EventsWorker.drain_all()
        APILogWorker.instance().drain()


@pytest.fixture(scope="session")
def empty_database(request: pytest.FixtureRequest, tables: Path) -> Path:
    """Return a SQLite database with Prefect's tables, to start servers on copies of it."""
    if not tables.exists():
        request.getfixturevalue("api")  # its server makes them
    return tables


@pytest.fixture(scope="module")
def path(request: pytest.FixtureRequest) -> Path:
    """Return the path of the lesson that this test file is about."""
    return script_path(request.module.__name__.split("_")[1])


@pytest.fixture(scope="module")
def as_written(path: Path) -> ModuleType:
    """Return the lesson as it stands in the repository."""
    return load_lesson(path)


@pytest.fixture(scope="session")
def load_scaled() -> Callable[[Path, float], ModuleType]:
    """Return a function that loads a lesson afresh, with its seconds so many times as long."""

    def load_scaled(path: Path, factor: float) -> ModuleType:
        module = load_afresh(path)
        for name, value in vars(module).items():
            if name.endswith("_SECONDS"):
                setattr(module, name, value * factor)
            if isinstance(value, Task) and isinstance(value.retry_delay_seconds, int | float):
                value.retry_delay_seconds *= factor
        return module

    return load_scaled


@pytest.fixture(scope="module")
def lesson(
    request: pytest.FixtureRequest, path: Path, load_scaled: Callable[[Path, float], ModuleType]
) -> ModuleType:
    """Return the lesson with all its seconds made SCALE (of the test file) times as long."""
    return load_scaled(path, request.module.SCALE)


@pytest.fixture
def slept(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds of the work that the lesson simulates in this test, which take no time."""
    seconds: list[float] = []
    clock = SimpleNamespace(sleep=seconds.append, perf_counter=time.perf_counter)
    monkeypatch.setattr(lesson, "time", clock)
    return seconds


@pytest.fixture
def submitted(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the lesson's tasks that are submitted in this test, and not called."""
    names: list[str] = []

    def noting(step: Task[..., Any]) -> Callable[..., Any]:
        submit = step.submit

        def noted(*arguments: Any, **keywords: Any) -> Any:
            names.append(step.name)
            return submit(*arguments, **keywords)

        return noted

    for step in vars(lesson).values():
        if isinstance(step, Task):
            monkeypatch.setattr(step, "submit", noting(step))
    return names


@pytest.fixture
def other_results(lesson: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Have the lesson's lookups return OTHER_RESULTS in this test; return what each is given."""
    received: dict[str, Any] = {}

    def replace(step: Task[..., Any]) -> None:
        @functools.wraps(step.fn)
        def other(argument: Any) -> Any:
            received[step.name] = argument
            return OTHER_RESULTS[step.name]

        monkeypatch.setattr(step, "fn", other)

    for name in OTHER_RESULTS:
        if step := vars(lesson).get(name):
            assert isinstance(step, Task), f"{name} is a plain function: is its @task missing?"
            replace(step)
    return received


@task
def marker() -> None:
    """Mark a point in the stream of events that the server works through."""


@pytest.fixture(scope="session")
def record(api: Api) -> Callable[..., FlowRun]:
    """Return a function that runs a flow and returns what the server recorded of it."""

    def record(flow: Flow[..., Any], *arguments: Any, **keywords: Any) -> FlowRun:
        assert isinstance(flow, Flow), f"{flow} is a plain function: is its @flow missing?"
        state: Any = flow(*arguments, **keywords, return_state=True)
        flow_run_id = str(state.state_details.flow_run_id)
        marked: Any = marker(return_state=True)
        mark = str(marked.state_details.task_run_id)
        # The server gets task runs and logs later than states, but each of them in order.
        wait_until(
            "the server recorded the task runs",
            lambda: api.post("/task_runs/filter", {"task_runs": {"id": {"any_": [mark]}}}),
        )
        flow_run = api.flow_run(flow_run_id)
        wait_until("the server recorded the logs", flow_run.has_logged_its_end)
        flow_run.value = state.result(raise_on_failure=False)
        return flow_run

    return record


@early
def recorded_served(
    api: Api, items: list[pytest.Item], empty_folder: Path
) -> dict[Transcript, str]:
    """Return what the commands of lessons 09 to 12 print, if a test looks at one of them."""
    if not any(transcript.is_of_served_flow for transcript in wanted_transcripts(items)):
        return {}
    return record_served(TRANSCRIPTS, api, empty_folder)


@early
def served(
    api: Api,
    empty_folder: Path,
    keep: Keep,
    recorded_served: dict[Transcript, str],  # before this, because both serve the same name
) -> Served:
    """Return lesson 09, in a process of its own, serving its flow on the session's server."""
    script = script_path("09")
    copy = changed_copy(script, empty_folder, *seconds_scaled(script, 0.1))
    return keep(served_flow(api, copy, empty_folder))


@pytest.fixture(scope="session")
def crew(request: pytest.FixtureRequest) -> Iterator[Crew]:
    """Return those who do what is done beside the tests."""
    assert "PYTEST_CURRENT_TEST" not in os.environ, "pytest changes what other threads read"
    with at_work(request) as crew:
        yield crew
        GIVE_UP.set()


@pytest.fixture(scope="session")
def under_way(crew: Crew) -> dict[str, Future[Any]]:
    """Return what is done beside the tests, under way, by name."""
    return crew.under_way


@pytest.fixture
def undisturbed(under_way: dict[str, Future[Any]]) -> None:
    """Wait for all the work beside the tests: how long a server is locked depends on it."""
    wait(under_way.values())


@pytest.fixture(autouse=True)
def no_longer_needed(request: pytest.FixtureRequest, crew: Crew) -> Iterator[None]:
    """Tell the crew what is not needed any more when the test is over."""
    yield
    crew.finish(request.node)


@pytest.fixture
def printed(
    request: pytest.FixtureRequest,
    api: Api,
    path: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> str:
    """Return what the lesson's `__main__` prints to stdout, its seconds made SCALE as long."""
    copy = changed_copy(path, tmp_path, *seconds_scaled(path, request.module.SCALE))
    capfd.readouterr()
    runpy.run_path(str(copy), run_name="__main__")
    return capfd.readouterr().out


@pytest.fixture(scope="module")
def hurried(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the lesson that waits a twenty-fifth of its time, but for an answer."""
    changes = seconds_scaled(path, 0.04)
    changes = [change for change in changes if not change[0].startswith("TIMEOUT")]
    return changed_copy(path, tmp_path_factory.mktemp("hurried"), *changes)


@pytest.fixture(scope="module")
def impatient(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy that also waits for an answer for a short time only: where none comes."""
    return changed_copy(path, tmp_path_factory.mktemp("impatient"), *seconds_scaled(path, 0.04))


# The tests of a module that wait for programs to end, under way.
_cases: dict[pytest.Item, Future[Any]] = {}
_threads = ThreadPoolExecutor(5)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let no test wait for long work while others could run."""
    sort_by_waiting(items)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the tests that are marked so side by side: at the first one, start all like it."""
    module_wide = {"path", "hurried", "impatient", "as_written"}
    if not pyfuncitem.get_closest_marker("together") or own_fixtures(pyfuncitem) - module_wide:
        return None
    if pyfuncitem not in _cases:
        _cases.update(start_cases(pyfuncitem, _threads))
    _cases[pyfuncitem].result()
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Add where to read to the report of every failed test of a lesson."""
    report = yield
    number = item.path.name.split("_")[1] if item.path.name.count("_") > 1 else ""
    if report.failed and number.isdigit():
        report.sections.append(("Read", read(number)))
    return report
