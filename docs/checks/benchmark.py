"""Measure what docs/growing/costs.md says of time and loss, and print it as tables.

Run:    python docs/checks/benchmark.py            (all tables, about twenty minutes)
        python docs/checks/benchmark.py --write    (and put them into costs.md)
        python docs/checks/benchmark.py --quick --only trigger loss
It starts the servers, workers and clusters that it needs, on free ports, and stops them again.
"""

import argparse
import importlib
import itertools
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("docs/checks/scale", "docs/checks", "tests", "")]

import psutil  # noqa: E402
import requests  # noqa: E402
from clone import Clone, block, find_postgres, make_clone, postgres, recorded  # noqa: E402
from machinery import NAME, changed_copy, script, server, serving  # noqa: E402
from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402
from recorded import FlowRun, read_ended  # noqa: E402

lesson_12 = importlib.import_module("12_trigger_deployment_by_id_name_lookup")

PAGE = ROOT / "docs" / "growing" / "costs.md"
DATABASE = "PostgreSQL" if find_postgres() else "SQLite"  # where a server has work to do

# Seconds of the longest chain of steps; in 08 the balance is asked for twice, 5 s apart.
CRITICAL_PATHS = {"03": 1 + 2 + 3, "04": 3, "05": 1 + 3 + 1, "08": 1 + (2 + 5 + 2) + 1 + 1}


def spread(values: Sequence[float], unit: str = " s", digits: int = 1) -> str:
    """Return the median of the values, and the smallest and largest in parentheses."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def ratio(values: Sequence[float], to: Sequence[float], digits: int = 2) -> str:
    """Return the ratio of the medians."""
    return f"{statistics.median(values) / statistics.median(to):.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


@dataclass
class Place:
    """A clone with full seconds on a server, and whether to measure less."""

    clone: Clone
    api_url: str
    quick: bool

    def times(self, full: int, quick: int = 1) -> range:
        """Return the range of how many times to measure."""
        return range(quick if self.quick else full)

    def timed(self, command: str) -> tuple[float, str]:
        """Run the command; return its seconds and its output."""
        started = time.perf_counter()
        stdout, stderr = self.clone.run(command)
        return time.perf_counter() - started, stderr + stdout


def seconds_of(run: FlowRun, since: str = "start_time") -> float:
    """Return the seconds of the flow run until its end, since its start, or since "created"."""
    assert run.state == "Completed", f"flow run {run.record.id} is {run.state}"
    return float((run.record.end_time - getattr(run.record, since)).total_seconds())


def trigger_to_end(flow_run_ids: Sequence[str]) -> list[float]:
    """Wait for the runs; return the seconds of each from its trigger to its end."""
    return [seconds_of(read_ended(UUID(each), 600), "created") for each in flow_run_ids]


# --- the tables ------------------------------------------------------------------------------


def machine(_: Place) -> str:
    """Describe the machine and the versions."""
    found = Path("/proc/cpuinfo")  # on Linux
    cpu = re.findall(r"model name\s*:\s*(.+)", found.read_text("utf-8") if found.exists() else "")
    memory = psutil.virtual_memory().total / 2**30
    packages = ("prefect", "prefect-dask", "distributed", "fastapi", "requests")
    program = [f"{find_postgres()}/postgres", "--version"]
    here = f"{os.cpu_count()} cores, {memory:.0f} GiB, {(cpu or [platform.machine()])[0]}"
    rows = [
        ["machine", here],
        ["system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"],
        ["packages", ", ".join(f"{name} {version(name)}" for name in packages)],
        ["database", subprocess.getoutput(" ".join(program)) if find_postgres() else DATABASE],
        ["command", f"`{' '.join(['python docs/checks/benchmark.py', *sys.argv[1:]])}`"],
    ]
    return table(["", "measured on"], rows)


def lessons(place: Place) -> str:
    """Measure the lessons' steps, and their flow runs as a whole, over their critical paths."""
    rows = []
    for number, path in CRITICAL_PATHS.items():
        row, steps, whole = [script(number).name, f"{path} s"], [], []
        for _ in place.times(5):
            run = recorded(place.timed(f"python {row[0]}")[1])
            end = max(task_run.end for task_run in run.task_runs)
            steps.append((end - run.task_runs[0].start).total_seconds())
            whole.append(seconds_of(run))
        for seconds in (steps, whole):
            row += [spread(seconds, digits=2), ratio(seconds, [path], 3)]
        rows.append(row)
    head = ["script", "critical path", "its steps took", "ratio", "the flow run took", "ratio"]
    return table(head, rows)


