"""Measure the times and losses in docs/growing/costs.md, and print them as tables.

Run:    python docs/checks/benchmark.py            (all tables, about twenty minutes)
        python docs/checks/benchmark.py --write    (and write them to costs.md)
        python docs/checks/benchmark.py --quick --only trigger loss
It starts the servers, workers and clusters that it needs, on free ports, and stops them again.
"""

import argparse
import importlib
import os
import platform
import re
import shutil
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
from clone import Clone, block, make_clone, postgres, recorded  # noqa: E402
from machinery import NAME, changed_copy, script, server, serving  # noqa: E402
from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402
from recorded import FlowRun, read_ended  # noqa: E402

lesson_12 = importlib.import_module("12_trigger_deployment_by_id_name_lookup")

PAGE = ROOT / "docs" / "growing" / "costs.md"
DATABASE = "PostgreSQL" if shutil.which("pg_virtualenv") else "SQLite"  # for busy servers

# Seconds of the longest chain of tasks; in 08 the balance has two attempts, 5 s apart.
CRITICAL_PATHS = {"03": 1 + 2 + 3, "04": 3, "05": 1 + 3 + 1, "08": 1 + (2 + 5 + 2) + 1 + 1}

Rows = list[list[str]]  # of a table: the first one is its head


def spread(values: Sequence[float], unit: str = " s", digits: int = 1) -> str:
    """Return the median of the values, and the smallest and largest in parentheses."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def ratio(values: Sequence[float], to: Sequence[float], digits: int = 2) -> str:
    """Return the ratio of the medians."""
    return f"{statistics.median(values) / statistics.median(to):.{digits}f}"


def clock(action: Callable[[], object]) -> float:
    """Return the seconds that the action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@dataclass
class Place:
    """A clone with full seconds on a server, and whether to measure less."""

    clone: Clone
    api_url: str
    quick: bool

    def times(self, full: int, quick: int = 1) -> range:
        """Return the range of how many times to measure."""
        return range(quick if self.quick else full)


def seconds_of(run: FlowRun, since: str = "start_time") -> float:
    """Return the seconds of the flow run until its end, since its start, or since "created"."""
    assert run.state == "Completed", f"flow run {run.record.id} is {run.state}"
    return float((run.record.end_time - getattr(run.record, since)).total_seconds())


def trigger_to_end(api_url: str, count: int = 1) -> list[float]:
    """Trigger so many flow runs; return the seconds of each from its trigger to its end."""
    ids = [use_lesson_12(api_url)() for _ in range(count)]
    return [seconds_of(read_ended(UUID(each), 600), "created") for each in ids]


# --- the tables ------------------------------------------------------------------------------


def machine(_: Place) -> Rows:
    """Describe the machine and the versions."""
    found = Path("/proc/cpuinfo")  # on Linux
    cpu = re.findall(r"model name\s*:\s*(.+)", found.read_text("utf-8") if found.exists() else "")
    memory = psutil.virtual_memory().total / 2**30
    here = f"{os.cpu_count()} cores, {memory:.0f} GiB, {(cpu or [platform.machine()])[0]}"
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    packages = ("prefect", "prefect-dask", "distributed", "fastapi", "requests")
    database = subprocess.getoutput("psql --version") if DATABASE == "PostgreSQL" else DATABASE
    return [
        ["", "measured on"],
        ["machine", here],
        ["system", system],
        ["packages", ", ".join(f"{name} {version(name)}" for name in packages)],
        ["database", database],
        ["command", f"`{' '.join(['python docs/checks/benchmark.py', *sys.argv[1:]])}`"],
    ]


