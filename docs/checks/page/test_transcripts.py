"""The console transcripts of the pages, and the seconds and pictures of the lessons' runs.

A block ```console has one command; ```console no-server is one without a server, by somebody who
has never run Prefect. --write changed rewrites those that differ; --write all also those that only
differ in names, ids and times.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psutil
import pytest
from machinery import SCRIPTS, Server, open_terminal, read_terminal, server
from pages import (
    CHANGING,
    LEARNINGS,
    PAGES,
    RUN_ID,
    SECTIONS,
    check_pictures,
    map_rows,
    normalized,
    work_seconds,
)
from prefect.settings import PREFECT_API_URL, temporary_settings
from recorded import FlowRun, read_ended, wait_until

pytestmark = [
    pytest.mark.usefixtures("harness"),
    pytest.mark.timeout(900),  # most of it is waiting, on a busy machine
]

# Seconds that a transcript may show more than the work took: one of a busy machine misleads.
TOLERANCE = 0.9
LOCAL = "http://127.0.0.1:4200"  # where the reader's server is


class Transcript(NamedTuple):
    """A command, and what the page says that it prints."""

    page: Path
    no_server: str  # the mark of the block, or ""
    command: str
    output: str


BLOCK = r"(?m)^```console(| no-server)\n\$ (.+)\n((?:(?!```).*\n)*)```$"
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
TRANSCRIPTS = [Transcript(it, *found) for it in PAGES for found in re.findall(BLOCK, TEXTS[it])]
# Those of lessons 09 to 12, which talk to each other.
SERVED = [it for it in TRANSCRIPTS if re.match(r"python (09|1\d)_", it.command)]

Print = Callable[[Transcript], str]
read_once = cache(read_ended)


def run_command(command: str, site: str | None, **settings: Any) -> str:
    """Return what the command prints in a terminal, with port 4200 in it."""
    if site:
        settings["PREFECT_API_URL"] = f"{site}/api"
    command = command.replace(LOCAL, site or LOCAL)
    printed = read_terminal(open_terminal(command, PREFECT_CLI_PROMPT="false", **settings))
    return printed.replace(site or LOCAL, LOCAL)


def runs_of(it: Transcript, output: str) -> list[FlowRun]:
    """Return the flow runs whose addresses were printed, or the ids, as 10 and 12 do."""
    alone = r"(?m)^[0-9a-f-]{36}$" if re.match("python 1[02]_", it.command) else "(?!)"
    return [read_once(UUID(each)) for each in RUN_ID.findall(output) + re.findall(alone, output)]


def run_served(on: Server) -> dict[Transcript, str]:
    """Return what lessons 09 to 12 print: 09 serves while the others run, then gets Ctrl-C."""
    outputs = {}
    (serves,) = (it for it in SERVED if "python 09" in it.command)
    nine = open_terminal(serves.command, PREFECT_API_URL=on.api_url)
    nine.expect("You can also run")  # it serves

    def idle() -> bool:  # only the tracker of multiprocessing is left
        return len(psutil.Process(nine.pid).children()) < 2

    for it in SERVED:
        if it != serves:
            outputs[it] = run_command(it.command, on.site)
            runs_of(it, outputs[it])  # wait until they have ended: with a run in progress,
            wait_until("their processes end", idle, 120)  # Ctrl-C prints more
    nine.sendintr()
    return outputs | {serves: read_terminal(nine).replace(on.site, LOCAL)}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Print:
    """Return a function that returns what the command of a transcript prints, each run once."""
    outputs: dict[Transcript, str] = {}

    def of(it: Transcript) -> str:
        if it in outputs:
            return outputs[it]
        if it in SERVED:
            # The harness has no UI, and some of these commands ask for it.
            with server() as own, temporary_settings({PREFECT_API_URL: own.api_url}):
                outputs.update(run_served(own))
        elif not it.no_server:
            site = str(PREFECT_API_URL.value()).removesuffix("/api")
            outputs[it] = run_command(it.command, site)
        else:  # a first run, which prints the notice of telemetry, on a slow machine
            settings = {"PREFECT_HOME": str(tmp_path_factory.mktemp("home")), "DO_NOT_TRACK": ""}
            settings["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "300"
            outputs[it] = run_command(it.command, None, **settings)
        return outputs[it]

    return of


def rewrite(it: Transcript, output: str) -> None:
    """Write the output into the page in the place of the transcript's."""
    head = f"```console{it.no_server}\n$ {it.command}\n"
    noise, nothing = CHANGING[0]
    text = it.page.read_text(encoding="utf-8")
    text = text.replace(f"{head}{it.output}```", f"{head}{re.sub(noise, nothing, output)}```")
    it.page.write_text(text, encoding="utf-8", newline="\n")


