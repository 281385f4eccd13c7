"""LEARNINGS.md: everything that it shows and states is compared with what really happens."""

import builtins
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from beside import beside, cases_of, early, fixtures
from markdown_it import MarkdownIt
from prefect import tags
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.settings.models.runner import RunnerSettings
from pytest_markdown_docs.plugin import extract_fence_tests
from support import (
    PAGE,
    POSIX,
    ROOT,
    SCRIPTS,
    Api,
    FlowRun,
    Served,
    TaskRun,
    changed_copy,
    copy_database,
    load_lesson,
    script_path,
    seconds_scaled,
    wait_until,
)
from transcripts import (
    LOCAL,
    SERVE,
    TRANSCRIPTS,
    Transcript,
    normalised,
    read_transcripts,
    record_lessons,
    shown,
    wanted_transcripts,
)

TEXT = PAGE.read_text(encoding="utf-8")

# How much more than the work a transcript on the page may show; the page states this, too.
TOLERANCE = 0.9

# How long the seconds of a changed script are made, so that nobody waits for them.
SCALE = 0.2

SECTIONS = {
    heading: body for heading, body in re.findall(r"(?ms)^## (\S+\.py)$(.*?)(?=^## )", TEXT)
}


# No id of a case here has a lesson's number in it: `pytest -k 04` is for the file of that lesson.
def ids(texts: Iterable[str]) -> list[str]:
    """Return the texts as ids of cases, without numbers and each another."""
    found: list[str] = []
    for text in texts:
        name = re.sub(r"\d+_?", "", text)
        while name in found:
            name += ", again"
        found.append(name)
    return found


of_scripts = pytest.mark.parametrize("script", SCRIPTS, ids=ids(SCRIPTS))

T = TypeVar("T")

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def map_rows() -> dict[str, int]:
    """Return the seconds of every script, as the map at the start of the page has them."""
    rows = re.findall(r"(?m)^\| \[(\S+\.py)\]\((\S+\.py)\) \|.*\| (\d+) \|$", TEXT)
    assert all(name == link for name, link, _ in rows), "a row of the map links another script"
    return {name: int(seconds) for name, _, seconds in rows}


