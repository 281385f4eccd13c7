"""What the pages show of a run: transcripts, seconds, timelines, graphs, Python blocks."""

import re
from collections.abc import Callable
from functools import cache
from uuid import UUID

import pytest
from machinery import SCRIPTS, script, server
from pages import LEARNINGS, PAGES, RUN_ID, SECTIONS, check_pictures, map_rows, work_seconds
from prefect.settings import PREFECT_API_URL, temporary_settings
from recorded import FlowRun, read_ended
from transcripts import (
    TRANSCRIPTS,
    Transcript,
    normalised,
    record,
    record_served,
    rewrite,
)

pytestmark = pytest.mark.timeout(900)  # most of it is waiting, on a busy machine

# How much more than the work a transcript on the page may show: the page states it.
(TOLERANCE,) = map(float, re.findall(r"took at most ([\d.]+) s more", LEARNINGS))
assert TOLERANCE < 1, "a transcript of a busy machine teaches the wrong seconds"

Print = Callable[[Transcript], str]
read_once = cache(read_ended)


def shown(name: str) -> Transcript:
    """Return the first transcript of LEARNINGS.md that runs the script, with a server."""
    own = [it for it in TRANSCRIPTS if it.command.startswith(f"python {name}") and it.has_server]
    assert own, f"LEARNINGS.md has no transcript of {name}"
    return own[0]


def runs_of(it: Transcript, output: str) -> list[FlowRun]:
    """Return the flow runs whose addresses were printed, or the ids, as 10 and 12 do."""
    alone = (
        re.findall(r"(?m)^[0-9a-f-]{36}$", output) if re.match("python 1[02]_", it.command) else []
    )
    return [read_once(UUID(flow_run_id)) for flow_run_id in RUN_ID.findall(output) + alone]


@pytest.fixture(scope="session")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Print:
    """Return a function that returns what the command of a transcript prints, each run once."""
    outputs: dict[Transcript, str] = {}

    def of(it: Transcript) -> str:
        if it in outputs:
            return outputs[it]
        if it.is_of_served_flow:
            served = [it for it in TRANSCRIPTS if it.is_of_served_flow]
            # The harness has no web page, and some of these commands ask for it.
            with server() as own, temporary_settings({PREFECT_API_URL: own.api_url}):
                told = record_served(served, own.site, tmp_path_factory.mktemp("served"))
                for each in told.items():
                    runs_of(*each)  # while their server is there
            outputs.update(told)
        else:
            outputs[it] = record(it, str(PREFECT_API_URL.value()).removesuffix("/api"))
        return outputs[it]

    return of


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_a_transcript_is_what_the_command_prints(
    transcript: Transcript, printed: Print, pytestconfig: pytest.Config
) -> None:
    output, write = printed(transcript), pytestconfig.getoption("write")
    if write == "all" or (write and normalised(output) != normalised(transcript.output)):
        rewrite(transcript, output)
    elif not write:
        assert normalised(transcript.output) == normalised(output), (
            f"{transcript} prints something else: run this test with --write changed"
        )


def test_no_transcript_is_left_out() -> None:
    blocks = sum(page.read_text(encoding="utf-8").count("```console") for page in PAGES)
    assert blocks == len(TRANSCRIPTS), "a console block is not one command"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_seconds_and_pictures_of_a_lesson_are_those_of_its_run(
    name: str, printed: Print
) -> None:
    runs = runs_of(shown(name), printed(shown(name)))
    source = script(min(name[:2], "09")).read_text(encoding="utf-8")
    measured = max((work_seconds(flow_run, source) for flow_run in runs), default=0)
    stated = map_rows()[name]
    assert measured == stated, f"the map says {stated} s for {name}, it was {measured} s"
    for told in re.findall(r"\b(\d+\.\d) s\b", shown(name).output):
        assert stated <= float(told) <= stated + TOLERANCE, (
            f"the transcript of {name} shows {told} s, the map says {stated} s: "
            "make the transcript on a quiet machine"
        )
    lesson = re.sub(r"(?s)<details>.*?</details>", "", SECTIONS[name])  # effects are tried
    for seconds in re.findall(r"\*\*(\d+) s\*\*", lesson):
        assert int(seconds) == stated, f"{name} says {seconds} s, the map does not"
    if name < "09":
        check_pictures(name, runs[0])


def test_every_sum_is_right() -> None:
    sums = re.findall(r"(\d+ s(?: \+ \d+ s)+)\s(?:=|is|for)\s\**(\d+) s\b", LEARNINGS)
    sums += [
        (terms, total) for total, terms in re.findall(r"(\d+) s is (\d+ s[\d s+]+)", LEARNINGS)
    ]
    assert len(sums) >= 4, "a sum of seconds on the page is not found"
    for terms, total in sums:
        assert sum(map(int, re.findall(r"\d+", terms))) == int(total), f"{terms} is not {total} s"