@pytest.mark.parametrize(
    "transcript",
    TRANSCRIPTS,
    ids=[f"{number} {it.command}" for number, it in enumerate(TRANSCRIPTS)],
)
def test_a_transcript_is_what_the_command_prints(
    transcript: Transcript, printed: Print, pytestconfig: pytest.Config
) -> None:
    output, write = printed(transcript), pytestconfig.getoption("write")
    same = normalized(output) == normalized(transcript.output)
    if write == "all" or (write and not same):
        rewrite(transcript, output)
    assert write or same, (
        f"{transcript.command} prints\n{output}\nIf that is right, run this with --write changed"
    )


def test_no_transcript_is_left_out() -> None:
    blocks = sum(text.count("```console") for text in TEXTS.values())
    assert blocks == len(TRANSCRIPTS), "a console block is not one command"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_seconds_and_pictures_of_a_lesson_are_those_of_its_run(
    name: str, printed: Print
) -> None:
    runs_it = [it for it in TRANSCRIPTS if it.command.startswith(f"python {name}")]
    shown = next(it for it in runs_it if not it.no_server)
    runs = runs_of(shown, printed(shown))
    measured, stated = max(map(work_seconds, runs), default=0), map_rows()[name]
    assert measured == stated, f"the map says {stated} s for {name}, it was {measured} s"
    for told in re.findall(r"\b(\d+\.\d) s\b", shown.output):
        assert stated <= float(told) <= stated + TOLERANCE, (
            f"the transcript of {name} shows {told} s, the map says {stated} s: "
            "make the transcript on a quiet machine"
        )
    lesson = re.sub(r"(?s)<details>.*?</details>", "", SECTIONS[name])  # effects are tried
    for seconds in re.findall(r"\*\*(\d+) s\*\*", lesson):
        assert int(seconds) == stated, f"{name} says {seconds} s, the map does not"
    if name < "09":
        check_pictures(name, runs[0])


def test_the_transcripts_of_lessons_09_to_12_are_about_the_same_runs() -> None:
    (nine,) = (it.output for it in SERVED if "python 09" in it.command)
    others = "".join(it.output for it in SERVED if it.output != nine)
    runs = re.findall(r"Flow run '(\S+)' - View at \S+/([0-9a-f-]{36})", nine)
    served = {*re.findall(r"/deployment/(\S+)", nine), *(flow_run_id for _, flow_run_id in runs)}
    assert {*re.findall(r"(?m)^([0-9a-f-]{36})$", others)} == served, "lesson 09 shows other ids"
    followed = re.findall(r"(?m)^([0-9a-f-]{36})\n(\S+) is ", others)
    assert {*followed} == {(runs[-1][1], runs[-1][0])}, "the same key shows another id or name"


def test_every_sum_is_right() -> None:
    sums = re.findall(r"(\d+ s(?:\s\+\s\d+ s)+)\s=\s\**(\d+) s\b", LEARNINGS)
    assert sums, "a sum of seconds on the page is not found"
    for terms, total in sums:
        assert sum(map(int, re.findall(r"\d+", terms))) == int(total), f"{terms} is not {total} s"
