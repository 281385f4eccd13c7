"""Measure what LEARNINGS.md says of time and loss, and print it as tables.

Run:    python tests/benchmark.py            (all tables, about ten minutes)
        python tests/benchmark.py --write    (and put them into LEARNINGS.md)
        python tests/benchmark.py --quick --only trigger loss
It starts the servers, workers and clusters that it needs, on free ports, and stops them again.
"""

import argparse
import itertools
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import psutil  # type: ignore[import-untyped]  # noqa: E402
import requests  # noqa: E402
from growing_place import (  # noqa: E402
    Folder,
    Postgres,
    changed,
    make_folder,
    postgres,
    postgres_programs,
    python_blocks,
    shell,
)
from support import (  # noqa: E402
    PAGE,
    Api,
    Server,
    clean_environment,
    free_port,
    load_lesson,
    replace_environment,
    script_path,
    server,
    wait_until,
)

NAME = "user-flow/user-deployment"
THREADS = 8

# Seconds of the longest chain of steps; in 08 the balance is asked for twice, 5 s apart.
CRITICAL_PATHS = {"03": 1 + 2 + 3, "04": 3, "05": 1 + 3 + 1, "08": 1 + (2 + 5 + 2) + 1 + 1}

Row = Sequence[str]


# --- tables ----------------------------------------------------------------------------------


