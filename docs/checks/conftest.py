"""What all checks use: the fixture `harness` of tests/conftest.py, a server, and `compare`.

With `--write changed` tables and transcripts are written instead of compared; with `--write all`
also the pictures, and transcripts that only differ in names and times.
"""

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from clone import Clone, make_clone
from machinery import Server, server
from pages import Compare, compare_table
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.conftest import harness

__all__ = ["harness"]

# A shell's `&` has its programs, and those that they start, ignore SIGINT, and `nohup` SIGHUP. Here
# they receive both: a terminal that a server still uses would not end otherwise.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes what the pages show."""
    parser.addoption("--write", choices=["changed", "all"], help="write what the pages show")


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """Run a server that never calls a run Late, and so changes no state that a check has set."""
    with server(PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED="false") as running:
        yield running


@pytest.fixture
def at(own_server: Server) -> Iterator[Server]:
    """Use that server in this process, too."""
    with temporary_settings({PREFECT_API_URL: own_server.api_url}):
        yield own_server


@pytest.fixture
def clone(harness: None, tmp_path: Path) -> Clone:
    """Return a clone with short seconds, on the harness's server."""
    return make_clone(tmp_path, PREFECT_API_URL=str(PREFECT_API_URL.value()))


@pytest.fixture
def compare(pytestconfig: pytest.Config) -> Compare:
    """Return a function that compares the table NAME of a page with its head and rows, by name."""
    return partial(compare_table, write=bool(pytestconfig.getoption("write")))
