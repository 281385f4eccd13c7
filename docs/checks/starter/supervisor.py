"""A small systemd: it starts, stops and restarts a program as its unit file says."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from machinery import ROOT, environment

DEPLOY = ROOT / "docs/starter/deploy"
BIN = "/opt/pipelines/.venv/bin/"


def read_unit(name: str) -> dict[str, list[str]]:
    """Return the unit's settings; one that may stand there several times has several values."""
    unit: dict[str, list[str]] = {}
    for line in (DEPLOY / name).read_text(encoding="utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            unit.setdefault(key, []).append(value)
    return unit


def read_environment(unit: dict[str, list[str]]) -> dict[str, str]:
    """Return the variables of the unit's Environment lines."""
    words = [word for line in unit.get("Environment", []) for word in shlex.split(line)]
    return dict(word.split("=", 1) for word in words)


class Service:
    """One unit, run in a folder; `settings` are what its environment file would hold."""

    def __init__(self, name: str, folder: Path, **settings: str) -> None:
        """Read the unit; start nothing yet."""
        self.unit = read_unit(name)
        self.folder, self.log = folder, folder / f"{name}.log"
        self.environment = environment(**read_environment(self.unit) | settings)
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self.keep_running)

    def value(self, key: str, default: str) -> str:
        """Return the last value of the setting, or systemd's default."""
        return self.unit.get(key, [default])[-1]

    def start(self) -> None:
        """Start the program, and start it again whenever the unit says so."""
        self.launch()
        self.thread.start()

    def launch(self) -> None:
        """Run ExecStart in a process group of its own."""
        program, *arguments = shlex.split(self.value("ExecStart", ""))
        assert program == f"{BIN}python", f"this supervisor does not start {program}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def keep_running(self) -> None:
        """Restart the program as the unit says, until it is stopped."""
        while True:
            code = self.process.wait()
            restart = self.value("Restart", "no")
            if restart != "always" and not (restart == "on-failure" and code):
                break
            self.stopping.wait(float(self.value("RestartSec", "0.1")))
            with self.lock:
                if self.stopping.is_set():
                    break
                self.launch()

    def stop(self) -> int:
        """Stop the program by the unit's signal; return its exit code, negative for a signal."""
        with self.lock:
            self.stopping.set()
        sent = signal.Signals[self.value("KillSignal", "SIGTERM")]
        to_all = self.value("KillMode", "control-group") == "control-group"
        with suppress(ProcessLookupError):
            (os.killpg if to_all else os.kill)(self.process.pid, sent)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(float(self.value("TimeoutStopSec", "90")))
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.thread.join()
        return self.process.returncode