def spread(values: Sequence[float], unit: str = " s", digits: int = 1) -> str:
    """Return the median of the values, and the smallest and largest in parentheses."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f}–{high:.{digits}f})"  # noqa: RUF001


def table(head: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(page: Path, name: str, text: str) -> None:
    """Put the table between its markers on the page; fail if they are not there."""
    old = page.read_text(encoding="utf-8")
    pattern = rf"(?s)(<!-- benchmark: {name} -->\n).*?(<!-- end -->)"
    new, count = re.subn(pattern, lambda match: f"{match[1]}\n{text}\n\n{match[2]}", old)
    if count != 1:
        sys.exit(f"{page.name} has no place for the table {name!r}")
    page.write_text(new, encoding="utf-8")


# --- what runs -------------------------------------------------------------------------------


class Place:
    """A folder with the scripts, full seconds, a server, and how many times to measure."""

    def __init__(self, folder: Folder, running: Server, quick: bool) -> None:
        """Take the folder to the server."""
        self.folder, self.quick = folder, quick
        self.api = Api(running.api_url)
        self.url = running.api_url
        folder.environment["PREFECT_API_URL"] = self.url

    def runs(self, full: int, quick: int = 1) -> range:
        """Return the range of how many times to measure."""
        return range(quick if self.quick else full)

    def timed(self, *command: str, **settings: str) -> tuple[float, str]:
        """Run the command; return its seconds and its output."""
        started = time.perf_counter()
        result = subprocess.run(
            command,
            check=False,
            cwd=self.folder.path,
            env={**self.folder.environment, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        seconds = time.perf_counter() - started
        if result.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
        return seconds, result.stdout + result.stderr

    def python(self, *arguments: str, **settings: str) -> tuple[float, str]:
        """Run Python with these arguments; return its seconds and its output."""
        return self.timed(sys.executable, *arguments, **settings)

    def deploy(self) -> None:
        """Deploy `user_flow` to the pool "team", as the page says."""
        if not self.api.post("/work_pools/filter", {}):
            self.folder.run(shell("deploy"))
        else:
            self.folder.run("python deploy_user_flow.py")


def lesson_12(url: str) -> tuple[ModuleType, requests.Session, dict[str, Any]]:
    """Return lesson 12, a session of it, and the deployment."""
    lesson = load_lesson(script_path("12"))
    session = lesson.make_session(url)
    return lesson, session, lesson.get_deployment(session, url, NAME)


@contextmanager
def tree(folder: Folder, line: str, sign: str) -> Iterator[psutil.Process]:
    """Run a command until the end of the block, then end it and all that it has started."""
    with folder.terminal(line) as (process, log):
        wait_until(f"{line}: {sign}", lambda: sign in log.read_text(), 60)
        try:
            yield psutil.Process(process.pid)
        finally:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                _, left = psutil.wait_procs(children, 5)
                for child in left:
                    child.kill()


@contextmanager
def serving(place: Place, poll_seconds: int, limit: int = 5) -> Iterator[None]:
    """Serve lesson 09 during the block."""
    folder = Folder(place.folder.path, {**place.folder.environment}, place.folder.logs)
    folder.environment["PREFECT_RUNNER_POLL_FREQUENCY"] = str(poll_seconds)
    script = folder.path / "served.py"
    text = (folder.path / script_path("09").name).read_text(encoding="utf-8")
    script.write_text(changed(text, ("LIMIT = 5", f"LIMIT = {limit}")), encoding="utf-8")
    with tree(folder, f"python {script.name}", "Serving"):

        def is_ready() -> bool:
            url = f"{place.url}/deployments/name/{NAME}"
            answer = requests.get(url, timeout=5)
            return answer.ok and answer.json()["status"] == "READY"

        wait_until("the deployment is served", is_ready, 60)
        yield


def until_completed(place: Place, ids: Sequence[str]) -> list[float]:
    """Wait for the end of the runs; return the seconds of each from its trigger to its end."""
    seconds = []
    for flow_run_id in ids:
        place.api.ended(flow_run_id, 300)
        states = place.api.get("/flow_run_states/", flow_run_id=flow_run_id)
        if states[-1]["name"] != "Completed":
            sys.exit(f"flow run {flow_run_id} is {states[-1]['name']}: {states[-1]['message']}")
        seconds.append(between(states[0]["timestamp"], states[-1]["timestamp"]))
    return seconds


def between(first: str, last: str) -> float:
    """Return the seconds between two times of the API."""
    from support import parse_time

    return (parse_time(last) - parse_time(first)).total_seconds()


# --- what is measured ------------------------------------------------------------------------


def machine(_: Place) -> str:
    """Describe the machine and the versions."""
    memory = psutil.virtual_memory().total / 2**30
    packages = ("prefect", "prefect-dask", "distributed", "fastapi", "requests")
    rows = [
        ["machine", f"{os.cpu_count()} cores, {memory:.0f} GiB, {cpu_name()}"],
        ["system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"],
        ["packages", ", ".join(f"{name} {installed(name)}" for name in packages)],
        ["PostgreSQL", postgres_version()],
        ["command", f"`python tests/benchmark.py {' '.join(sys.argv[1:])}`".replace(" `", "`")],
    ]
    return table(["", "measured on"], rows)


def cpu_name() -> str:
    """Return the name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        found = re.search(r"model name\s*:\s*(.+)", text)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def installed(name: str) -> str:
    """Return the version of the package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def postgres_version() -> str:
    """Return the version of PostgreSQL."""
    programs = postgres_programs()
    if not programs:
        return "not installed"
    command = [str(programs / "postgres"), "--version"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[2]


def lessons(place: Place) -> str:
    """Measure the lessons' steps, and their flow runs as a whole, over their critical paths."""
    rows = []
    for number, path in CRITICAL_PATHS.items():
        row = [script_path(number).name, f"{path} s"]
        took = [run_lesson(place, row[0]) for _ in place.runs(5)]
        for seconds in zip(*took, strict=True):
            row += [spread(seconds, digits=2), spread([value / path for value in seconds], "", 3)]
        rows.append(row)
    head = ["script", "critical path", "its steps took", "ratio", "the flow run took", "ratio"]
    return table(head, rows)


def run_lesson(place: Place, script: str) -> tuple[float, float]:
    """Run it; return the seconds from its first step to the end of its last, and of the flow run.

    Both are what the server recorded.
    """
    output = place.python(script)[1]
    (run_id,) = set(re.findall(r"/runs/flow-run/([0-9a-f-]{36})", output))
    run = place.api.ended(run_id)
    steps = len(re.findall(r"Task run '[\w-]+' - Finished in state", output))

    def are_recorded() -> bool:
        return run.has_ended_task_runs() and len(run.recorded_task_runs()) == steps

    wait_until(f"the {steps} steps of {script} are recorded", are_recorded)
    task_runs = run.task_runs()
    end = max(task_run.end for task_run in task_runs)
    return (end - task_runs[0].start).total_seconds(), run.seconds