def lessons(place: Place) -> Rows:
    """Measure the lessons' tasks, and their flow runs as a whole, over their critical paths."""
    rows = [["lesson", "critical path", "its tasks took", "ratio", "the flow run took", "ratio"]]
    for number, path in CRITICAL_PATHS.items():
        name, tasks, whole = script(number).name, [], []
        for _ in place.times(5):
            run = recorded("".join(place.clone.run(f"python {name}")))
            end = max(task_run.end for task_run in run.task_runs)
            tasks.append((end - run.task_runs[0].start).total_seconds())
            whole.append(seconds_of(run))
        cells = [(spread(it, digits=2), ratio(it, [path], 3)) for it in (tasks, whole)]
        rows.append([name, f"{path} s", *cells[0], *cells[1]])
    return rows


def start(place: Place) -> Rows:
    """Measure a whole lesson with and without a running server."""
    command = f"python {script('01').name}"
    patient = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
    clones = (place.clone, Clone(place.clone.folder, patient))
    took = [[clock(lambda it=it: it.run(command)) for it in clones] for _ in place.times(5, 2)]  # type: ignore[misc]
    running, none = zip(*took, strict=True)
    rows = [["a running server", spread(running)], ["no server", spread(none)]]
    return [[f"`{command}` with", "takes"], *rows, ["ratio", ratio(none, running, 1)]]


def trigger(place: Place) -> Rows:
    """Measure one trigger by lesson 12, by the command line and by Prefect's function."""
    place.clone.run(block("work-pool create"))
    code = f"from prefect.deployments import run_deployment; run_deployment('{NAME}', timeout=0)"
    (place.clone.folder / "run_it.py").write_text(code, encoding="utf-8")
    ours, prefects = f"python {script('12').name} {NAME}", f"prefect deployment run {NAME}"
    ways: dict[str, Callable[[], object]] = {
        f"`{ours}`": lambda: place.clone.run(ours),
        f"`{prefects}`": lambda: place.clone.run(prefects),
        "a program with `run_deployment(...)`": lambda: place.clone.run("python run_it.py"),
        "`trigger(...)` of lesson 12, in a running program": use_lesson_12(place.api_url),
    }
    # In turn, so that all meet the same load.
    took = [[clock(ask) for ask in ways.values()] for _ in place.times(9, 3)]
    first, *_ = columns = [*zip(*took, strict=True)]
    rows = [[it, spread(s, digits=3), ratio(s, first)] for it, s in zip(ways, columns, strict=True)]
    return [["one trigger by", "takes", "ratio to lesson 12"], *rows]


def polling(place: Place) -> Rows:
    """Measure trigger to Completed, for the default polling and for ours."""
    rows, lesson, log = [], place.clone.folder / script("09").name, place.clone.folder / "log"
    for seconds, label in ((10, "every 10 s, the default"), (1, "every second, as here")):
        with serving(place.api_url, lesson, log, PREFECT_RUNNER_POLL_FREQUENCY=str(seconds)):
            took = [trigger_to_end(place.api_url)[0] for _ in place.times(5, 2)]
        rows.append([label, spread(took)])
    return [["polls", "trigger to Completed"], *rows]


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
    return lambda: str(lesson_12.trigger(NAME, api_url=api_url)["id"])


def loss(place: Place) -> Rows:
    """Count what gets lost of many triggers from eight threads, on both databases."""
    count = 40 if place.quick else 200
    rows = [["database", "client", f"lost of {count}, from 8 threads", "one trigger took"]]
    clients = {"plain `requests.post`": post_plainly, "lesson 12": use_lesson_12}
    for database in dict.fromkeys(["SQLite", DATABASE]):
        for client, make in clients.items():
            lost, seconds = [], list[float]()
            for _ in place.times(3):
                with server_on(database) as url:
                    lost.append(count - fire(url, make, count, seconds))
            rows.append([database, client, spread(lost, "", 0), spread(seconds, digits=2)])
    return rows


