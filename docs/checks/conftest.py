"""The checks run flows on Prefect's test harness, as the stages do: see tests/conftest.py."""

import signal

import pytest

from tests.conftest import harness, record

__all__ = ["harness", "record"]


@pytest.fixture(scope="session", autouse=True)
def always_on_the_harness(harness: None) -> None:
    """Start the harness, also for a check that asks for no fixture."""


# A shell's `&` has its programs ignore SIGINT, and those that they start: here they hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)
