"""What the tests share: lessons, servers, and what a server recorded of a flow run."""

import importlib
import importlib.util
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]
import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "LEARNINGS.md"
SCRIPTS = sorted(path.name for path in ROOT.glob("[01][0-9]_*.py"))

# What a server need not do for the lessons, on a database that has its tables: look for changes of
# the tables, register the types of blocks (and import the libraries that bring some), keep events
# and act on them. Task runs are recorded from events all the same.
QUICK_SERVER = {
    "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send")
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows `end` kills, whatever it is told

# How the log records begin that Prefect writes by itself.
PREFECTS_OWN = re.compile(
    "Beginning flow run|View at|Finished in state|Task run failed with|Encountered exception"
)

T = TypeVar("T")


# --- the lessons -----------------------------------------------------------------------------


def script_path(number: str) -> Path:
    """Return the path of the lesson with this number, such as "04"."""
    (path,) = ROOT.glob(f"{number}_*.py")
    return path


def load_lesson(path: Path) -> ModuleType:
    """Return the lesson of the repository as a module, as an import statement would."""
    return tells_what_is_missing(importlib.import_module(path.stem), path)


def load_afresh(path: Path) -> ModuleType:
    """Return the script at `path` as a module of its own, which may be changed."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tells_what_is_missing(module, path)


def tells_what_is_missing(module: ModuleType, path: Path) -> ModuleType:
    """Return the lesson, which now says in words when a name is asked for that it lacks."""

    def missing(name: str) -> None:
        raise AttributeError(
            f"{path.name} has no {name}: the page and the tests know it by this name"
        )

    vars(module)["__getattr__"] = missing
    return module


def changed_copy(path: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """Return a copy of the script in `folder` with every (old, new) text of `changes` replaced.

    Raises AssertionError if an old text is not there, so that no change is lost silently.
    """
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, f"{path.name} does not contain {old!r}"
        text = text.replace(old, new)
    copy = folder / path.name
    copy.write_text(text, encoding="utf-8")
    return copy


def seconds_scaled(path: Path, factor: float) -> list[tuple[str, str]]:
    """Return the changes that make every number of seconds in the script `factor` times as long."""
    text = path.read_text(encoding="utf-8")
    pattern = r"(?m)(?:^[A-Z_]*_SECONDS|retry_delay_seconds)( ?= ?)([\d.]+)"
    found = {match.group(0): match for match in re.finditer(pattern, text)}
    return [
        (old, old[: -len(match[2])] + f"{float(match[2]) * factor:g}")
        for old, match in found.items()
    ]


STORY: dict[str, Any] = {
    "USER_SECONDS": 1,
    "BALANCE_SECONDS": 2,
    "ACTIVITY_SECONDS": 3,
    "PREDICTION_SECONDS": 1,
    "NOTIFICATION_SECONDS": 1,
    "USERS": {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"},
    "BALANCES": {101: 120.50, 102: 980.00, 103: 15.75},
    "LOGINS": {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]},
    "BIAS": 2.0,
    "BALANCE_WEIGHT": -0.002,
    "LOGIN_WEIGHT": -0.1,
}


LOOKUPS = ["fetch_user_info", "fetch_account_balance", "fetch_recent_activity"]

# What lessons 03 and 04 return for user 101, and then 05 and 08.
ADA = {
    "user": {"user_id": 101, "name": "Ada Lovelace"},
    "balance": 120.5,
    "activity": [5, 3, 2, 1],
}
ADA_CHURN = {**ADA, "churn": 0.659}

# What lessons 05 and 08 return for user 102.
ALAN_CHURN = {
    "user": {"user_id": 102, "name": "Alan Turing"},
    "balance": 980.0,
    "activity": [9, 8, 9, 10],
    "churn": 0.028,
}

# What no lesson has in its tables. The arrows of a run graph do not tell where a value is from:
# Prefect knows a result, and what it consists of, by identity, be it an entry of a table or a key.
OTHER_RESULTS: dict[str, Any] = {
    "fetch_user_info": {"user_id": 103, "name": "Somebody Else"},
    "fetch_account_balance": 300.0,
    "fetch_recent_activity": [4, 3, 2, 1],
}
OTHER_CHURN = 0.599  # 1 / (1 + exp(-score)) with the score 2 - 0.002 * 300 - 0.1 * 10


def read(number: str) -> str:
    """Return where to read about the lesson with this number, for the end of a message."""
    return f"see {script_path(number).name} in LEARNINGS.md"


def told(path: Path) -> dict[str, Any]:
    """Return what the lesson tells of the common story: its durations, users and weights."""
    lesson = vars(load_lesson(path))
    return {name: lesson[name] for name in STORY if name in lesson}


def assert_elapsed(line: str, seconds: float, message: str) -> None:
    """Check that the line tells an elapsed time of at least `seconds`, and not much more."""
    match = re.fullmatch(r"Elapsed: (\d+\.\d) s", line)
    assert match, f"no elapsed time in {line!r}; {message}"
    # One digit is printed, and a busy machine adds to it.
    assert seconds - 0.05 <= float(match[1]) <= seconds + 2, (
        f"{line!r} is not the critical path, {seconds:g} s; {message}"
    )


# --- processes -------------------------------------------------------------------------------


# What programs are started with, apart from os.environ: pytest changes that one at every test, and
# a thread must not read it meanwhile.
ENVIRONMENT = dict(os.environ)


def replace_environment(environment: dict[str, str]) -> None:
    """Make this the environment, of this process and of the programs that it starts."""
    for one in (ENVIRONMENT, os.environ):
        one.clear()
        one.update(environment)


def clean_environment(**settings: str) -> dict[str, str]:
    """Return the environment without the caller's Prefect settings and proxies, plus `settings`."""
    kept = {
        name: value
        for name, value in ENVIRONMENT.items()
        if not name.startswith("PREFECT_") and not name.lower().endswith("_proxy")
    }
    spared = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # No server here protects itself by tokens, but every client would ask for one.
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
        # What is printed is read as UTF-8, also where the system has another encoding.
        "PYTHONUTF8": "1",
    }
    return {**kept, **spared, **settings}


