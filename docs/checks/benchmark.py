"""Measure what docs/growing/costs.md shows on this machine; write it there, and to costs.json.

pytest docs/checks/benchmark.py               all tables, in about ten minutes
pytest docs/checks/benchmark.py -k trigger    one of them
"""

import importlib
import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from itertools import product
from pathlib import Path
from timeit import timeit

import psutil
import pytest
import requests
from clone import GROWING, Clone, block, make_clone, needs_postgres, postgres
from machinery import NAME, Server, changed_copy, script, server, serving
from pages import Row, compare_table

pytestmark = pytest.mark.timeout(1800)

COSTS = GROWING / "costs.json"
TRIGGERS, THREADS = 200, 8
lesson_12 = importlib.import_module(script("12").stem)


@pytest.fixture
def clone(tmp_path: Path, own_server: Server) -> Clone:
    """Return a clone of the lessons that uses a server."""
    return make_clone(tmp_path, 1, PREFECT_API_URL=own_server.api_url)


def write(name: str, head: Row, rows: Sequence[Row]) -> None:
    """Write the table NAME to the page and to costs.json, with which a check compares the page."""
    costs = json.loads(COSTS.read_text(encoding="utf-8"))
    costs[name] = [head, *rows]
    COSTS.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8", newline="\n")
    compare_table(name, head, rows, write=True)


def spread(values: Sequence[float], unit: str = " s", digits: int = 1) -> str:
    """Return the median of the values, and the smallest and largest in parentheses."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def measure(ways: Mapping[str, Callable[[], object]], times: int, digits: int) -> list[Row]:
    """Measure the seconds of each way, in turn, and their ratio to those of the first way."""
    turns = [[timeit(way, number=1) for way in ways.values()] for _ in range(times)]
    columns = [*zip(*turns, strict=True)]
    ratios = [statistics.median(it) / statistics.median(columns[0]) for it in columns]
    return [
        (label, spread(seconds, digits=digits), f"{ratio:.2f}")
        for label, seconds, ratio in zip(ways, columns, ratios, strict=True)
    ]


def test_machine() -> None:
    """Describe the machine and the versions."""
    cores = f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    packages = [f"{name} {version(name)}" for name in ("prefect", "fastapi", "requests")]
    rows = [("machine", cores), ("system", system), ("packages", ", ".join(packages))]
    rows.append(("each cell below", "median (smallest to largest)"))
    write("machine", ["", "how it was measured"], rows)


def test_start(clone: Clone) -> None:
    """Measure a whole lesson with and without a running server."""
    command = f"python {script('01').name}"
    alone = Clone(clone.folder, {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"})
    ways = {
        "a running server": lambda: clone.run(command),
        "no server, so it starts a temporary one": lambda: alone.run(command),
    }
    write("start", [f"`{command}` with", "every start takes", "ratio"], measure(ways, 5, digits=1))


def test_trigger(clone: Clone, own_server: Server) -> None:
    """Measure one trigger by lesson 12, by the command line and by Prefect's function."""
    own_server.deploy()
    code = f"from prefect.deployments import run_deployment; run_deployment('{NAME}', timeout=0)"
    (clone.folder / "run_it.py").write_text(code, encoding="utf-8")
    ours, prefects = f"python {script('12').name} {NAME}", f"prefect deployment run {NAME}"

    def trigger() -> object:
        return lesson_12.trigger(NAME, api_url=own_server.api_url)

    ways = {
        f"`{ours}`": lambda: clone.run(ours),
        f"`{prefects}`": lambda: clone.run(prefects),
        "a program with `run_deployment(...)`": lambda: clone.run("python run_it.py"),
        "`trigger(...)` of lesson 12, in a running program: only the request": trigger,
    }
    write("trigger", ["one trigger by", "takes", "ratio to lesson 12"], measure(ways, 9, digits=3))


@needs_postgres
def test_loss(tmp_path: Path) -> None:
    """Count what gets lost of many triggers from several threads, on both databases."""
    rows = []
    for database, client in product(
        ["SQLite", "PostgreSQL"], ["plain `requests.post`", "lesson 12"]
    ):
        lost, seconds = list[int](), list[float]()
        for _ in range(3):
            with served_on(database, tmp_path) as at:
                lost.append(count_lost(at, client, seconds))
        rows.append((f"{database}, {client}", spread(lost, "", 0), spread(seconds, digits=2)))
    losses = f"lost of {TRIGGERS}, from {THREADS} threads"
    write("loss", ["database, and client", losses, "one trigger took"], rows)


def count_lost(at: Server, client: str, seconds: list[float]) -> int:
    """Trigger from several threads; add the seconds of each; return how many got lost."""
    url = f"{at.api_url}/deployments/{at.deployment()['id']}/create_flow_run"
    ids = set[str]()

    def send() -> None:
        with suppress(OSError, ValueError, KeyError):
            if client == "lesson 12":
                ids.add(lesson_12.trigger(NAME, api_url=at.api_url)["id"])
            else:
                ids.add(requests.post(url, json={}, timeout=60).json()["id"])

    with ThreadPoolExecutor(THREADS) as threads:
        seconds += threads.map(lambda _: timeit(send, number=1), range(TRIGGERS))
    return TRIGGERS - len(ids)


@contextmanager
def served_on(database: str, folder: Path) -> Iterator[Server]:
    """Serve lesson 09 during the block, on a server with an empty database."""
    with ExitStack() as stack:
        settings = {}
        if database == "PostgreSQL":
            port = stack.enter_context(postgres())
            commands = block("prefect server start", (":5432/", f":{port}/"))
            settings = dict(re.findall(r'export (\w+_CONNECTION_URL)="(.+)"', commands))
        running = stack.enter_context(server(**settings))
        lesson = changed_copy(script("09"), folder, ("limit=5", "limit=1"))
        stack.enter_context(serving(running, lesson, running.home / "09.log"))
        yield running