def settled(read: Callable[[], T], expected: T) -> T:
    """Return what `read` returns, once it is as expected, or after a while: records come late."""
    deadline = time.monotonic() + 15
    while (value := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    return value


def ended_task_runs(run: FlowRun) -> list[TaskRun]:
    """Return the task runs of which the server knows the end already."""
    return [step for step in run.task_runs() if step.data["end_time"]]


def constants(source: str) -> dict[str, int]:
    """Return how many seconds each task of the script takes, as its constants say."""
    named = dict(re.findall(r"(?m)^([A-Z]+)_SECONDS = (\d+)", source))
    tasks = {
        "fetch_user_info": "USER",
        "fetch_account_balance": "BALANCE",
        "fetch_recent_activity": "ACTIVITY",
        "predict_churn": "PREDICTION",
        "send_notification": "NOTIFICATION",
    }
    return {task: int(named.get(name, 0)) for task, name in tasks.items()}


def delays(step: TaskRun, source: str) -> list[int]:
    """Return the seconds before each further attempt of the task run, as the script declares."""
    (declared,) = re.findall(r"retry_delay_seconds=(\d+|\[[\d, ]+\])", source)[:1] or ["0"]
    numbers = [int(number) for number in re.findall(r"\d+", declared)]
    return [numbers[min(retry, len(numbers) - 1)] for retry in range(step.attempts - 1)]


def timeline(run: FlowRun, source: str) -> dict[str, tuple[int, int]]:
    """Return when each task run started and ended, in seconds, on a machine of infinite speed.

    What ran before what, how often and with which delays is as recorded; how long an attempt takes
    is as the script's constants say. A busy machine adds to the clock, but nothing to this.
    """
    ends: dict[str, tuple[int, int]] = {}
    steps = ended_task_runs(run)
    for step in steps:
        before = [ends[other.task][1] for other in steps if other.end <= step.start]
        start = max(before, default=0)
        took = constants(source).get(step.task, 0) * step.attempts + sum(delays(step, source))
        ends[step.task] = (start, start + took)
    return ends


def work_seconds(run: FlowRun, source: str, scale: float = 1) -> int:
    """Return the length of the run's timeline; the clock must have shown as much, or more."""
    steps = ended_task_runs(run)
    if not steps:
        return 0
    seconds = max(end for _, end in timeline(run, source).values())
    clock = (max(step.end for step in steps) - steps[0].start).total_seconds()
    assert clock >= seconds * scale - 0.05, (
        f"{run.flow_name} was done after {clock} s, not {seconds} s"
    )
    return seconds


# --- what the page consists of ---------------------------------------------------------------


def test_every_script_has_its_section_and_its_row_in_order() -> None:
    assert list(SECTIONS) == SCRIPTS, "the sections of LEARNINGS.md are not the scripts, in order"
    assert list(map_rows()) == SCRIPTS, "the rows of the map are not the scripts, in order"


@of_scripts
def test_every_section_has_its_parts(script: str) -> None:
    section = SECTIONS[script]
    for part in ("**Key learnings**", "**Run it**", "**Watch out:**", "\nMore: "):
        assert part in section, f"{script} has no part {part.strip()!r}"
    assert section.count("**Try it: ") in (2, 3), f"{script} has not two or three things to try"
    assert f"$ python {script}" in section, f"{script} has no transcript of itself"


# --- transcripts -----------------------------------------------------------------------------


@dataclass
class Recording:
    """What the commands of the transcripts printed, and the server that they ran on."""

    api: Api
    outputs: dict[Transcript, str]


@early
def recorded_lessons(
    api: Api, items: list[pytest.Item], empty_folder: Path, empty_database: Path
) -> dict[Transcript, str]:
    """Return what the commands of lessons 01 to 08 print that a test looks at."""
    # For the lessons that run without a server: Prefect starts one for them.
    copy_database(empty_database, empty_folder / "prefect.db")
    return record_lessons(wanted_transcripts(items), api, empty_folder)


@early
def recorded(
    api: Api, recorded_lessons: dict[Transcript, str], recorded_served: dict[Transcript, str]
) -> Recording:
    """Return what the commands of all transcripts print that a test looks at."""
    return Recording(api, recorded_lessons | recorded_served)


def recorded_runs(recorded: Recording, script: str) -> list[FlowRun]:
    """Return the flow runs whose pages the script's transcript shows."""
    output = recorded.outputs[shown(script)]
    return [recorded.api.ended(run) for run in re.findall(r"/runs/flow-run/(\S+)", output)]


@pytest.mark.parametrize(
    "transcript",
    [pytest.param(it, marks=POSIX if it.command == SERVE else ()) for it in TRANSCRIPTS],
    ids=ids(it.command for it in TRANSCRIPTS),
)
def test_a_transcript_is_what_the_command_prints(
    transcript: Transcript, recorded: Recording
) -> None:
    assert normalised(transcript.output) == normalised(recorded.outputs[transcript]), (
        f"LEARNINGS.md, line {transcript.line}, shows something else than {transcript.command!r} "
        "prints: python tests/transcripts.py rewrites it"
    )


def test_no_transcript_is_left_out() -> None:
    assert TEXT.count("```console") == len(TRANSCRIPTS), "a console block is not one command"


# --- numbers ---------------------------------------------------------------------------------


@of_scripts
def test_the_seconds_in_the_map_are_those_of_the_recorded_run(
    script: str, recorded: Recording
) -> None:
    own = script if script < "10" else script_path("09").name
    source = (ROOT / own).read_text(encoding="utf-8")
    runs = recorded_runs(recorded, script)
    stated = map_rows()[script]

    def measure() -> int:
        return max((work_seconds(run, source) for run in runs), default=0)

    measured = settled(measure, stated)
    assert measured == stated, f"the map says {stated} s for {script}, it was {measured} s"
    for told in re.findall(r"\b(\d+\.\d) s\b", shown(script).output):
        assert stated <= float(told) <= stated + TOLERANCE, (
            f"the transcript of {script} shows {told} s, the map says {stated} s: "
            "make the transcript on a quiet machine"
        )


@of_scripts
def test_the_seconds_in_a_section_are_those_of_the_map(script: str) -> None:
    section = re.sub(r"(?ms)^Effect: .*?^Test: ", "", SECTIONS[script])
    for seconds in re.findall(r"\*\*(\d+) s\*\*", section):
        assert int(seconds) == map_rows()[script], f"{script} says {seconds} s, the map does not"


def test_every_sum_is_right() -> None:
    sums = re.findall(r"(\d+ s(?: \+ \d+ s)+)(?: =|\n=) \*\*(\d+) s\*\*", TEXT)
    assert len(sums) == 4, "a sum of seconds on the page is not found"
    for terms, total in sums:
        assert sum(map(int, re.findall(r"\d+", terms))) == int(total), f"{terms} is not {total} s"
    (told,) = re.findall(r"where (\d+ s is [\d s+\n]+) for", TEXT)
    whole, *parts = map(int, re.findall(r"\d+", told))
    assert whole == sum(parts), f"{parts} is not {whole} s"


def test_the_stated_defaults_are_those_in_force() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    default = RunnerSettings.model_fields["poll_frequency"].default
    assert f"every {default} s by default" in TEXT, f"Prefect's default is {default} s"
    (ours,) = re.findall(r"(?m)^poll_frequency = (\d+)", project)
    assert f"`pyproject.toml` makes that {ours} s" in TEXT, f"pyproject.toml says {ours} s"
    assert f"at most {TOLERANCE} s more" in TEXT, f"the tolerance is {TOLERANCE} s"
    lesson = vars(load_lesson(script_path("05")))
    total = sum(value for name, value in lesson.items() if name.endswith("_SECONDS"))
    assert f"sum of all four tasks would be {total} s" in TEXT, f"the sum is {total} s"


# --- pictures --------------------------------------------------------------------------------


def charts(script: str) -> dict[str, list[tuple[str, int, int]]]:
    """Return the bars of the section's timeline by heading: name, start and end in seconds."""
    (chart,) = re.findall(r"(?s)```mermaid\ngantt\n(.*?)```", SECTIONS[script])
    found: dict[str, list[tuple[str, int, int]]] = {}
    for line in chart.splitlines():
        if heading := re.fullmatch(r" +section (.+)", line):
            bars = found.setdefault(heading[1], [])
        elif bar := re.fullmatch(r" +(.+?) +:(?:\w+, )?(\d+), (\d+)", line):
            bars.append((bar[1], int(bar[2]), int(bar[3])))
    return found


def test_the_three_timelines_are_those_of_the_recorded_runs(recorded: Recording) -> None:
    timelines = charts("03_sync_demo.py")
    assert [heading[:2] for heading in timelines] == ["03", "04", "05"]
    for heading, bars in timelines.items():
        (run,) = recorded_runs(recorded, script_path(heading[:2]).name)
        source = script_path(heading[:2]).read_text(encoding="utf-8")
        drawn = {name: (start, end) for name, start, end in bars}
        real = settled(partial(timeline, run, source), drawn)
        assert drawn == real, f"the timeline {heading!r} is not the recorded one"


def test_the_attempts_are_those_of_the_recorded_run(recorded: Recording) -> None:
    ((_, bars),) = charts("06_retry_logic.py").items()
    (run,) = recorded_runs(recorded, "06_retry_logic.py")
    (step,) = run.task_runs()
    source = (ROOT / "06_retry_logic.py").read_text(encoding="utf-8")
    moments, now = [0], 0
    for delay in [*delays(step, source), 0]:
        now += constants(source)["fetch_user_info"]
        moments += [now, now + delay] if delay else [now]
        now += delay
    drawn = [(start, end) for _, start, end in bars]
    assert drawn == list(pairwise(moments)), (
        "the attempts in the picture are not those of the recorded run"
    )
    names = [name for name, _, _ in bars if name == "AwaitingRetry"]
    assert len(names) == len(delays(step, source)), "a delay between two attempts is missing"


def test_the_graph_is_that_of_the_recorded_run(recorded: Recording) -> None:
    section = SECTIONS["08_sync_async_retry_logger.py"]
    (run,) = recorded_runs(recorded, "08_sync_async_retry_logger.py")
    drawn = set(re.findall(r"(?m)^ +(\w+) --> (\w+)$", section))
    assert drawn == settled(run.edges, drawn), (
        "the arrows in the picture are not those of the recorded run"
    )


# --- Python blocks ---------------------------------------------------------------------------

BLOCKS = [
    block
    for page in (PAGE, ROOT / "README.md")
    for block in extract_fence_tests(
        MarkdownIt(config="commonmark"), page.read_text(encoding="utf-8"), 0, page
    )
]


@beside
def blocks(served: Served) -> dict[str, Future[dict[str, Any]]]:
    """Return the names that each Python block defines, by its source, once all have run."""

    def run(block: Any) -> dict[str, Any]:
        source = block.source.replace(f"{LOCAL}/api", served.api.url)
        code = compile(source.replace("learnings-1", str(uuid.uuid4())), PAGE, "exec")
        names: dict[str, Any] = {"__name__": "block", "print": silent}
        exec(code, names)  # noqa: S102
        return names

    with ThreadPoolExecutor(1) as pool:
        return {block.source: pool.submit(run, block) for block in BLOCKS}


def silent(*_values: Any, **_options: Any) -> None:
    """Stand for `print`, while another test may look at what is printed."""


@pytest.mark.parametrize(
    "block", BLOCKS, ids=ids(" ".join(it.source.split())[:70] for it in BLOCKS)
)
def test_a_python_block_runs(block: Any, blocks: dict[str, Future[dict[str, Any]]]) -> None:
    blocks[block.source].result()


@beside
def wrong_parameter(served: Served, blocks: dict[str, Future[dict[str, Any]]]) -> str:
    """Return how the run ends that the page triggers with a parameter that the flow lacks."""
    (source,) = [source for source in blocks if "the run will crash" in source]
    return served.api.ended(blocks[source].result()["wrong_name"].json()["id"]).state


def test_a_parameter_that_the_flow_does_not_have_crashes_the_run(wrong_parameter: str) -> None:
    assert wrong_parameter == "Crashed", f"the run is {wrong_parameter}; the page says Crashed"


# --- things to try ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """A change that the page proposes, what it says will happen, and which test tells."""

    script: str
    title: str
    changes: tuple[tuple[str, str], ...]
    effect: str
    test: str


@dataclass
class Observed:
    """What happened after a change: the printed lines, and the flow run if there was one."""

    api: Api
    source: str
    label: str
    lines: list[str] = field(default_factory=list)

    def runs(self) -> list[FlowRun]:
        """Return the flow run, if there was one."""
        found = self.api.flow_runs(flow_runs={"tags": {"all_": [self.label]}})
        # A busy server may have made a second one, which stays pending, for a repeated request.
        return [FlowRun(self.api, run) for run in found if run["state"]["type"] in FINAL]

    def text(self) -> str:
        """Return all that was printed or logged, one record a line, its level first."""
        records = [
            f"{logging.getLevelName(level)} {message}"
            for run in self.runs()
            for level, message, _ in run.logs(prefect=True)
        ]
        return "\n".join(self.lines + records)

    def seconds(self) -> int:
        """Return how long the work took, as far as it is recorded."""
        (run,) = self.runs()
        return work_seconds(run, self.source, SCALE)


def parts_to_try() -> Iterator[tuple[str, str, str]]:
    """Yield the script, the title and the text of everything that the page says to try."""
    for script, section in SECTIONS.items():
        for part in section.split("**Try it: ")[1:]:
            title, _, rest = part.partition("**")
            yield script, title, re.split(r"(?m)^\*\*", rest)[0]


def lines_of(diff: str, sign: str) -> str:
    """Return the lines of a diff that begin with the sign."""
    return "".join(f"{line[1:]}\n" for line in diff.splitlines() if line.startswith(sign))


def read_attempts() -> Iterator[Attempt]:
    """Yield every change of a script that the page proposes."""
    for script, title, part in parts_to_try():
        diffs = re.findall(r"(?s)```diff\n(.*?)```", part)
        told = re.search(r"(?s)\nEffect: (.*?)\nTest: (.*?)(?:\n\n|$)", part)
        if diffs:
            assert told, f"{script}: {title!r} has no effect, or no test"
            changes = tuple((lines_of(diff, "-"), lines_of(diff, "+")) for diff in diffs)
            yield Attempt(script, title, changes, told[1], told[2])


ATTEMPTS = list(read_attempts())

of_attempts = pytest.mark.parametrize(
    "attempt", ATTEMPTS, ids=ids(f"{it.script}-{it.title}" for it in ATTEMPTS)
)


def stated_seconds(attempt: Attempt) -> list[int]:
    """Return the seconds of work that the effect states."""
    return [int(seconds) for seconds in re.findall(r"\*\*(\d+) s\*\*", attempt.effect)]


def run_attempt(attempt: Attempt, api: Api, folder: Path) -> Observed:
    """Apply the change to a copy, run the copy as a script, and return what happened.

    Its seconds are made SCALE as long; the timeline is computed from the unscaled ones.
    """
    folder.mkdir(exist_ok=True)
    copy = changed_copy(ROOT / attempt.script, folder, *attempt.changes)
    source = copy.read_text(encoding="utf-8")
    changed_copy(copy, folder, *seconds_scaled(copy, SCALE))
    observed = Observed(api, source, f"{attempt.script} {attempt.title} {time.monotonic()}")

    def record(*values: Any, **options: Any) -> None:
        observed.lines.append(" ".join(map(str, values)))
        context = TaskRunContext.get() or FlowRunContext.get()
        if context and context.log_prints:
            builtins.print(*values, **options)  # which Prefect has replaced

    code = compile(copy.read_text(encoding="utf-8"), str(copy), "exec")
    with tags(observed.label), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        try:
            exec(code, {"__name__": "__main__", "__file__": str(copy), "print": record})  # noqa: S102
        except Exception as error:  # noqa: BLE001 - whatever the changed script raises
            observed.lines.append(f"{type(error).__name__}: {error}")
    return observed


@early
def tried(
    api: Api, items: list[pytest.Item], empty_folder: Path
) -> dict[Attempt, Future[Observed]]:
    """Return what happens after the changes, several of them at a time: most of it is waiting."""
    attempts = [
        cast(Attempt, cases_of(item)["attempt"])
        for item in items
        if isinstance(item, pytest.Function) and "tried" in fixtures(item)
    ]
    with ThreadPoolExecutor(6) as pool:
        return {
            attempt: pool.submit(run_attempt, attempt, api, empty_folder / str(number))
            for number, attempt in enumerate(attempts)
        }


@of_attempts
def test_a_change_has_the_effect_that_the_page_states(
    attempt: Attempt, tried: dict[Attempt, Future[Observed]], api: Api, tmp_path: Path
) -> None:
    observed = tried[attempt].result()
    measured = [settled(observed.seconds, stated) for stated in stated_seconds(attempt)]
    if measured != stated_seconds(attempt):
        # What runs side by side can get out of step on a busy machine; what is wrong stays wrong.
        observed = run_attempt(attempt, api, tmp_path)
        measured = [settled(observed.seconds, stated) for stated in stated_seconds(attempt)]
    assert measured == stated_seconds(attempt), (
        f"{attempt.script}, {attempt.title!r}: the work took {measured} s, and the page says "
        f"{stated_seconds(attempt)} s"
    )
    effects = [" ".join(effect.split()) for effect in re.findall(r"`([^`]+)`", attempt.effect)]

    def has_all() -> bool:
        text = observed.text()
        return all(effect in text for effect in effects)

    with suppress(AssertionError):
        wait_until("all records", has_all, 10)
    for effect in effects:
        assert effect in observed.text(), (
            f"{attempt.script}, {attempt.title!r}: {effect!r} is not what happens, but this:\n"
            f"{observed.text()}"
        )
    assert effects or "**" in attempt.effect, f"{attempt.title!r} states no effect to check"


@of_attempts
def test_the_test_that_tells_exists(attempt: Attempt) -> None:
    tests = (ROOT / "tests" / f"test_{attempt.script}").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)`", attempt.test)
    assert named or "none fails" in attempt.test, f"{attempt.title!r} names no test"
    for name in named:
        assert f"def {name}(" in tests, f"tests/test_{attempt.script} has no {name}"


def test_everything_to_try_is_tried() -> None:
    tried = {(attempt.script, attempt.title) for attempt in ATTEMPTS}
    for script, title, part in parts_to_try():
        if (script, title) in tried or read_transcripts(part):
            continue
        # No change and no transcript: an option, which the test of the lesson itself passes.
        tests = (ROOT / "tests" / f"test_{script}").read_text(encoding="utf-8")
        told = re.search(r"`--(\w+) (\w+)`(?s:.*)\nTest: `(test_\w+)`", part)
        assert told, f"{script}, {title!r} has no diff, no transcript and no test"
        assert f'"--{told[1]}", "{told[2]}"' in tests, f"no test passes --{told[1]} {told[2]}"
        assert f"def {told[3]}(" in tests, f"tests/test_{script} has no {told[3]}"
