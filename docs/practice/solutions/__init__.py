"""The solutions; mypy needs this file to tell them from the exercises."""