# Ports for the servers of the tests, each for one of them. They lie below those that Linux, macOS
# and Windows give to whoever asks for any port, as a stub does: it could be given the one that a
# server has not opened yet. In any order, for other tests may run on this machine at the same time.
SERVER_PORTS = range(20_000, 32_000)
_untried = iter(random.sample(SERVER_PORTS, len(SERVER_PORTS)))


def free_port() -> int:
    """Return a port on which nothing listens, and which nobody else here is given."""
    for port in _untried:
        with socket.socket() as probe, suppress(OSError):  # somebody has it
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no port is free in {SERVER_PORTS}")


# Set when the tests end before the work beside them does.
GIVE_UP = Event()


def go_on(what: str) -> None:
    """Fail if there are no more tests that need this."""
    assert not GIVE_UP.is_set(), f"the tests have ended: {what}"


def wait_until(what: str, check: Callable[[], T | None], seconds: float = 20) -> T:
    """Return the first true result of `check`; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = 0.05
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain: {what}")
        go_on(what)
        time.sleep(pause)
        pause = min(pause * 1.3, 0.5)  # a server that is asked too often has no time to act


def start_session(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program that leads a session of its own, with the priority of this thread.

    Linux gives each session a share of the processor, however low the priority of its processes.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    if sys.platform == "linux":
        priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        with suppress(OSError):  # a kernel without such shares, or a program that has ended
            Path(f"/proc/{process.pid}/autogroup").write_text(str(priority))
    return process


def run_program(
    command: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    *,
    seconds: float = 60,
    stderr: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it printed; fail if it takes longer.

    If the tests end first, so does the program: not every one ends by Ctrl-C.
    """
    go_on(" ".join(command))
    process = start_session(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
    )
    is_over = patience(seconds)
    while True:
        try:
            output, errors = process.communicate(timeout=min(1, seconds))
            return subprocess.CompletedProcess(command, process.returncode, output, errors)
        except subprocess.TimeoutExpired:
            if is_over():
                end(process)  # with what it has started, which holds its outputs open
                process.communicate()
                raise too_late(command, seconds) from None