def start(place: Place) -> str:
    """Measure a whole script with and without a running server."""
    command = f"python {script('01').name}"
    patient = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
    alone = Place(Clone(place.clone.folder, patient), "", place.quick)
    took = [(place.timed(command)[0], alone.timed(command)[0]) for _ in place.times(5, 2)]
    running, none = zip(*took, strict=True)
    rows = [["a running server", spread(running)], ["no server", spread(none)]]
    return table([f"`{command}` with", "takes"], [*rows, ["ratio", ratio(none, running, 1)]])


def trigger(place: Place) -> str:
    """Measure one trigger by lesson 12, by the command line and by Prefect's function."""
    place.clone.run(block("work-pool create"))
    code = f"from prefect.deployments import run_deployment; run_deployment('{NAME}', timeout=0)"
    (place.clone.folder / "run_it.py").write_text(code, encoding="utf-8")
    ours, prefects = f"python {script('12').name} {NAME}", f"prefect deployment run {NAME}"
    ways: dict[str, Callable[[], object]] = {
        f"`{ours}`": lambda: place.clone.run(ours),
        f"`{prefects}`": lambda: place.clone.run(prefects),
        "a script with `run_deployment(...)`": lambda: place.clone.run("python run_it.py"),
        "the function of 12, in a running program": use_lesson_12(place.api_url),
    }
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in place.times(9, 3):  # in turn, so that all meet the same load
        for way, ask in ways.items():
            started = time.perf_counter()
            ask()
            took[way].append(time.perf_counter() - started)
    first = next(iter(took.values()))
    rows = [[way, spread(values, digits=3), ratio(values, first)] for way, values in took.items()]
    return table(["one trigger by", "takes", "ratio to 12"], rows)


def polling(place: Place) -> str:
    """Measure trigger to Completed, for the default polling and for ours."""
    rows, lesson, log = [], place.clone.folder / script("09").name, place.clone.folder / "log"
    for seconds, label in ((10, "every 10 s, the default"), (1, "every second, as here")):
        with serving(place.api_url, lesson, log, PREFECT_RUNNER_POLL_FREQUENCY=str(seconds)):
            took = []
            for _ in place.times(5, 2):
                took += trigger_to_end([use_lesson_12(place.api_url)()])
        rows.append([label, spread(took)])
    return table(["looks for work", "trigger to Completed"], rows)


def post_plainly(api_url: str) -> Callable[[], str]:
    """Return a function that triggers by nothing but a POST, and returns the flow run's id."""
    deployment = requests.get(f"{api_url}/deployments/name/{NAME}", timeout=60).json()

    def send() -> str:
        url = f"{api_url}/deployments/{deployment['id']}/create_flow_run"
        response = requests.post(url, json={}, timeout=60)
        response.raise_for_status()
        return str(response.json()["id"])

    return send


def use_lesson_12(api_url: str) -> Callable[[], str]:
    """Return a function that triggers as lesson 12 does, and returns the flow run's id."""
    return lambda: lesson_12.trigger(NAME, api_url=api_url)["id"]


def loss(place: Place) -> str:
    """Count what gets lost of many triggers from eight threads, on both databases."""
    count, rows = 40 if place.quick else 200, []
    clients = {"plain `requests.post`": post_plainly, "lesson 12": use_lesson_12}
    for database, client in itertools.product(dict.fromkeys(["SQLite", DATABASE]), clients):
        lost, seconds = [], []
        for _ in place.times(3):
            took, ids = fire(database, clients[client], count)
            lost.append(count - ids)
            seconds += took
        rows.append([database, client, spread(lost, "", 0), spread(seconds, digits=2)])
    return table(["database", "client", f"lost of {count}", "one trigger took"], rows)


