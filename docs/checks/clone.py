"""Somebody who types the pages' commands, such as in a clone with short seconds; PostgreSQL."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from machinery import ROOT, SCRIPTS, background, free_port, run
from pages import RUN_ID, find_block, shell_blocks
from recorded import FlowRun, read_ended, wait_until

GROWING = ROOT / "docs" / "growing"
BLOCKS = shell_blocks(*GROWING.glob("*.md"))
block = partial(find_block, BLOCKS)
SHELL = ("bash", "-euo", "pipefail", "-c")

needs_postgres = pytest.mark.skipif(
    not shutil.which("pg_virtualenv"), reason="no PostgreSQL (on Debian: postgresql)"
)


def recorded(output: str) -> FlowRun:
    """Return the record of the flow run that is named in the output, logs of workers included."""
    flow_run_id = UUID(RUN_ID.findall(output)[0])

    def read() -> FlowRun | None:
        found = read_ended(flow_run_id, 180)
        said = [log.task_run_id for log in found.logs if log.message.startswith("Finished in")]
        return found if {it.id for it in found.task_runs} <= {*said} else None

    return wait_until("each task run has its last log record", read)


@dataclass
class Clone:
    """A folder in which somebody types commands, and what they have exported."""

    folder: Path
    exported: dict[str, str]

    def change(self, file: str, pattern: str, new: str) -> None:
        """Replace what the pattern finds in a file; fail if it finds nothing."""
        path = self.folder / file
        text, count = re.subn(f"(?m){pattern}", new, path.read_text(encoding="utf-8"))
        assert count, f"{file} has no {pattern!r}"
        path.write_text(text, encoding="utf-8")

    def run(self, commands: str, exits: int = 0) -> tuple[str, str]:
        """Run the commands to their end; return stdout and stderr; fail on another exit code."""
        ran = run(commands, program=SHELL, cwd=self.folder, **self.exported)
        printed = (ran.stdout + ran.stderr)[-2000:]
        assert ran.returncode == exits, f"{commands}\nexit {ran.returncode}: {printed}"
        return ran.stdout, ran.stderr

    def terminal(self, commands: str, ready: str) -> AbstractContextManager[psutil.Popen]:
        """Run commands that do not end during the block, once they have printed `ready`."""
        log = Path(tempfile.mkstemp(suffix=".log", dir=self.folder)[1])
        options: Any = {"is_ready": lambda: ready in log.read_text(), "cwd": self.folder}
        return background(*SHELL, commands, log=log, **options, **self.exported)


def make_clone(folder: Path, factor: float = 0.3, **exported: str) -> Clone:
    """Copy the lessons and docs/growing; only seconds are changed, times this factor.

    Without it tasks are so short that they end before the next one starts.
    """
    for name in SCRIPTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        seconds = r"(?m)(^[A-Z]+_SECONDS = |retry_delay_seconds=)(\d+)"
        text = re.sub(seconds, lambda found: f"{found[1]}{int(found[2]) * factor:g}", text)
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(GROWING, folder / "docs" / "growing")
    return Clone(folder, exported)


@contextmanager
def postgres() -> Iterator[int]:
    """Run a PostgreSQL server with the role and the database of README.md; give its port.

    Debian's pg_virtualenv makes a temporary one, for root as well (pytest-postgresql cannot).
    """
    port = free_port()
    cluster = ["pg_virtualenv", "-t", "-o", f"port={port}", "-o", "fsync=off"]
    create = block("CREATE ROLE", ("sudo -u postgres ", ""))
    with subprocess.Popen(
        [*cluster, "bash", "-ec", f"{create}\necho created; cat"],  # cat ends with its input
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert "created\n" in (process.stdout or ()), "PostgreSQL does not start"
        try:
            yield port
        finally:
            process.communicate()