def patience(seconds: float) -> Callable[[], bool]:
    """Return a function that tells whether the seconds, or all tests, are over."""
    deadline = time.monotonic() + seconds
    return lambda: GIVE_UP.is_set() or time.monotonic() > deadline


def too_late(command: Sequence[str], seconds: float) -> AssertionError:
    """Return the error of a program that did not end in time."""
    what = f"did not end within {seconds:g} s: {' '.join(command)}"
    return AssertionError(f"{what}; has every request a timeout?")


def run_script(path: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a user does, `python NN_....py`, and return what it printed."""
    return run_program([sys.executable, str(path), *arguments], ROOT, {**ENVIRONMENT, **settings})


def assert_one_line(result: subprocess.CompletedProcess[str], hint: str, code: int = 1) -> None:
    """Check that the script failed with `code`, nothing on stdout and one line with `hint`."""
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == code, f"exit {result.returncode}, not {code}: {result.stderr}"
    assert result.stdout == "", "stdout is for the result only"
    assert len(result.stderr.splitlines()) == 1, f"not one line: {result.stderr}"
    assert hint in result.stderr, f"{hint!r} is not in {result.stderr!r}"


def assert_told(text: str, *parts: str) -> None:
    """Check that the text, such as that of --help, has each of the parts, wherever it wraps."""
    words = " ".join(text.split())
    for part in parts:
        assert part in words, f"{part!r} is not told in {words!r}"


@contextmanager
def background(
    command: Sequence[str], log: Path, stop: int = signal.SIGTERM, **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` until the end of the block, its output going to `log`; leave nothing behind."""
    with log.open("ab") as output:
        process = start_session(
            command,
            cwd=ROOT,
            env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1", **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            end(process, stop)


def children_with(word: str, process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """Return the programs that the process has started and that have the word in their command."""
    found = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error):  # it has just ended
            if word in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill(process: psutil.Process) -> None:
    """Kill the process and all that it has started, as a power cut does."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):  # it has just ended by itself
            member.kill()
    psutil.wait_procs(family, 10)


def end(process: subprocess.Popen[Any], stop: int = signal.SIGTERM) -> None:
    """End a process that leads a session, and every process of it, by `stop` or else by force."""
    if sys.platform == "win32":
        with suppress(psutil.NoSuchProcess):
            kill(psutil.Process(process.pid))
        process.wait()
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, stop)
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def processes_at(home: str) -> list[psutil.Process]:
    """Return the processes whose PREFECT_HOME is `home`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has just ended, or is somebody else's
            if process.environ().get("PREFECT_HOME") == home:
                found.append(process)
    return found


def left_behind(home: str, seconds: float = 5) -> list[str]:
    """Return the commands of those that do not end by themselves within the seconds."""
    commands = []
    for process in psutil.wait_procs(processes_at(home), seconds)[1]:
        with suppress(psutil.Error):  # it has just ended
            commands.append(" ".join(process.cmdline()))
    return commands


@contextmanager
def none_left(home: str) -> Iterator[None]:
    """Kill, at the end of the block, every process whose PREFECT_HOME is `home`."""
    try:
        yield
    finally:
        for process in processes_at(home):
            with suppress(psutil.NoSuchProcess):  # it was a child of the one before
                kill(process)


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database, even while a server uses it; `target` is whole or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(part)) as new:
        old.backup(new)
    part.replace(target)


def calm(folder: Path) -> Path:
    """Return a folder in `folder` where a SQLite database answers however busy its server is.

    Where a path has this name in it Prefect opens one connection only, which never has to wait for
    the lock of another one. With several, a busy server may answer nobody for a minute.
    """
    return folder / ":memory:" if sys.platform != "win32" else folder


@dataclass
class Server:
    """A Prefect server of our own, on a free port, that can be stopped and started again."""

    home: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def api_url(self) -> str:
        """The URL of its API."""
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        """Start it and return when it answers; its database and port stay the same."""
        log = (self.home / "server.log").open("ab")
        self.process = start_session(
            [sys.executable, "-m", "prefect", "server", "start", f"--port={self.port}"],
            cwd=ROOT,
            env=clean_environment(PREFECT_HOME=str(self.home), **self.settings),
            stdout=log,
            stderr=log,
        )
        log.close()
        wait_until("the server answers", self.is_up, 60)

    def is_up(self) -> bool:
        """Return whether it answers, and fail if it has ended."""
        ended = self.process is None or self.process.poll() is not None
        assert not ended, (self.home / "server.log").read_text()
        return Api(self.api_url).answers()

    def stop(self, by: int = signal.SIGTERM) -> None:
        """Stop it by this signal and wait for its end."""
        if self.process:
            end(self.process, by)


@contextmanager
def server(
    database: Path | None = None, *, port: int | None = None, calmly: bool = False, **settings: str
) -> Iterator[Server]:
    """Run a Prefect server with these settings, and a home of its own, during the block.

    It starts on a copy of `database`, if given, which spares it most of the start: the tables.
    If `calmly`, its database is in a calm folder. The settings may name another database.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        folder = calm(Path(home)) if calmly else Path(home)
        folder.mkdir(exist_ok=True)
        if database:
            copy_database(database, folder / "prefect.db")
            settings = {**QUICK_SERVER, "PREFECT_SERVER_UI_ENABLED": "false", **settings}
        url = f"sqlite+aiosqlite:///{folder / 'prefect.db'}"
        settings = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url, **settings}
        running = Server(Path(home), settings, port or free_port())
        try:
            running.start()
            yield running
        finally:
            running.stop(KILL)  # nobody waits for what it would still do


# --- what the server recorded ----------------------------------------------------------------


def parse_time(text: str) -> datetime:
    """Return the API's time, such as 2026-01-31T12:00:00.5Z, as a datetime."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


@dataclass
class Api:
    """A Prefect server's API, as plain HTTP, for reading what it recorded."""

    url: str
    auth: tuple[str, str] | None = None

    def get(self, path: str, **query: str) -> Any:
        """Return the JSON at `path`."""
        return self.request("GET", path, params=query).json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON that the POST answers."""
        return self.request("POST", path, json=body).json()

    def delete(self, path: str) -> None:
        """Delete what is at `path`."""
        self.request("DELETE", path)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Return the answer, once SQLite has given its lock to the server (503 until then).

        What the server drops unanswered, as it may under load, is asked again if that is safe.
        """
        doubles = path.endswith("/create_flow_run") and "idempotency_key" not in options["json"]
        locked = Retry(
            total=10,
            connect=0,
            read=0 if doubles else 3,
            status_forcelist=[503],
            allowed_methods=None,
            backoff_factor=0.1,
            backoff_max=2,
        )
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=locked))
            # The server waits for the lock for up to a minute, and may answer nobody meanwhile.
            response = session.request(
                method, self.url + path, auth=self.auth, timeout=90, **options
            )
        response.raise_for_status()
        return response

    def answers(self) -> bool:
        """Return whether the server answers."""
        try:
            return requests.get(f"{self.url}/health", timeout=5).ok
        except requests.RequestException:
            return False

    def find_deployment(self, name: str) -> dict[str, Any] | None:
        """Return the deployment with this name, if there is one."""
        url = f"{self.url}/deployments/name/{name}"
        try:
            response = requests.get(url, auth=self.auth, timeout=30)
        except requests.ConnectionError:
            return None
        return dict(response.json()) if response.ok else None

    def is_ready(self, name: str) -> bool:
        """Return whether somebody serves the deployment with this name."""
        found = self.find_deployment(name)
        return bool(found and found["status"] == "READY" and not found["paused"])

    def trigger(self, deployment_id: str, **parameters: Any) -> str:
        """Schedule a run of the deployment, once, and return its id."""
        body = {"parameters": parameters, "idempotency_key": str(uuid.uuid4())}
        return str(self.post(f"/deployments/{deployment_id}/create_flow_run", body)["id"])

    def flow_run(self, flow_run_id: str) -> "FlowRun":
        """Return the flow run with what was recorded of it so far."""
        return FlowRun(self, self.get(f"/flow_runs/{flow_run_id}"))

    def flow_runs(self, **filters: Any) -> list[dict[str, Any]]:
        """Return all flow runs that match the filters of the API, page after page."""
        runs: list[dict[str, Any]] = []
        while page := self.post("/flow_runs/filter", {**filters, "offset": len(runs)}):
            runs += page
        return runs

    def ended(self, flow_run_id: str, seconds: float = 30) -> "FlowRun":
        """Return the flow run once it has come to its end."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        def check() -> "FlowRun | None":
            run = self.flow_run(flow_run_id)
            return run if run.data["state"]["type"] in final else None

        return wait_until(f"flow run {flow_run_id} ends", check, seconds)


@dataclass
class TaskRun:
    """A task run, as the server recorded it."""

    api: Api
    data: dict[str, Any]

    @property
    def task(self) -> str:
        """The name of its task."""
        return str(self.data["name"]).rsplit("-", 1)[0]

    @property
    def state(self) -> str:
        """The name of its last state."""
        return str(self.data["state"]["name"])

    @property
    def start(self) -> datetime:
        """When it began to run."""
        return parse_time(self.data["start_time"])

    @property
    def end(self) -> datetime:
        """When it ended."""
        return parse_time(self.data["end_time"])

    @property
    def attempts(self) -> int:
        """How often it ran."""
        return int(self.data["run_count"])

    def states(self) -> list[str]:
        """Return the names of all its states, in order."""
        states = self.api.get("/task_run_states/", task_run_id=self.data["id"])
        return [state["name"] for state in states]

    def overlaps(self, other: "TaskRun") -> bool:
        """Return whether the two ran at the same time for a while."""
        return self.start < other.end and other.start < self.end


@dataclass
class FlowRun:
    """A flow run, as the server recorded it."""

    api: Api
    data: dict[str, Any]
    value: Any = None

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.data["id"])

    @property
    def flow_name(self) -> str:
        """The name of its flow."""
        return str(self.api.get(f"/flows/{self.data['flow_id']}")["name"])

    @property
    def state(self) -> str:
        """The name of its last state."""
        return str(self.data["state"]["name"])

    @property
    def message(self) -> str:
        """The message of its last state."""
        return str(self.data["state"]["message"])

    @property
    def seconds(self) -> float:
        """How long it ran."""
        start, end = parse_time(self.data["start_time"]), parse_time(self.data["end_time"])
        return (end - start).total_seconds()

    def recorded_task_runs(self) -> list[dict[str, Any]]:
        """Return its task runs as far as they are recorded, which happens behind its back."""
        body = {"flow_runs": {"id": {"any_": [self.id]}}, "limit": 200}
        found = self.api.post("/task_runs/filter", body)
        # Prefect counts to the first flow run of a process what runs without a flow afterwards; the
        # name of such a task run is that of its task, without an id.
        return [data for data in found if "-" in data["name"]]

    def has_ended_task_runs(self) -> bool:
        """Return whether it has task runs, and the ends of all of them are recorded."""
        found = self.recorded_task_runs()
        return bool(found) and all(data["start_time"] and data["end_time"] for data in found)

    def task_runs(self) -> list[TaskRun]:
        """Return its task runs in the order in which they started."""
        runs = [TaskRun(self.api, data) for data in self.recorded_task_runs()]
        return sorted(runs, key=lambda run: run.start)

    def task_run(self, task: str) -> TaskRun:
        """Return the one task run of this task."""
        found = [run for run in self.task_runs() if run.task == task]
        assert len(found) == 1, f"{task} ran {len(found)} times in the flow run, not once"
        return found[0]

    def edges(self) -> set[tuple[str, str]]:
        """Return the arrows of the run graph, as pairs of task names."""
        graph = self.api.get(f"/flow_runs/{self.id}/graph-v2")
        nodes = dict(graph["nodes"])
        names = {key: node["label"].rsplit("-", 1)[0] for key, node in nodes.items()}
        return {
            (names[parent["id"]], names[key])
            for key, node in nodes.items()
            for parent in node["parents"]
        }

    def records(self) -> list[dict[str, Any]]:
        """Return the log records, Prefect's own among them, in order."""
        body = {"logs": {"flow_run_id": {"any_": [self.id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return list(self.api.post("/logs/filter", body))

    def has_logged_its_end(self) -> bool:
        """Return whether the last record of a flow run is there, which Prefect writes."""
        return any(
            record["message"].startswith("Finished in state") and record["task_run_id"] is None
            for record in self.records()
        )

    def logs(self, *, prefect: bool = False) -> list[tuple[int, str, str | None]]:
        """Return the level, text and task (or None) of the records, Prefect's own if asked to."""
        names = {run.data["id"]: run.task for run in self.task_runs()}
        return [
            (record["level"], record["message"], names.get(record["task_run_id"]))
            for record in self.records()
            if prefect or not PREFECTS_OWN.match(record["message"])
        ]


def assert_order(run: FlowRun, message: str) -> None:
    """Check that the user comes before both lookups, and the prediction after them."""
    user, prediction = run.task_run("fetch_user_info"), run.task_run("predict_churn")
    for lookup in (run.task_run("fetch_account_balance"), run.task_run("fetch_recent_activity")):
        assert user.end <= lookup.start, f"{lookup.task} started before the user; {message}"
        assert lookup.end <= prediction.start, (
            f"the prediction started before {lookup.task} ended; {message}"
        )


def assert_diamond(run: FlowRun, message: str) -> None:
    """Check the order, and that the two lookups run at the same time."""
    assert_order(run, message)
    balance = run.task_run("fetch_account_balance")
    assert balance.overlaps(run.task_run("fetch_recent_activity")), (
        "the two lookups ran one after the other: the first .result() came before the second "
        f".submit(), or one was called; {message}"
    )


def assert_passed_on(received: dict[str, Any], run: FlowRun, message: str) -> None:
    """Check that the lookups were given the user that was returned, and the prediction theirs."""
    for lookup in LOOKUPS[1:]:
        assert received[lookup] == OTHER_RESULTS["fetch_user_info"], (
            f"{lookup} is not given what fetch_user_info returned; {message}"
        )
    assert run.value["churn"] == OTHER_CHURN, (
        f"the prediction is not made of what the lookups returned; {message}"
    )


def assert_delays(task_run: TaskRun, seconds: list[float], message: str) -> None:
    """Check how long the task run waited, by its declaration, before each further attempt."""
    states = task_run.api.get("/task_run_states/", task_run_id=task_run.data["id"])
    delays = [
        (
            parse_time(state["state_details"]["scheduled_time"]) - parse_time(state["timestamp"])
        ).total_seconds()
        for state in states
        if state["name"] == "AwaitingRetry"
    ]
    assert [round(delay, 1) for delay in delays] == [round(delay, 1) for delay in seconds], (
        f"{task_run.task} waited {delays} s between its attempts, not {seconds}; {message}"
    )


@dataclass
class Served:
    """A flow that a process serves: its deployment, the API, and the process itself."""

    api: Api
    deployment: dict[str, Any]
    process: subprocess.Popen[bytes]
    log: Path


def await_served(api: Api, deployment: str, process: subprocess.Popen[bytes], log: Path) -> Served:
    """Return what the process serves, once its deployment, which has this name, is ready."""
    name = f"user-flow/{deployment}"
    idea = f"{name} is served, by .serve() and under this name; {read('09')}"
    wait_until(idea, lambda: goes_on(process, log) and api.is_ready(name), 60)
    found = api.find_deployment(name)
    assert found
    return Served(api, found, process, log)


def goes_on(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Return that the process, which is lesson 09 and has this log, has not ended, or fail."""
    assert process.poll() is None, f"serving ended: {log.read_text()}; {read('09')}"
    return True


@contextmanager
def served_flow(
    api: Api, script: Path, folder: Path, stop: int = signal.SIGTERM, **settings: str
) -> Iterator[Served]:
    """Run lesson 09, `script`, on the API's server during the block, once its flow is served."""
    log = folder / "serve.log"
    command = [sys.executable, str(script)]
    with background(command, log, stop, PREFECT_API_URL=api.url, **settings) as process:
        yield await_served(api, "user-deployment", process, log)