def fire(
    database: str, client: Callable[[str], Callable[[], str]], count: int
) -> tuple[list[float], int]:
    """Trigger a served flow on a fresh server; return the seconds of each, and how many arrived."""
    seconds: list[float] = []
    with server_on(database) as url, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lesson = changed_copy(script("09"), folder, ("LIMIT = 5", "LIMIT = 1"))

        def send(_: int) -> str | None:
            started = time.perf_counter()
            try:
                return trigger_once()
            except (OSError, ValueError, KeyError):
                return None
            finally:
                seconds.append(time.perf_counter() - started)

        with serving(url, lesson, folder / "log"), ThreadPoolExecutor(8) as threads:
            trigger_once = client(url)
            ids = set(threads.map(send, range(count)))
    return seconds, len(ids - {None})


@contextmanager
def server_on(database: str) -> Iterator[str]:
    """Run a server with a database of its own, "SQLite" or "PostgreSQL"; give its API's URL."""
    with ExitStack() as stack:
        settings = {}
        if database == "PostgreSQL":
            port = stack.enter_context(postgres())
            start = block("prefect server start", (":5432/", f":{port}/"))
            settings = dict(re.findall(r'export (\w+_CONNECTION_URL)="(.+)"', start))
        yield stack.enter_context(server(**settings)).api_url


def pool(place: Place) -> str:
    """Measure how many runs a minute one and two workers of a pool finish."""
    count, rates = 4 if place.quick else 12, dict[int, list[float]]()
    with server_on(DATABASE) as url, temporary_settings({PREFECT_API_URL: url}):
        clone = Clone(place.clone.folder, {"PREFECT_API_URL": url})
        clone.run(block("work-pool create"))
        for workers in (1, 2):
            with ExitStack() as stack:
                for number in range(1, workers + 1):
                    stack.enter_context(clone.terminal(block(f"worker-{number} "), "started!"))
                for _ in place.times(3):
                    started = time.perf_counter()
                    trigger_to_end([use_lesson_12(url)() for _ in range(count)])
                    rate = 60 * count / (time.perf_counter() - started)
                    rates.setdefault(workers, []).append(rate)
    rows = [
        [f"{workers} with `--limit 2`", spread(rate, "", 0), ratio(rate, rates[1])]
        for workers, rate in rates.items()
    ]
    return table(["workers", f"runs a minute, of {count}, on {DATABASE}", "ratio"], rows)


def cpu(place: Place) -> str:
    """Measure work that computes, with threads and with processes."""
    command, took = block("threads_or_processes.py").strip(), []
    for _ in place.times(3):
        took.append(
            [float(found) for found in re.findall(r"([\d.]+) s, \d", place.timed(command)[1])]
        )
    threads, processes = zip(*took, strict=True)
    rows = [
        ["threads", spread(threads), ratio(threads, threads)],
        ["two processes", spread(processes), ratio(processes, threads)],
    ]
    return table([f"`{command}`", "takes, start of the processes included", "ratio"], rows)


TABLES: list[Callable[[Place], str]] = [
    machine,
    lessons,
    start,
    trigger,
    polling,
    loss,
    pool,
    cpu,
]


def write(name: str, text: str) -> None:
    """Put the table between its markers on the page; fail if they are not there."""
    old = PAGE.read_text(encoding="utf-8")
    pattern = rf"(?s)(<!-- benchmark: {name} -->\n).*?(<!-- end -->)"
    new, count = re.subn(pattern, lambda match: f"{match[1]}\n{text}\n\n{match[2]}", old)
    if count != 1:
        sys.exit(f"{PAGE.name} has no place for the table {name!r}")
    PAGE.write_text(new, encoding="utf-8")


def main() -> None:
    """Measure the tables that are asked for, print them, and write them if asked to."""
    names = [measure.__name__ for measure in TABLES]
    parser = argparse.ArgumentParser(
        description=f"Measure the tables of {PAGE.name}: {', '.join(names)}."
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="TABLE", default=names)
    parser.add_argument("--quick", action="store_true", help="fewer runs and smaller sizes")
    parser.add_argument("--write", action="store_true", help=f"put them into {PAGE.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, server() as running:
        clone = make_clone(Path(folder), 1, PREFECT_API_URL=running.api_url)
        place = Place(clone, running.api_url, arguments.quick)
        with temporary_settings({PREFECT_API_URL: running.api_url}):
            for measure in TABLES:
                if measure.__name__ in arguments.only:
                    text = measure(place)
                    print(f"\n{measure.__name__}\n\n{text}", flush=True)
                    if arguments.write:
                        write(measure.__name__, text)


if __name__ == "__main__":
    main()
