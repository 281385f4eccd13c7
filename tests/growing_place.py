"""What a reader of "Growing past one machine" has: a folder, terminals, perhaps PostgreSQL."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support import (
    PAGE,
    ROOT,
    SCRIPTS,
    changed_copy,
    clean_environment,
    free_port,
    run_program,
    seconds_scaled,
    wait_until,
)

PART = "## Growing past one machine"
READ = 'see "Growing past one machine" in LEARNINGS.md'

# The shell blocks that the tests run, each by a text that is in no other one.
SHELL = {
    "on dask": "python on_dask.py",
    "scheduler": "dask scheduler",
    "worker": "dask worker",
    "on scheduler": "python on_scheduler.py",
    "train": "python train.py",
    "many users": "python many_users.py",
    "deploy": "python deploy_user_flow.py",
    "worker 1": "--name worker-1",
    "worker 2": "--name worker-2",
    "trigger": "user_id=102 --wait",
    "rescue": "python rescue_runs.py",
    "database": "CREATE ROLE",
    "server": "prefect server start",
    "client": "prefect work-pool ls",
    "cloud": "PREFECT_API_KEY",
}


def read_part() -> str:
    """Return the part of the page, up to the next heading of its level."""
    text = PAGE.read_text(encoding="utf-8")
    assert PART in text, f"{PAGE.name} has no part {PART[3:]!r}"
    return PART + re.split(r"(?m)^## ", text.split(PART, 1)[1])[0]


def python_blocks() -> dict[str, str]:
    """Return the Python blocks of the part by the file name in their first line."""
    blocks = re.findall(r"(?ms)^```python[^\n]*\n(.*?)^```", read_part())
    return {re.match(r"# (\w+\.py): ", block)[1]: block for block in blocks}  # type: ignore[index]


def shell_blocks() -> list[str]:
    """Return the shell blocks of the part, in order."""
    return re.findall(r"(?ms)^```bash\n(.*?)^```", read_part())


def shell(name: str, *changes: tuple[str, str]) -> str:
    """Return the shell block of this name in SHELL, with every (old, new) text replaced."""
    (block,) = [block for block in shell_blocks() if SHELL[name] in block]
    return changed(block, *changes)


def changed(block: str, *changes: tuple[str, str]) -> str:
    """Return the block with every (old, new) text replaced; fail if an old one is not there."""
    for old, new in changes:
        assert old in block, f"{old!r} is not in the block:\n{block}"
        block = block.replace(old, new)
    return block


@dataclass
class Folder:
    """A copy of the repository's scripts, with short seconds, and the terminals opened in it."""

    path: Path
    environment: dict[str, str]
    logs: list[Path] = field(default_factory=list)

    def command(self, line: str) -> list[str]:
        """Return a line of a shell block as the command that this Python runs."""
        words = shlex.split(line)
        programs = {
            "python": [sys.executable],
            "prefect": [sys.executable, "-m", "prefect"],
        }
        return [*programs.get(words[0], [words[0]]), *words[1:]]

    def lines(self, block: str) -> list[str]:
        """Return the commands of a shell block; its exports become part of the environment."""
        commands = []
        for line in block.strip().splitlines():
            if line.startswith("export "):
                name, value = shlex.split(line)[1].split("=", 1)
                self.environment[name] = value
            else:
                commands.append(line)
        return commands

    def run(self, block: str, *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a shell block, each line in turn, and return the end of the last one."""
        for line in self.lines(block):
            result = run_program(self.command(line), self.path, self.environment, seconds=timeout)
            assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
        return result

    @contextmanager
    def terminal(
        self, block: str, *, stop: int = signal.SIGTERM
    ) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """Run a shell block that does not end by itself; give its process and its output."""
        (line,) = self.lines(block)
        log = self.path / f"terminal-{len(self.logs)}.log"
        self.logs.append(log)
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(line),
                cwd=self.path,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process, log
        finally:
            if process.poll() is None:
                process.send_signal(stop)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def make_folder(path: Path, blocks: dict[str, str], factor: float, **settings: str) -> Folder:
    """Copy the scripts into `path`, their seconds times `factor`, with the blocks beside them."""
    for name in SCRIPTS:
        changed_copy(ROOT / name, path, *seconds_scaled(ROOT / name, factor))
    shutil.copy(ROOT / "pyproject.toml", path)
    for name, text in blocks.items():
        (path / name).write_text(text, encoding="utf-8")
    environment = clean_environment(
        PYTHONUNBUFFERED="1", PREFECT_HOME=str(path / "prefect-home"), **settings
    )
    environment.pop("PYTHONPATH", None)
    return Folder(path, environment)


def postgres_programs() -> Path | None:
    """Return the folder of initdb, postgres and psql, or None if they are not installed."""
    initdb = shutil.which("initdb")
    if initdb:
        return Path(initdb).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@dataclass
class Postgres:
    """A PostgreSQL server of our own, which wants a password on TCP."""

    programs: Path
    folder: Path
    port: int

    def psql(self, *arguments: str) -> str:
        """Run psql as the superuser and return what it printed."""
        return subprocess.run(
            [
                str(self.programs / "psql"),
                f"--host={self.folder}",
                f"--port={self.port}",
                "--username=postgres",
                "--no-psqlrc",
                "--set=ON_ERROR_STOP=1",
                *arguments,
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout

    def is_up(self) -> bool:
        """Return whether it answers."""
        try:
            return bool(self.psql("--command=SELECT 1"))
        except subprocess.CalledProcessError:
            return False


@contextmanager
def postgres(programs: Path) -> Iterator[Postgres]:
    """Run a PostgreSQL server in a temporary folder during the block."""
    # It refuses to run as root.
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    user = "postgres" if root else None
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        data = folder / "data"
        subprocess.run(
            [
                str(programs / "initdb"),
                f"--pgdata={data}",
                "--username=postgres",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--no-sync",
            ],
            check=True,
            cwd=folder,
            user=user,
            stdout=subprocess.DEVNULL,
        )
        running = Postgres(programs, folder, free_port())
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    str(programs / "postgres"),
                    *("-D", str(data), "-p", str(running.port), "-k", str(folder)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                ],
                cwd=folder,
                user=user,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until("PostgreSQL answers", running.is_up, 30)
            yield running
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
