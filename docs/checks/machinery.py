"""What the checks share: programs with a clean environment, servers, changed copies of lessons."""

import atexit
import io
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pexpect  # type: ignore[import-untyped]
import psutil
import requests
from recorded import wait_until

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("[01][0-9]_*.py"))
NAME = "user-flow/user-deployment"  # what lesson 09 serves
ENDS = ("Completed", "Failed", "Crashed", "Cancelled")


def script(number: str) -> Path:
    """Return the path of the lesson with this number, such as "04"."""
    (path,) = ROOT.glob(f"{number}_*.py")
    return path


def replace_each(text: str, *changes: tuple[str, str]) -> str:
    """Return the text with each (old, new) text replaced; fail if an old is missing."""
    for old, new in changes:
        assert old in text, f"no {old!r} in\n{text}"
        text = text.replace(old, new)
    return text


def changed_copy(source: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """Copy a file into the folder with each (old, new) text replaced."""
    copy = folder / source.name
    copy.write_text(replace_each(source.read_text("utf-8"), *changes), encoding="utf-8")
    return copy


def free_port() -> int:
    """Return a port that is free now, below those that the system gives to others meanwhile."""
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port


def environment(**settings: str) -> dict[str, str]:
    """Return the environment without settings of Prefect and pytest, and proxies, but with these.

    The programs that are installed beside this Python come first.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "PYTEST_")) and not name.lower().endswith("_proxy")
    }
    home = os.environ.get("PREFECT_HOME", tempfile.gettempdir())  # the tests' own
    return {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PREFECT_HOME": home,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        **settings,
    }


def run(
    *words: str | Path,
    program: Sequence[str] = (sys.executable,),
    cwd: Path = ROOT,
    **settings: Any,
) -> subprocess.CompletedProcess[str]:
    """Run Python, or another program, with these words; return exit code, stdout and stderr."""
    return subprocess.run(
        [*program, *map(str, words)],
        check=False,
        cwd=cwd,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
    )


def open_terminal(command: str, cwd: Path = ROOT, **settings: Any) -> Any:
    """Start a shell's command in a terminal, as a person does; return the `pexpect.spawn`."""
    known = environment(TERM="xterm", **settings)
    known.pop("CI", None)  # Prefect asks and prints less there
    terminal = pexpect.spawn(
        "bash",
        ["-c", command],
        cwd=cwd,
        env=known,
        dimensions=(50, 100),
        encoding="utf-8",
        timeout=600,
    )
    terminal.logfile_read = io.StringIO()
    return terminal


def read_terminal(terminal: Any) -> str:
    """Wait until a command in a terminal ends; return what it has printed, without colors."""
    terminal.expect(pexpect.EOF)
    text = terminal.logfile_read.getvalue().replace("\r\n", "\n")
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\].*?(\x07|\x1b\\)", "", text)


