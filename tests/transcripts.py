"""The console transcripts of LEARNINGS.md: what each command prints, from real runs.

python tests/transcripts.py rewrites every transcript that is not what its command prints today,
apart from names, ids and times; with --all, every transcript, with the times of a quiet machine.
"""

import argparse
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from beside import cases_of, fixtures
from support import (
    PAGE,
    ROOT,
    Api,
    background,
    children_with,
    clean_environment,
    replace_environment,
    run_program,
    script_path,
    server,
    wait_until,
)

LOCAL = "http://127.0.0.1:4200"
SERVE = f"python {script_path('09').name}"

# A transcript: one command, and what it prints with a server running; or, marked so, without.
FENCE = re.compile(
    r"^```console(?P<mark> no-server)?\n\$ (?P<command>.+)\n(?P<output>[^`]*)^```$", re.MULTILINE
)

# What differs from run to run, and what stands for it when two outputs are compared.
CHANGING = (
    (r"(?m)^.*EventsWorker - Still processing items.*\n", ""),
    (r"\b\d\d:\d\d:\d\d(\.\d{3})?", "TIME"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "ID"),
    (r"127\.0\.0\.1:\d+", "SERVER"),
    (r"([Ff]low run ')[a-z]+(-[a-z]+)+'", r"\1NAME'"),
    (r"(?m)((Scheduled:?|under this key:) )[a-z]+(-[a-z]+)+$", r"\1NAME"),
    (r"(Task run '\w+-)[0-9a-f]{3}'", r"\1ID'"),
    (r"\b\d+\.\d s\b", "SECONDS"),
)


@dataclass(frozen=True)
class Transcript:
    """A command, and what the page says that it prints."""

    command: str
    output: str
    has_server: bool
    line: int

    @property
    def is_of_served_flow(self) -> bool:
        """Whether it is one of lessons 09 to 12, which talk to each other."""
        return re.search(r"python (09|1\d)_", self.command) is not None


def read_transcripts(text: str) -> list[Transcript]:
    """Return the transcripts of the page, in order."""
    return [
        Transcript(
            found["command"],
            found["output"],
            has_server=found["mark"] is None,
            line=text.count("\n", 0, found.start()) + 1,
        )
        for found in FENCE.finditer(text)
    ]


TRANSCRIPTS = read_transcripts(PAGE.read_text(encoding="utf-8"))


def shown(script: str) -> Transcript:
    """Return the first transcript of the page that runs the script by itself, with a server."""
    own = f"python {script}"
    return next(it for it in TRANSCRIPTS if it.command.startswith(own) and it.has_server)


def wanted_transcripts(items: list[pytest.Item]) -> list[Transcript]:
    """Return the transcripts that these tests look at, in the order of the page."""
    found: set[Transcript] = set()
    for item in items:
        if isinstance(item, pytest.Function) and "recorded" in fixtures(item):
            case = cases_of(item)
            of_script = [shown(case["script"])] if "script" in case else TRANSCRIPTS
            found.update([case["transcript"]] if "transcript" in case else of_script)
    return [transcript for transcript in TRANSCRIPTS if transcript in found]


