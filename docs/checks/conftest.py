"""The checks run flows on Prefect's test harness, as the stages do: see tests/conftest.py."""

from tests.conftest import harness, record

__all__ = ["harness", "record"]
