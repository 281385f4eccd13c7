"""One Prefect server for the whole session, and nothing of the caller's Prefect or proxies."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from support import clean_environment

# Before the first import of Prefect, which reads its settings only once.
_home = tempfile.TemporaryDirectory(prefix="prefect-home-", ignore_cleanup_errors=True)
_environment = clean_environment(PREFECT_HOME=_home.name)
os.environ.clear()
os.environ.update(_environment)

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness
from support import ROOT, Api, load_lesson


@pytest.fixture(scope="session")
def api() -> Iterator[Api]:
    """Return the API of the session's server, on which every flow of the tests runs."""
    with prefect_test_harness(server_startup_timeout=60):
        # A flow run's end joins its heartbeat thread, which costs up to a second.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield Api(str(PREFECT_API_URL.value()))