def start(place: Place) -> str:
    """Measure a whole script with and without a running server."""
    script = script_path("01").name
    none = {"PREFECT_API_URL": "", "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
    running = [place.python(script)[0] for _ in place.runs(5, 2)]
    alone = [place.python(script, **none)[0] for _ in place.runs(5, 2)]
    rows = [["a running server", spread(running)], ["no server", spread(alone)]]
    rows.append(["ratio", f"{statistics.median(alone) / statistics.median(running):.1f}"])
    return table([f"`python {script}` with", "takes"], rows)


def trigger(place: Place) -> str:
    """Measure one trigger by lesson 12, by the command line and by Prefect's function."""
    place.deploy()
    code = f"from prefect.deployments import run_deployment; run_deployment('{NAME}', timeout=0)"
    ours = f"python {script_path('12').name} {NAME}"
    commands = {
        f"`{ours}`": place.folder.command(ours),
        f"`prefect deployment run {NAME}`": place.folder.command(f"prefect deployment run {NAME}"),
        "a script with `run_deployment(...)`": [sys.executable, "-c", code],
    }
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in place.runs(9, 3):
        for name, command in commands.items():  # side by side, so that all meet the same load
            took[name].append(place.timed(*command)[0])
    lesson, session, deployment = lesson_12(place.url)
    took["the function of 12, in a running program"] = []
    for _ in place.runs(20, 5):
        started = time.perf_counter()
        lesson.trigger_deployment(session, place.url, deployment, {}, str(uuid.uuid4()))
        took["the function of 12, in a running program"].append(time.perf_counter() - started)
    place.api.delete(f"/deployments/{deployment['id']}")  # and with it the runs that wait
    first = statistics.median(next(iter(took.values())))
    rows = [
        [name, spread(values, digits=3), f"{statistics.median(values) / first:.2f}"]
        for name, values in took.items()
    ]
    return table(["one trigger by", "takes", "ratio to 12"], rows)


def polling(place: Place) -> str:
    """Measure trigger to Completed, for the default polling and for ours."""
    rows = []
    for poll_seconds, label in ((10, "every 10 s, the default"), (1, "every second, as here")):
        with serving(place, poll_seconds):
            lesson, session, deployment = lesson_12(place.url)
            seconds = []
            for _ in place.runs(5, 2):
                key = str(uuid.uuid4())
                run = lesson.trigger_deployment(session, place.url, deployment, {}, key)[0]
                seconds += until_completed(place, [run["id"]])
        rows.append([label, spread(seconds)])
    return table(["looks for work", "trigger to Completed"], rows)


def loss(place: Place) -> str:
    """Count what gets lost of many triggers from eight threads, on both databases."""
    count = 40 if place.quick else 200
    rows: list[Row] = []
    with ExitStack() as stack:
        databases: dict[str, Callable[[], dict[str, str]]] = {"SQLite": dict}
        programs = postgres_programs()
        if programs:
            databases["PostgreSQL"] = fresh_databases(stack.enter_context(postgres(programs)))
        for database, fresh in databases.items():
            for name, client in CLIENTS.items():
                lost, seconds = [], []
                for _ in place.runs(3):
                    arrived, took = load(place, fresh(), client, count)
                    lost.append(count - arrived)
                    seconds += took
                rows.append([database, name, spread(lost, "", 0), spread(seconds, digits=2)])
        if not programs:
            rows.append(["PostgreSQL", "not installed, not measured", "", ""])
    return table(["database", "client", f"lost of {count}", "one trigger took"], rows)


def fresh_databases(running: Postgres) -> Callable[[], dict[str, str]]:
    """Return a function that makes one more database and returns a server's settings for it."""
    running.psql("-c", "CREATE ROLE prefect LOGIN PASSWORD 'database-password'")
    names = (f"prefect_{number}" for number in itertools.count())

    def fresh() -> dict[str, str]:
        name = next(names)
        running.psql("-c", f"CREATE DATABASE {name} OWNER prefect")
        login = "prefect:database-password"
        url = f"postgresql+asyncpg://{login}@127.0.0.1:{running.port}/{name}"
        return {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}

    return fresh


def send_plainly(url: str) -> Callable[[int], str]:
    """Return a function that triggers once by nothing but a POST, and returns the run's id."""
    deployment = requests.get(f"{url}/deployments/name/{NAME}", timeout=10).json()

    def send(_: int) -> str:
        trigger = f"{url}/deployments/{deployment['id']}/create_flow_run"
        response = requests.post(trigger, json={"parameters": {}}, timeout=10)
        response.raise_for_status()
        return str(response.json()["id"])

    return send


def send_by_lesson_12(url: str) -> Callable[[int], str]:
    """Return a function that triggers once as lesson 12 does, and returns the run's id."""
    lesson, session, deployment = lesson_12(url)

    def send(_: int) -> str:
        key = str(uuid.uuid4())
        return str(lesson.trigger_deployment(session, url, deployment, {}, key)[0]["id"])

    return send


CLIENTS = {"plain `requests.post`": send_plainly, "lesson 12": send_by_lesson_12}


def load(
    place: Place,
    settings: dict[str, str],
    client: Callable[[str], Callable[[int], str]],
    count: int,
) -> tuple[int, list[float]]:
    """Send the triggers to a fresh server that is polled; return how many arrived, and the times.

    What arrived is never run to its end: the server, and what serves the flow, end first.
    """
    with server(None, port=None, calmly=False, **settings) as running:
        folder = Folder(place.folder.path, {**place.folder.environment}, place.folder.logs)
        fresh = Place(folder, running, place.quick)
        with serving(fresh, 1, limit=1):
            ids, seconds = fire(client(fresh.url), count)
    return len(set(ids)), seconds


def fire(send: Callable[[int], str], count: int) -> tuple[list[str], list[float]]:
    """Send from eight threads; return the ids of the runs, and the seconds of each try."""
    seconds: list[float] = []

    def once(number: int) -> str | None:
        started = time.perf_counter()
        try:
            return send(number)
        except (OSError, ValueError):
            return None
        finally:
            seconds.append(time.perf_counter() - started)

    with ThreadPoolExecutor(THREADS) as threads:
        ids = list(threads.map(once, range(count)))
    return [found for found in ids if found], seconds


@contextmanager
def team(place: Place) -> Iterator[tuple[Place, str]]:
    """Give a server of its own on PostgreSQL, or else SQLite, and which one it is."""
    programs = postgres_programs()
    with ExitStack() as stack:
        settings = {}
        if programs:
            settings = fresh_databases(stack.enter_context(postgres(programs)))()
        running = stack.enter_context(server(None, port=None, calmly=False, **settings))
        folder = Folder(place.folder.path, {**place.folder.environment}, place.folder.logs)
        yield Place(folder, running, place.quick), "PostgreSQL" if programs else "SQLite"


def pool(place: Place) -> str:
    """Measure how many runs a minute one and two workers of a pool finish."""
    count = 4 if place.quick else 12
    rates: dict[int, list[float]] = {1: [], 2: []}
    with team(place) as (shared, database):
        shared.deploy()
        for workers, measured in rates.items():
            with ExitStack() as stack:
                for number in range(workers):
                    line = f"prefect worker start --pool team --name bench-{number} --limit 2"
                    stack.enter_context(tree(shared.folder, line, "started!"))
                lesson, session, deployment = lesson_12(shared.url)
                send = lesson.trigger_deployment
                for _ in place.runs(3):
                    keys = [str(uuid.uuid4()) for _ in range(count)]
                    started = time.perf_counter()
                    sent = [send(session, shared.url, deployment, {}, key)[0]["id"] for key in keys]
                    until_completed(shared, sent)
                    measured.append(60 * count / (time.perf_counter() - started))
    first = statistics.median(rates[1])
    rows = [
        [
            f"{workers} × `--limit 2`",  # noqa: RUF001
            spread(measured, "", 0),
            f"{statistics.median(measured) / first:.2f}",
        ]
        for workers, measured in rates.items()
    ]
    return table(["workers", f"runs a minute, of {count}, on {database}", "ratio"], rows)


def users(place: Place) -> str:
    """Measure N users on 1, 2 and 4 Dask workers, at a tenth of the seconds."""
    if installed("prefect-dask") == "not installed":
        return "prefect-dask is not installed: not measured."
    counts = (2, 8) if place.quick else (2, 8, 24)
    rows = []
    blocks = python_blocks()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        team(place) as (shared, database),
    ):
        folder = make_folder(Path(name), blocks, 0.1, PREFECT_API_URL=shared.url)
        lesson = folder.path / script_path("08").name
        text = lesson.read_text(encoding="utf-8")
        lesson.write_text(re.sub(r"(?m)^OUTAGES = .*", "OUTAGES = {}", text), encoding="utf-8")
        for workers in (1, 2, 4):
            cells = []
            with ExitStack() as stack:
                port = free_port()
                line = f"python -m dask scheduler --host 127.0.0.1 --port {port} --no-dashboard"
                stack.enter_context(tree(folder, line, "Scheduler at"))
                address = f"tcp://127.0.0.1:{port}"
                for _ in range(workers):
                    line = f"python -m dask worker {address} --nthreads 1 --no-dashboard"
                    stack.enter_context(tree(folder, line, "Registered to"))
                times: dict[int, list[float]] = {count: [] for count in counts}
                warm = [str(workers * 2), address]
                folder.run(f"python many_users.py {' '.join(warm)}", timeout=300)
                for _ in place.runs(3):
                    for count in counts:
                        result = folder.run(f"python many_users.py {count} {address}", timeout=300)
                        output = result.stderr + result.stdout
                        (run_id,) = set(re.findall(r"/runs/flow-run/([0-9a-f-]{36})", output))
                        times[count].append(shared.api.ended(run_id).seconds)
                cells = [spread(times[count]) for count in counts]
            rows.append([f"{workers}", *cells])
    head = f"Dask workers, one thread each; server on {database}"
    return table([head, *(f"{count} users" for count in counts)], rows)