def fire(url: str, make: Callable[[str], Callable[[], str]], count: int, took: list[float]) -> int:
    """Trigger a served flow from 8 threads; add the seconds of each; return how many arrived."""
    ids = set[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lesson = changed_copy(script("09"), folder, ("limit=5", "limit=1"))

        def send(_: int) -> None:
            started = time.perf_counter()
            try:
                ids.add(trigger_once())
            except (OSError, ValueError, KeyError):
                return
            finally:
                took.append(time.perf_counter() - started)

        with serving(url, lesson, folder / "log"), ThreadPoolExecutor(8) as threads:
            trigger_once = make(url)
            list(threads.map(send, range(count)))
    return len(ids)


@contextmanager
def server_on(database: str) -> Iterator[str]:
    """Run a server with an empty database, "SQLite" or "PostgreSQL"; give its API's URL."""
    with ExitStack() as stack:
        settings = {}
        if database == "PostgreSQL":
            port = stack.enter_context(postgres())
            commands = block("prefect server start", (":5432/", f":{port}/"))
            settings = dict(re.findall(r'export (\w+_CONNECTION_URL)="(.+)"', commands))
        yield stack.enter_context(server(**settings)).api_url


def pool(place: Place) -> Rows:
    """Measure how many runs a minute one and two workers of a pool finish."""
    count, rates = 4 if place.quick else 12, list[list[float]]()
    with server_on(DATABASE) as url, temporary_settings({PREFECT_API_URL: url}):
        clone = Clone(place.clone.folder, {"PREFECT_API_URL": url})
        clone.run(block("work-pool create"))
        with ExitStack() as stack:
            for worker in ("worker-1 ", "worker-2 "):
                stack.enter_context(clone.terminal(block(worker), "started!"))
                took = [clock(lambda: trigger_to_end(url, count)) for _ in place.times(3)]
                rates.append([60 * count / seconds for seconds in took])
    rows = [
        [f"{workers} with `--limit 2`", spread(rate, "", 0), ratio(rate, rates[0])]
        for workers, rate in enumerate(rates, start=1)
    ]
    return [["workers", f"runs a minute, of {count}, on {DATABASE}", "ratio"], *rows]


def cpu(place: Place) -> Rows:
    """Measure work that computes, with threads and with processes."""
    command, took = "python docs/growing/threads_or_processes.py", []
    for _ in place.times(3):
        took.append([*map(float, re.findall(r": ([\d.]+) s in", place.clone.run(command)[0]))])
    threads, processes = zip(*took, strict=True)
    return [
        [f"`{command}`", "takes, start of the processes included", "ratio"],
        ["threads", spread(threads), ratio(threads, threads)],
        ["two processes", spread(processes), ratio(processes, threads)],
    ]


TABLES = {it.__name__: it for it in (machine, lessons, start, trigger, polling, loss, pool, cpu)}


def write(name: str, text: str) -> None:
    """Write the table between its markers on the page; fail if they are not there."""
    old = PAGE.read_text(encoding="utf-8")
    pattern = rf"(?s)(<!-- benchmark: {name} -->\n).*?(<!-- end -->)"
    new, count = re.subn(pattern, lambda match: f"{match[1]}{text}\n\n{match[2]}", old)
    if count != 1:
        sys.exit(f"error: {PAGE.name} has no markers for the table {name!r}")
    PAGE.write_text(new, encoding="utf-8")


def main() -> None:
    """Measure the tables that are asked for, print them, and write them if asked to."""
    parser = argparse.ArgumentParser(
        description=f"Measure the tables of {PAGE.name}: {', '.join(TABLES)}."
    )
    parser.add_argument("--only", nargs="+", choices=TABLES, metavar="TABLE", default=[*TABLES])
    parser.add_argument("--quick", action="store_true", help="measure less often, smaller sizes")
    parser.add_argument("--write", action="store_true", help=f"write them to {PAGE.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, server() as running:
        clone = make_clone(Path(folder), 1, PREFECT_API_URL=running.api_url)
        place = Place(clone, running.api_url, arguments.quick)
        with temporary_settings({PREFECT_API_URL: running.api_url}):
            for name in arguments.only:
                head, *rows = TABLES[name](place)
                lines = [head, ["---"] * len(head), *rows]
                text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
                print(f"\n{name}\n\n{text}", flush=True)
                if arguments.write:
                    write(name, text)


if __name__ == "__main__":
    main()