def normalised(output: str) -> str:
    """Return the output with what differs from run to run taken out."""
    for pattern, replacement in CHANGING:
        output = re.sub(pattern, replacement, output)
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def run_command(command: str, api_url: str | None, home: Path) -> str:
    """Return what the command prints, stdout and stderr as they come, with port 4200 in it."""
    settings = {
        "PREFECT_HOME": str(home),
        "PYTHONUNBUFFERED": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    site = LOCAL
    if api_url:
        settings["PREFECT_API_URL"] = api_url
        site = api_url.removesuffix("/api")
    inner = re.compile(r"\$\((.+?)\)")
    command = inner.sub(lambda found: run_command(found[1], api_url, home).strip(), command)
    python, *words = shlex.split(command.replace(LOCAL, site))
    assert python == "python", f"a transcript runs a lesson, not {command!r}"
    for _ in range(10):
        command_line, environment = [sys.executable, *words], clean_environment(**settings)
        merged = subprocess.STDOUT  # stdout and stderr as they come
        output = run_program(command_line, ROOT, environment, seconds=180, stderr=merged).stdout
        # The other runs keep SQLite busy, and lessons 10 and 11 do not try again by themselves.
        if "answers 503" not in output:
            break
    return output.replace(site, LOCAL)


def record_served(transcripts: list[Transcript], api: Api, home: Path) -> dict[Transcript, str]:
    """Return what lessons 09 to 12 print: 09 serves while the others run, then gets Ctrl-C."""
    outputs: dict[Transcript, str] = {}
    log = home / "09.log"
    settings: dict[str, Any] = {"PREFECT_API_URL": api.url, "PREFECT_HOME": str(home)}
    command = [sys.executable, script_path("09").name]

    def is_ready() -> bool:
        deployment = api.find_deployment("user-flow/user-deployment")
        return deployment is not None and deployment["status"] == "READY"

    with background(command, log, stop=signal.SIGINT, **settings) as process:

        def all_ended() -> bool:
            # With a run under way, Ctrl-C makes Prefect say something else.
            if children_with("spawn_main", process):  # the process outlives the last record
                return False
            time.sleep(0.5)  # Prefect notices the end, and the server has enough to do
            ended = re.findall(r"Flow run '.*' - Finished in state", log.read_text("utf-8"))
            deployed = {"deployments": {"name": {"any_": ["user-deployment"]}}}
            return len(ended) == len(api.flow_runs(**deployed))

        wait_until("lesson 09 serves its flow", is_ready, 60)
        for transcript in transcripts:
            if transcript.is_of_served_flow and transcript.command != SERVE:
                outputs[transcript] = run_command(transcript.command, api.url, home)
                wait_until("the triggered flow run ends", all_ended, 60)
    stopped = process.returncode == 0 or sys.platform == "win32"  # where it is killed
    assert stopped, log.read_text(encoding="utf-8")
    site = api.url.removesuffix("/api")
    for transcript in transcripts:
        if transcript.command == SERVE:
            outputs[transcript] = log.read_text(encoding="utf-8").replace(site, LOCAL)
    return outputs


def record_lessons(
    transcripts: list[Transcript], api: Api, home: Path, at_once: int = 5
) -> dict[Transcript, str]:
    """Return what lessons 01 to 08 print, run a few at a time: most of them sleep."""
    # Longest first: what starts a server, then the later lessons, which sleep longest.
    lessons = sorted(
        (transcript for transcript in transcripts if not transcript.is_of_served_flow),
        key=lambda it: (it.has_server, -it.line),
    )
    with ThreadPoolExecutor(at_once) as pool:
        runs = {
            lesson: pool.submit(
                run_command, lesson.command, api.url if lesson.has_server else None, home
            )
            for lesson in lessons
        }
        return {lesson: run.result() for lesson, run in runs.items()}


def main() -> None:
    """Rewrite the transcripts that differ from what is printed now."""
    parser = argparse.ArgumentParser(description="Renew the transcripts of LEARNINGS.md.")
    parser.add_argument("--all", action="store_true", help="also where only names and times differ")
    every = parser.parse_args().all
    replace_environment(clean_environment())
    with server() as running:
        place = (TRANSCRIPTS, Api(running.api_url), running.home)
        recorded = record_lessons(*place, at_once=1) | record_served(*place)
    outputs = [recorded[transcript] for transcript in TRANSCRIPTS]
    noise, nothing = CHANGING[0]
    renewed = iter(zip(TRANSCRIPTS, outputs, strict=True))

    def renew(fence: re.Match[str]) -> str:
        transcript, output = next(renewed)
        if not every and normalised(output) == normalised(transcript.output):
            return fence[0]
        print(f"Rewritten: {transcript.command}")
        head = fence[0].partition("\n")[0]
        return f"{head}\n$ {transcript.command}\n{re.sub(noise, nothing, output)}```"

    PAGE.write_text(
        FENCE.sub(renew, PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n"
    )


if __name__ == "__main__":
    main()
