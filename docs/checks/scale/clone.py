"""The reader of docs/growing: a clone with short seconds, the page's blocks, PostgreSQL."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO
from uuid import UUID

import psutil
from machinery import ROOT, SCRIPTS, end, environment, free_port
from pages import find_stated
from recorded import FlowRun, read_ended, wait_until

GROWING = ROOT / "docs" / "growing"
PAGE = (GROWING / "README.md").read_text(encoding="utf-8")
stated = partial(find_stated, PAGE)
BLOCKS: list[str] = re.findall(r"(?ms)^```bash\n(.*?)^```", PAGE)


def block(text: str, *changes: tuple[str, str]) -> str:
    """Return the page's shell block that has this text, with each (old, new) text replaced."""
    found = [each for each in BLOCKS if text in each]
    assert len(found) == 1, f"{len(found)} shell blocks of docs/growing/README.md have {text!r}"
    commands = found[0]
    for old, new in changes:
        assert old in commands, f"no {old!r} in the shell block\n{commands}"
        commands = commands.replace(old, new)
    return commands


def recorded(output: str) -> FlowRun:
    """Return the record of the flow run that is named in the output, logs of workers included."""
    flow_run_id = UUID(re.findall(r"/runs/flow-run/([0-9a-f-]{36})", output)[0])

    def read() -> FlowRun | None:
        run = read_ended(flow_run_id, 180)
        said = [log for log in run.logs if log.message.startswith("Finished in state")]
        return run if {it.id for it in run.task_runs} <= {log.task_run_id for log in said} else None

    return wait_until("each task run has its last log record", read)


@dataclass
class Clone:
    """A clone of the repository in which somebody types commands, and what they have exported."""

    folder: Path
    exported: dict[str, str]

    def change(self, file: str, pattern: str, new: str) -> None:
        """Replace what the pattern finds in a file; fail if it finds nothing."""
        path = self.folder / file
        text, count = re.subn(f"(?m){pattern}", new, path.read_text(encoding="utf-8"))
        assert count, f"{file} has no {pattern!r}"
        path.write_text(text, encoding="utf-8")

    def start(self, commands: str, stdout: IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the commands in a shell, in the clone's folder, with this Python first in PATH."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env=environment(PATH=path, **self.exported),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def run(self, commands: str, exits: int = 0, seconds: float = 240) -> tuple[str, str]:
        """Run the commands to their end; return stdout and stderr; fail on another exit code."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            process = self.start(commands, stdout, stderr)
            try:
                process.wait(seconds)
            finally:
                end(process)
                for file in (stdout, stderr):
                    file.seek(0)
                texts = stdout.read().decode(), stderr.read().decode()
        told = "\n".join([commands, *texts])
        assert process.returncode == exits, f"exit code {process.returncode}, not {exits}: {told}"
        return texts

    @contextmanager
    def terminal(self, commands: str, ready: str) -> Iterator[tuple[psutil.Process, Path]]:
        """Run commands that do not end; give their process and its output, once it has `ready`."""
        log = Path(tempfile.mkstemp(suffix=".log", dir=self.folder)[1])
        with log.open("ab") as output:
            process = self.start(commands, output, output)

        def is_ready() -> bool:
            assert process.poll() is None, f"it has ended: {commands}\n{log.read_text()}"
            return ready in log.read_text()

        try:
            wait_until(f"{commands} prints {ready!r}", is_ready, 90)
            yield psutil.Process(process.pid), log
        finally:
            end(process)


def make_clone(folder: Path, factor: float, **exported: str) -> Clone:
    """Copy the lessons and docs/growing; only seconds are changed, times this factor."""
    for name in SCRIPTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        seconds = r"(?m)(^[A-Z]+_SECONDS = |retry_delay_seconds=)(\d+)"
        text = re.sub(seconds, lambda found: f"{found[1]}{int(found[2]) * factor:g}", text)
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(GROWING, folder / "docs" / "growing")
    return Clone(folder, exported)


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs, or None if it is not installed."""
    found = [Path(path) for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[0].resolve().parent if found else None


@contextmanager
def postgres() -> Iterator[int]:
    """Run a PostgreSQL server of our own with the page's role and database; give its port."""
    programs = find_postgres()
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        port, data = free_port(), f"{folder}/data"
        if user:
            shutil.chown(folder, user)
        initdb = [f"{programs}/initdb", "-D", data, "-U", "postgres", "--no-sync"]
        subprocess.run(
            [*initdb, "--auth-local=trust", "--auth-host=scram-sha-256"],
            check=True,
            cwd=folder,
            user=user,
            stdout=subprocess.DEVNULL,
        )
        local = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        process = subprocess.Popen(
            [f"{programs}/postgres", "-D", data, "-k", folder, "-p", str(port), *local],
            cwd=folder,
            user=user,
            stderr=subprocess.DEVNULL,
        )
        ready = [f"{programs}/pg_isready", "-q", "-h", folder, "-p", str(port)]
        try:
            wait_until("PostgreSQL answers", lambda: not subprocess.call(ready))
            superuser = f"{programs}/psql -h {folder} -p {port} -U postgres"
            Clone(ROOT, {}).run(block("CREATE ROLE", ("sudo -u postgres psql", superuser)))
            yield port
        finally:
            end(process, signal.SIGINT)
