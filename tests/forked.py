"""Scripts that run as by `python NN_....py`, without the start of Python and the imports.

Each runs in a process of its own, with its arguments, environment and exit code. That process is
forked from one that has imported `requests`, which takes most of the time of a short script.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import wait
from pathlib import Path

from support import ENVIRONMENT, ROOT, go_on, patience, run_script, too_late

# A process may only be started, and its end only be read, by one thread at a time.
ONE_BY_ONE = threading.Lock()

SECONDS = 60


def run_forked(path: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Return what `run_script` returns, sooner; on Windows, which has no forks, in its time."""
    if sys.platform == "win32":
        return run_script(path, *arguments, **settings)
    command = [str(path), *arguments]
    go_on(" ".join(command))
    with tempfile.TemporaryDirectory() as name:
        outputs = [Path(name) / "stdout", Path(name) / "stderr"]
        process = multiprocessing.get_context("forkserver").Process(
            target=be_script, args=(command, {**ENVIRONMENT, **settings}, outputs)
        )
        with ONE_BY_ONE:
            process.start()
        is_over = patience(SECONDS)
        while not (ended := wait([process.sentinel], 1)) and not is_over():
            pass
        if not ended:
            process.kill()
        with ONE_BY_ONE:
            process.join()
        if not ended:
            raise too_late(command, SECONDS)
        code = process.exitcode
        assert code is not None
        texts = [output.read_text(encoding="utf-8") for output in outputs]
        return subprocess.CompletedProcess(command, code, *texts)


def be_script(command: list[str], environment: dict[str, str], outputs: list[Path]) -> None:
    """Run the script in this process as its program, printing to the outputs."""
    for number, output in enumerate(outputs, start=1):
        with output.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def start_early() -> None:
    """Start the process that the scripts are forked from."""
    if sys.platform != "win32":
        from multiprocessing import forkserver

        # Also pytest: each process imports what the main program does when it is imported.
        multiprocessing.get_context("forkserver").set_forkserver_preload(["requests", "pytest"])
        forkserver.ensure_running()
