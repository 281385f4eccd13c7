"""Measure the times and losses in docs/growing/costs.md, and write them there.

Run:    python docs/checks/benchmark.py                         (all tables, about ten minutes)
        python docs/checks/benchmark.py --only trigger loss     (some of the tables)
It starts the servers that it needs, on free ports, and stops them again.
"""

import argparse
import importlib
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

TRIGGERS, THREADS = 200, 8

Rows = dict[str, tuple[str, ...]]  # of a table: the cells right of the first, by the row's key


def spread(values: Sequence[float], unit: str = " s", digits: int = 1) -> str:
    """Return the median of the values, and the smallest and largest in parentheses."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def measure(ways: dict[str, Callable[[], object]], times: int, digits: int) -> Rows:
    """Measure the seconds of each way, in turn, and their ratio to those of the first way."""
    turns = [[timeit(way, number=1) for way in ways.values()] for _ in range(times)]
    columns = dict(zip(ways, zip(*turns, strict=True), strict=True))
    medians = {it: statistics.median(seconds) for it, seconds in columns.items()}
    first, *_ = medians.values()
    return {
        it: (spread(seconds, digits=digits), f"{medians[it] / first:.2f}")
        for it, seconds in columns.items()
    }


def machine(*unused: object) -> Rows:
    """Describe the machine and the versions."""
    cores = f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    packages = [f"{name} {version(name)}" for name in ("prefect", "fastapi", "requests")]
    return {"machine": (cores,), "system": (system,), "packages": (", ".join(packages),)}


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
        ours: lambda: clone.run(ours),
        prefects: lambda: clone.run(prefects),
        "run_deployment(...)": lambda: clone.run("python run_it.py"),
        "trigger(...)": lambda: lesson_12.trigger(NAME, api_url=at.api_url),
    }
    return measure(ways, 9, digits=3)


def loss(*unused: object) -> Rows:
    """Count what gets lost of many triggers from several threads, on both databases."""
    rows: Rows = {}
    for database in ("SQLite", "PostgreSQL"):
        if database == "PostgreSQL" and not shutil.which("pg_virtualenv"):
            sys.exit("error: there is no PostgreSQL. On Debian: apt install postgresql")
        for client in ("requests.post", "lesson 12"):
            lost, seconds = [], list[float]()
            for _ in range(3):
                with served_on(database) as at:
                    lost.append(count_lost(at, client, seconds))
            rows[f"{database} {client}"] = (spread(lost, "", 0), spread(seconds, digits=2))
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


TABLES: dict[str, Callable[[Clone, Server], Rows]]
TABLES = {it.__name__: it for it in (machine, start, trigger, loss)}


def main() -> None:
    """Measure the tables that are asked for, print their rows, and write them to the page."""
    parser = argparse.ArgumentParser(description="Measure the tables of docs/growing/costs.md.")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=[*TABLES], metavar="TABLE")
    tables = parser.parse_args().only
    logging.disable(logging.WARNING)  # lesson 12 warns of each retry
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, server() as running:
        clone = make_clone(Path(folder), 1, PREFECT_API_URL=running.api_url)
        for name in tables:
            rows = TABLES[name](clone, running)
            for key, cells in rows.items():
                print(f"{name}: {key}: {', '.join(cells)}", flush=True)
            compare_table(name, rows, whole=True, write=True)


if __name__ == "__main__":
    main()