def cpu(place: Place) -> str:
    """Measure work that computes, with threads and with processes."""
    took: dict[str, list[float]] = {"threads": [], "two processes": []}
    for _ in place.runs(3):
        output = place.python("train.py")[1]
        for values, seconds in zip(
            took.values(), re.findall(r"([\d.]+) s, \d", output), strict=True
        ):
            values.append(float(seconds))
    first = statistics.median(took["threads"])
    rows = [
        [name, spread(values), f"{statistics.median(values) / first:.2f}"]
        for name, values in took.items()
    ]
    return table(["`python train.py`", "takes, start of the processes included", "ratio"], rows)


TABLES: dict[str, Callable[[Place], str]] = {
    "machine": machine,
    "lessons": lessons,
    "start": start,
    "trigger": trigger,
    "polling": polling,
    "loss": loss,
    "pool": pool,
    "users": users,
    "cpu": cpu,
}


def main() -> None:
    """Measure the tables that are asked for, print them, and write them if asked to."""
    parser = argparse.ArgumentParser(description="Measure the tables of LEARNINGS.md.")
    parser.add_argument("--only", nargs="+", choices=list(TABLES), metavar="TABLE", default=[])
    parser.add_argument("--quick", action="store_true", help="fewer runs and smaller sizes")
    parser.add_argument("--write", action="store_true", help=f"put them into {PAGE.name}")
    parser.epilog = f"Tables: {', '.join(TABLES)}."
    arguments = parser.parse_args()
    replace_environment(clean_environment())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is stopped
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, server() as running:
        blocks = python_blocks()
        place = Place(make_folder(Path(name), blocks, 1), running, arguments.quick)
        for name, measure in TABLES.items():
            if not arguments.only or name in arguments.only:
                started = time.perf_counter()
                text = measure(place)
                seconds = time.perf_counter() - started
                print(f"\n{name}, measured in {seconds:.0f} s\n\n{text}", flush=True)
                if arguments.write:
                    write(PAGE, name, text)


if __name__ == "__main__":
    main()
