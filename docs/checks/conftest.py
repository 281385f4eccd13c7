"""The checks run flows on Prefect's test harness, as the stages do: see tests/conftest.py."""

import signal

from tests.conftest import harness, record

__all__ = ["harness", "record"]

# A shell's `&` has its programs ignore SIGINT, and those that they start: here they hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)
