"""Measure the times and losses in docs/growing/costs.md; write them there, and to costs.json.

Run:    python docs/checks/benchmark.py                         (all tables, about ten minutes)
        python docs/checks/benchmark.py --only trigger loss     (some of the tables)
It starts the servers that it needs, on free ports, and stops them again.
"""

import argparse
import importlib
import json
import logging
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from itertools import product
from pathlib import Path
from timeit import timeit

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("docs/checks/scale", "docs/checks", "tests", "")]

import psutil  # noqa: E402
import requests  # noqa: E402
from clone import Clone, block, make_clone, postgres  # noqa: E402
from machinery import NAME, Server, changed_copy, script, server, serving  # noqa: E402
from pages import compare_table  # noqa: E402

lesson_12 = importlib.import_module(script("12").stem)

COSTS = ROOT / "docs" / "growing" / "costs.json"  # what was measured: costs.md is compared with it
TRIGGERS, THREADS = 200, 8
HEADS = {
    "machine": ["", "measured on"],
    "start": ["`python 01_basic_example_with_flows.py` with", "takes", "ratio"],
    "trigger": ["one trigger by", "takes", "ratio to lesson 12"],
    "loss": [
        "database, and client",
        f"lost of {TRIGGERS}, from {THREADS} threads",
        "one trigger took",
    ],
}

Rows = list[list[str]]  # of a table


def spread(values: Sequence[float], unit: str = " s", digits: int = 1) -> str:
    """Return the median of the values, and the smallest and largest in parentheses."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def measure(ways: dict[str, Callable[[], object]], times: int, digits: int) -> Rows:
    """Measure the seconds of each way, in turn, and their ratio to those of the first way."""
    turns = [[timeit(way, number=1) for way in ways.values()] for _ in range(times)]
    columns = [*zip(*turns, strict=True)]
    ratios = [statistics.median(it) / statistics.median(columns[0]) for it in columns]
    return [
        [label, spread(seconds, digits=digits), f"{ratio:.2f}"]
        for label, seconds, ratio in zip(ways, columns, ratios, strict=True)
    ]


def machine(*unused: object) -> Rows:
    """Describe the machine and the versions."""
    cores = f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    packages = [f"{name} {version(name)}" for name in ("prefect", "fastapi", "requests")]
    return [["machine", cores], ["system", system], ["packages", ", ".join(packages)]]


def start(clone: Clone, _: Server) -> Rows:
    """Measure a whole lesson with and without a running server."""
    command = f"python {script('01').name}"
    alone = Clone(clone.folder, {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"})
    with_server, without = (lambda: clone.run(command)), (lambda: alone.run(command))
    return measure({"a running server": with_server, "no server": without}, 5, digits=1)


def trigger(clone: Clone, at: Server) -> Rows:
    """Measure one trigger by lesson 12, by the command line and by Prefect's function."""
    at.deploy()
    code = f"from prefect.deployments import run_deployment; run_deployment('{NAME}', timeout=0)"
    (clone.folder / "run_it.py").write_text(code, encoding="utf-8")
    ours, prefects = f"python {script('12').name} {NAME}", f"prefect deployment run {NAME}"
    ways: dict[str, Callable[[], object]] = {
        f"`{ours}`": lambda: clone.run(ours),
        f"`{prefects}`": lambda: clone.run(prefects),
        "a program with `run_deployment(...)`": lambda: clone.run("python run_it.py"),
        "`trigger(...)` of lesson 12, in a running program": lambda: lesson_12.trigger(
            NAME, api_url=at.api_url
        ),
    }
    return measure(ways, 9, digits=3)


def loss(*unused: object) -> Rows:
    """Count what gets lost of many triggers from several threads, on both databases."""
    if not shutil.which("pg_virtualenv"):
        sys.exit("error: there is no PostgreSQL. On Debian: apt install postgresql")
    rows: Rows = []
    for database, client in product(
        ["SQLite", "PostgreSQL"], ["plain `requests.post`", "lesson 12"]
    ):
        lost, seconds = list[float](), list[float]()
        for _ in range(3):
            with served_on(database) as at:
                lost.append(count_lost(at, client, seconds))
        rows.append([f"{database}, {client}", spread(lost, "", 0), spread(seconds, digits=2)])
    return rows


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
def served_on(database: str) -> Iterator[Server]:
    """Serve lesson 09 during the block, on a server with an empty database."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        settings = {}
        if database == "PostgreSQL":
            port = stack.enter_context(postgres())
            commands = block("prefect server start", (":5432/", f":{port}/"))
            settings = dict(re.findall(r'export (\w+_CONNECTION_URL)="(.+)"', commands))
        running = stack.enter_context(server(**settings))
        lesson = changed_copy(script("09"), Path(folder), ("limit=5", "limit=1"))
        stack.enter_context(serving(running.api_url, lesson, Path(folder, "log")))
        yield running


def main() -> None:
    """Measure the tables that are asked for, print their rows, and write them to the page."""
    parser = argparse.ArgumentParser(description="Measure the tables of docs/growing/costs.md.")
    parser.add_argument("--only", nargs="+", choices=HEADS, default=[*HEADS], metavar="TABLE")
    names = parser.parse_args().only
    measures: dict[str, Callable[[Clone, Server], Rows]]
    measures = {"machine": machine, "start": start, "trigger": trigger, "loss": loss}
    logging.disable(logging.WARNING)  # lesson 12 warns of each retry
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, server() as running:
        clone = make_clone(Path(folder), 1, PREFECT_API_URL=running.api_url)
        for name in names:
            rows = measures[name](clone, running)
            for row in rows:
                print(f"{name}: {', '.join(row)}", flush=True)
            costs = json.loads(COSTS.read_text(encoding="utf-8"))
            costs[name] = [HEADS[name], *rows]
            COSTS.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8", newline="\n")
            compare_table(name, HEADS[name], rows, write=True)


if __name__ == "__main__":
    main()
