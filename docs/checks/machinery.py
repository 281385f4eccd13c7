"""What the checks share: programs with a clean environment, servers, changed copies of lessons."""

import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
from recorded import wait_until

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("[01][0-9]_*.py"))
NAME = "user-flow/user-deployment"  # what lesson 09 serves


def script(number: str) -> Path:
    """Return the path of the lesson with this number, such as "04"."""
    (path,) = ROOT.glob(f"{number}_*.py")
    return path


def changed_copy(source: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """Copy a file into the folder with each (old, new) text replaced; fail if an old is missing."""
    text = source.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, f"{source.name} has no {old!r}"
        text = text.replace(old, new)
    copy = folder / source.name
    copy.write_text(text, encoding="utf-8")
    return copy


def free_port() -> int:
    """Return a port that is free now, below those that the system gives to others meanwhile."""
    while True:
        port = random.randint(20000, 32000)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port


def environment(**settings: str) -> dict[str, str]:
    """Return the environment without Prefect's settings and proxies, but with these settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFECT_") and not name.lower().endswith("_proxy")
    }
    home = os.environ.get("PREFECT_HOME", tempfile.gettempdir())  # the tests' own
    return {
        **kept,
        "PREFECT_HOME": home,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
        **settings,
    }


def run(
    *words: str | Path, cwd: Path = ROOT, seconds: float = 120, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these words after it; return its exit code, stdout and stderr."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        check=False,
        cwd=cwd,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=seconds,
    )


@contextmanager
def terminal(log: Path) -> Iterator[int]:
    """Yield a terminal, as a file descriptor for stdout and stderr; what it shows is in the log.

    What still has it open 3 s after the block is not waited for.
    """
    shown, end = pty.openpty()
    termios.tcsetwinsize(end, (50, 100))

    def copy() -> None:
        with log.open("ab", buffering=0) as output, suppress(OSError):  # the end of a terminal
            while chunk := os.read(shown, 65536):
                output.write(chunk)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield end
    finally:
        os.close(end)
        thread.join(3)
        os.close(shown)


def read_terminal(log: Path) -> str:
    """Return what a terminal has shown, without colours."""
    text = log.read_bytes().decode().replace("\r\n", "\n")
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\].*?(\x07|\x1b\\)", "", text)


def run_in_terminal(command: str, cwd: Path = ROOT, **settings: str) -> str:
    """Run a shell's command in a terminal, as a person does; return what it shows, uncoloured."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    known = environment(PATH=path, TERM="xterm", **settings)
    known.pop("CI", None)  # Prefect asks and prints less there
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with terminal(log) as tty:
            subprocess.run(
                command,
                check=False,
                shell=True,
                cwd=cwd,
                env=known,
                stdin=tty,
                stdout=tty,
                stderr=tty,
                timeout=600,
            )
        return read_terminal(log)


@contextmanager
def background(
    *words: str | Path,
    log: Path,
    cwd: Path = ROOT,
    stop: int = signal.SIGTERM,
    tty: int | None = None,
    **settings: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python with these words during the block, in a process group of its own.

    It writes to the log, or to the terminal `tty`. At the end it gets the signal `stop`; what is
    left of it and its children after 20 s is killed.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=cwd,
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=tty or output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process, stop)


def end(process: subprocess.Popen[bytes], stop: int = signal.SIGTERM) -> None:
    """Send the signal to the process, wait for it, and kill what is left of it and its children."""
    children: Sequence[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        process.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    if process.poll() is None:
        process.kill()
    process.wait()


@dataclass
class Server:
    """A Prefect server in a process of its own; its database and port outlive a restart."""

    home: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

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
        log = self.home / "server.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", f"--port={self.port}"],
                cwd=ROOT,
                env=environment(PREFECT_HOME=str(self.home), **self.settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until("the server answers", lambda: self.answers(log), 300)

    def answers(self, log: Path) -> bool:
        """Return whether it answers; fail if it has ended."""
        assert self.process
        assert self.process.poll() is None, log.read_text(encoding="utf-8")
        with suppress(requests.RequestException):
            return requests.get(f"{self.api_url}/health", timeout=5).ok
        return False

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Return the JSON of the API's answer; while SQLite is busy, ask again."""

        def answer() -> requests.Response | None:
            response = requests.request(method, self.api_url + path, json=body, timeout=60)
            return response if response.ok else None

        return wait_until(f"{method} {path} is answered", answer, 90).json()

    def state(self, flow_run_id: str) -> str:
        """Return the name of the flow run's state."""
        return str(self.ask("GET", f"/flow_runs/{flow_run_id}")["state_name"])

    def stop(self, by: int = signal.SIGTERM) -> None:
        """End it by this signal."""
        if self.process:
            end(self.process, by)
            self.process = None


@contextmanager
def server(**settings: str) -> Iterator[Server]:
    """Run a Prefect server with these settings and a home of its own during the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        running = Server(Path(home), settings)
        # Its web page asks port 4200 otherwise, whatever the server's own port is.
        running.settings.setdefault("PREFECT_SERVER_UI_API_URL", running.api_url)
        try:
            running.start()
            yield running
        finally:
            running.stop()


@contextmanager
def serving(
    api_url: str,
    path: Path,
    log: Path,
    name: str = NAME,
    stop: int = signal.SIGTERM,
    tty: int | None = None,
    **more: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run lesson 09, or a copy of it, on this server during the block, once it is ready."""
    settings: dict[str, Any] = {
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        **more,
        "PREFECT_API_URL": api_url,
    }
    with background(path, log=log, stop=stop, tty=tty, **settings) as process:

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            with suppress(requests.RequestException):
                answer = requests.get(f"{api_url}/deployments/name/{name}", timeout=10)
                return answer.ok and answer.json()["status"] == "READY"
            return False

        wait_until(f"{path.name} serves {name}", is_ready, 60)
        yield process
