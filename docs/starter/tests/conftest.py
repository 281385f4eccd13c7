"""What the tests share: a Prefect server for flows, and a service that answers in parallel."""

import os
from collections.abc import Iterator

import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness
from pytest_httpserver import HTTPServer

os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Run flows on a server with a database that is thrown away. A test of a flow asks for it."""
    # Without its heartbeat a flow run takes a second less.
    with prefect_test_harness(120), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@pytest.fixture(scope="session")
def make_httpserver() -> Iterator[HTTPServer]:
    """Let the fixture `httpserver` answer several requests at the same time."""
    with HTTPServer(threaded=True) as server:
        yield server
