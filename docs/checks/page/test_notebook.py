"""What Prefect does in a notebook: docs/troubleshooting.md's table, run in Jupyter's own kernel."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from pages import table_keys
from prefect.settings import PREFECT_API_URL

FIRST = """
import asyncio
from prefect import flow, task

@flow
def hello():
    return "Hello"

@flow
async def hello_async():
    return "Hello"

@task
def double(number):
    return 2 * number

@flow
def doubled():
    return double.map([1, 2]).result()
"""


def outcome(cell: nbformat.NotebookNode) -> tuple[str, str]:
    """Return the result of a cell, or the error that ended it; and what it announced."""
    errors = [f"{it.ename}: {it.evalue}" for it in cell.outputs if it.output_type == "error"]
    results = [it.data["text/plain"] for it in cell.outputs if it.output_type == "execute_result"]
    shown = [it.data["text/plain"] for it in cell.outputs if it.output_type == "display_data"]
    text = re.sub(r"\x1b\[[\d;]*m", "", "".join(shown))  # without colours
    announced = re.findall(r"(?m)^Your flow '.*?' is being served", text)
    return f"`{(errors + results)[0].splitlines()[0]}`", "".join(announced)


@pytest.mark.timeout(300)
def test_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: Callable[..., None]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    keys = table_keys("notebook")
    v4: Any = nbformat.v4
    book = v4.new_notebook(cells=[v4.new_code_cell(it) for it in [FIRST, *keys]])
    NotebookClient(
        book,
        timeout=200,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    compare(
        "notebook", {key: outcome(cell) for key, cell in zip(keys, book.cells[1:], strict=True)}
    )
