"""The console transcripts of the pages: what each command prints in a terminal, from real runs.

A block ```console has one command; ```console no-server is one without a server, by somebody who
has never run Prefect. pytest docs/checks/page/test_transcripts.py --write changed rewrites those
that differ; with --write all, also those that only differ in names, ids and times.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from machinery import ROOT, environment, free_port, read_terminal, script, serving, terminal
from pages import PAGES
from recorded import wait_until

# Prefect prints a notice of telemetry once for each user: the first transcript has it.
SEEN = {"DO_NOT_TRACK": "1"}
LOCAL = "http://127.0.0.1:4200"  # where the reader's server is
FENCE = re.compile(
    r"^```console(?P<mark> no-server)?\n\$ (?P<command>.+)\n(?P<output>(?:(?!```).*\n)*)```$",
    re.MULTILINE,
)

# What differs from run to run, and what stands for it when two outputs are compared.
CHANGING = (
    (r"(?m)^.*EventsWorker - Still processing items.*\n", ""),
    (r"\b\d\d:\d\d:\d\d(\.\d{3})?", "TIME"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "ID"),
    (r"127\.0\.0\.1:\d+", "SERVER"),
    (r"([Ff]low run ')[a-z]+(-[a-z]+)+'", r"\1NAME'"),
    # States that come and go between two looks of lesson 12.
    (r"(?m)^[a-z]+(-[a-z]+)+ is (Pending|Submitting|Running)\n", ""),
    (r"(?m)^[a-z]+(-[a-z]+)+ is ", "NAME is "),
    (r"(Task run '\w+-)[0-9a-f]{3}'", r"\1ID'"),
    (r"\b\d+\.\d s\b", "SECONDS"),
)


@dataclass(frozen=True)
class Transcript:
    """A command, and what the page says that it prints."""

    page: Path
    line: int
    command: str
    output: str
    has_server: bool

    def __str__(self) -> str:
        """Return where it is, and its command."""
        return f"{self.page.relative_to(ROOT)}:{self.line} {self.command}"

    @property
    def is_of_served_flow(self) -> bool:
        """Whether it is one of lessons 09 to 12, which talk to each other."""
        return re.match(r"python (09|1\d)_", self.command) is not None

    @property
    def is_serving(self) -> bool:
        """Whether it is lesson 09 itself, serving."""
        return self.has_server and self.command == f"python {script('09').name}"


def read_transcripts(page: Path) -> list[Transcript]:
    """Return the transcripts of the page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Transcript(
            page,
            text.count("\n", 0, found.start()) + 1,
            found["command"],
            found["output"],
            has_server=found["mark"] is None,
        )
        for found in FENCE.finditer(text)
    ]


TRANSCRIPTS = [transcript for page in PAGES for transcript in read_transcripts(page)]


def normalised(output: str) -> str:
    """Return the output with what differs from run to run taken out."""
    for pattern, replacement in CHANGING:
        output = re.sub(pattern, replacement, output)
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def run_command(command: str, site: str | None, **settings: str) -> str:
    """Return what the command prints in a terminal, with port 4200 in it."""
    if site:
        settings["PREFECT_API_URL"] = f"{site}/api"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    known = environment(PATH=path, TERM="xterm", PREFECT_CLI_PROMPT="false", **settings)
    known.pop("CI", None)  # a notice of Prefect's depends on it
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with terminal(log) as tty:
            subprocess.run(
                command.replace(LOCAL, site or LOCAL),
                check=False,
                shell=True,
                cwd=ROOT,
                env=known,
                stdin=subprocess.DEVNULL,
                stdout=tty,
                stderr=tty,
                timeout=600,
            )
        return read_terminal(log).replace(site or LOCAL, LOCAL)


def record(transcript: Transcript, site: str) -> str:
    """Return what a command prints that needs no other one: a lesson up to 08, or a program."""
    if transcript.has_server:
        return run_command(transcript.command, site, **SEEN)
    with tempfile.TemporaryDirectory() as home:  # a first run, on a slow machine
        waits = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300"}
        return run_command(transcript.command, None, PREFECT_HOME=home, **waits)


def is_flow_run(process: psutil.Process) -> bool:
    """Return whether it is the process of a flow run, and has not ended."""
    with suppress(psutil.Error):
        return "spawn_main" in " ".join(process.cmdline())
    return False


def record_served(transcripts: list[Transcript], site: str, folder: Path) -> dict[Transcript, str]:
    """Return what lessons 09 to 12 print: 09 serves while the others run, then gets Ctrl-C."""
    outputs = {}
    log = folder / "09.log"
    unended = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}
    with (
        terminal(log) as tty,
        serving(
            f"{site}/api", script("09"), log, stop=signal.SIGKILL, tty=tty, TERM="xterm", **SEEN
        ) as process,
    ):

        def all_ended() -> bool:
            # With a run under way, Ctrl-C makes Prefect say something else.
            found = requests.post(f"{site}/api/flow_runs/filter", json={"flow_runs": unended})
            left = psutil.Process(process.pid).children()
            return found.json() == [] and not any(is_flow_run(child) for child in left)

        for it in transcripts:
            if not it.is_serving:
                nobody = f"http://127.0.0.1:{free_port()}"
                outputs[it] = run_command(it.command, site if it.has_server else nobody, **SEEN)
                wait_until("the triggered flow runs end", all_ended, 120)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(120) == 0, log.read_text(encoding="utf-8")
    served = read_terminal(log).replace(site, LOCAL)
    return outputs | {it: served for it in transcripts if it.is_serving}


def rewrite(it: Transcript, output: str) -> None:
    """Write the output into the page in the place of the transcript's."""
    mark = "" if it.has_server else " no-server"
    head = f"```console{mark}\n$ {it.command}\n"
    noise, nothing = CHANGING[0]
    text = it.page.read_text(encoding="utf-8")
    text = text.replace(f"{head}{it.output}```", f"{head}{re.sub(noise, nothing, output)}```")
    it.page.write_text(text, encoding="utf-8", newline="\n")