def launch(
    *command: str | Path,
    log: Path,
    is_ready: Callable[[], object] = lambda: True,
    cwd: Path = ROOT,
    **settings: Any,
) -> psutil.Popen:
    """Start a command, with a process group and a log, and return it once it is ready."""
    with log.open("ab") as output:
        process = psutil.Popen(
            command,
            cwd=cwd,
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def goes_on_and_is_ready() -> object:
        assert process.poll() is None, f"{command} has ended: {log.read_text(encoding='utf-8')}"
        return is_ready()

    try:
        wait_until(f"{command} is ready", goes_on_and_is_ready, 300)
    except BaseException:  # a time limit of pytest, for one
        end(process)
        raise
    return process


def end(process: psutil.Popen) -> None:
    """Terminate the process, wait for it, and kill what is left of it and its children."""
    left: list[psutil.Process] = [process]
    with suppress(psutil.NoSuchProcess):
        left += process.children(recursive=True)
        process.terminate()
        psutil.wait_procs([process], 20)
    for each in left:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


@contextmanager
def background(*command: str | Path, **options: Any) -> Iterator[psutil.Popen]:
    """Run a command during the block: see `launch` and `end`."""
    process = launch(*command, **options)
    try:
        yield process
    finally:
        end(process)


@dataclass
class Server:
    """A Prefect server in a process of its own; its database and port outlive a restart."""

    home: Path
    settings: dict[str, Any] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: psutil.Popen = field(init=False)

    @property
    def site(self) -> str:
        """The address of its web page."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        """The URL of its API."""
        return f"{self.site}/api"

    def start(self) -> None:
        """Start it, and return when it answers."""
        command = [sys.executable, "-m", "prefect", "server", "start", f"--port={self.port}"]
        options = {"log": self.home / "server.log", "is_ready": self.is_up, **self.settings}
        self.process = launch(*command, PREFECT_HOME=str(self.home), **options)

    def is_up(self) -> bool:
        """Return whether it answers."""
        with suppress(requests.RequestException):
            return requests.get(f"{self.api_url}/health", timeout=5).ok
        return False

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Return the JSON of the API's answer; while SQLite is busy, ask again."""
        login = self.settings.get("PREFECT_SERVER_API_AUTH_STRING", "").split(":")
        auth = (login[0], login[1]) if len(login) == 2 else None

        def answer() -> list[requests.Response]:
            url = self.api_url + path
            response = requests.request(method, url, json=body, auth=auth, timeout=60)
            return [response] if response.status_code != 503 else []

        (response,) = wait_until(f"{method} {path} is answered", answer, 90)
        assert response.ok, f"{method} {path} returned {response.status_code}: {response.text}"
        return response.json() if response.content else None

    def deploy(self, name: str = NAME) -> str:
        """Make the deployment FLOW/DEPLOYMENT, which nothing serves; return its id.

        Its flow takes a user_id and a day.
        """
        flow, deployment = name.split("/")
        body = {"name": deployment, "flow_id": self.ask("POST", "/flows/", name=flow)["id"]}
        types = {"user_id": {"type": "integer"}, "day": {"type": "string"}}
        schema = {"type": "object", "properties": types}
        return str(self.ask("POST", "/deployments/", **body, parameter_openapi_schema=schema)["id"])

    def deployment(self, name: str = NAME) -> Any:
        """Return the deployment FLOW/DEPLOYMENT as the API shows it."""
        return self.ask("GET", f"/deployments/name/{name}")

    def trigger(self, name: str = NAME, **parameters: Any) -> str:
        """Trigger the deployment FLOW/DEPLOYMENT; return the id of its flow run."""
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        return str(self.ask("POST", path, parameters=parameters)["id"])

    def state(self, flow_run_id: str) -> str:
        """Return the name of the flow run's state."""
        return str(self.ask("GET", f"/flow_runs/{flow_run_id}")["state_name"])

    def wait_for(self, flow_run_id: str, *names: str) -> str:
        """Return the name of the flow run's state once it is one of these."""
        what = f"flow run {flow_run_id} is {' or '.join(names)}"
        return wait_until(what, lambda: {self.state(flow_run_id)} & {*names}, 240).pop()

    def stop(self) -> None:
        """End it, unless it has ended."""
        end(self.process)


@cache
def migrated_database() -> Path:
    """Return an empty database with all tables, whose making takes half of a server's start."""
    home = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, home)
    made = run("-m", "prefect", "server", "database", "upgrade", "-y", PREFECT_HOME=home)
    assert made.returncode == 0, made.stderr
    return home / "prefect.db"


@contextmanager
def server(**settings: str) -> Iterator[Server]:
    """Run a Prefect server with these settings and a home of its own during the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        running = Server(Path(home), settings)
        # Its web page asks port 4200 otherwise, whatever the server's own port is.
        running.settings["PREFECT_SERVER_UI_API_URL"] = running.api_url
        shutil.copy(migrated_database(), home)
        running.start()
        try:
            yield running
        finally:
            running.stop()


def serving(
    at: Server, path: Path, log: Path, name: str = NAME, words: Sequence[str] = (), **options: Any
) -> AbstractContextManager[psutil.Popen]:
    """Run a program that serves, such as lesson 09, during the block, once it polls this server.

    The log must be a new file. The options are those of `launch`, and further settings.
    """

    def polls() -> bool:  # another process may have made the deployment READY
        return "being served" in log.read_text() and at.deployment(name)["status"] == "READY"

    options |= {"PREFECT_RUNNER_POLL_FREQUENCY": "1", "PREFECT_API_URL": at.api_url}
    return background(sys.executable, path, *words, log=log, is_ready=polls, **options)
