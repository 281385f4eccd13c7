"""The pages, their parts, and what a recorded flow run is compared with."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from uuid import UUID

from machinery import ROOT, replace_each
from recorded import FlowRun, TaskRun

FOUND = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
PAGES = sorted(it for it in FOUND if ".pytest_cache" not in it.parts)
LEARNINGS = (ROOT / "LEARNINGS.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"(?ms)^## (\S+\.py)$(.*?)(?=^## )", LEARNINGS))  # of the lessons
Row = Sequence[object]  # the cells of a line of a table
Compare = Callable[[str, Row, Iterable[Row]], None]  # the name, the head and the rows of a table
RUN_ID = re.compile(r"/runs/flow-run/([0-9a-f-]{36})")

# What differs from run to run in an output, and what stands for it when two are compared.
CHANGING = (
    (r"(?m)^.*EventsWorker - Still processing items.*\n", ""),
    (r"(?<!\d)\d\d:\d\d:\d\d(\.\d{3})?", "TIME"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "ID"),
    (r"127\.0\.0\.1:\d+", "SERVER"),
    (r"([Ff]low run ')[a-z]+(-[a-z]+)+'", r"\1NAME'"),
    # States that come and go between two looks of lesson 12.
    (r"(?m)^[a-z]+(-[a-z]+)+ is (Pending|Submitting|Running)\n", ""),
    (r"(?m)^[a-z]+(-[a-z]+)+ is ", "NAME is "),
    (r"(Task run '\w+-)[0-9a-f]{3}'", r"\1ID'"),
    (r"\b\d+\.\d s\b", "SECONDS"),
)


def normalized(output: str) -> str:
    """Return the output with what differs from run to run taken out."""
    for pattern, replacement in CHANGING:
        output = re.sub(pattern, replacement, output)
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def map_rows() -> dict[str, int]:
    """Return the seconds of every script, as the map at the start of LEARNINGS.md has them."""
    rows = re.findall(r"(?m)^\| \[(\S+\.py)\].*\| (\d+) \|$", LEARNINGS)
    return {name: int(seconds) for name, seconds in rows}


@cache
def sections(page: Path) -> dict[str, str]:
    """Return the sections of the page, heading and body, by GitHub's anchor of the heading.

    A section reaches to the next heading of any level. What is before the first one is under "".
    """
    found: dict[str, list[str]] = {"": []}
    anchor, in_block = "", False
    for line in page.read_text(encoding="utf-8").splitlines(keepends=True):
        in_block ^= line.lstrip().startswith("```")
        if re.match("#+ ", line) and not in_block:
            heading = line.lstrip("#").strip().lower()
            anchor = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        found.setdefault(anchor, []).append(line)
    return {name: "".join(lines) for name, lines in found.items()}


def compare_table(name: str, head: Row, rows: Iterable[Row], write: bool) -> None:
    """Compare the whole table NAME of a page with this head and these rows, or write it there.

    On the page it is marked `<!-- compared: NAME -->`; those of benchmark.py, `benchmark: NAME`.
    """
    lines = [head, ["---"] * len(head), *rows]
    observed = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    marker = re.compile(rf"(<!-- (?:compared|benchmark): {re.escape(name)} -->\n)((?:\|.*\n)*)")
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    found = [(page, it) for page, text in texts.items() for it in marker.finditer(text)]
    assert len(found) == 1, f"{len(found)} pages have the table {name!r}, not one"
    ((page, shown),) = found
    if write:
        text = texts[page].replace(shown[0], shown[1] + observed)
        page.write_text(text, encoding="utf-8", newline="\n")
    else:
        wrong = "".join(f"- {it}\n" for it in shown[2].splitlines() if f"{it}\n" not in observed)
        right = "".join(f"+ {it}\n" for it in observed.splitlines() if f"{it}\n" not in shown[2])
        assert shown[2] == observed, f"{page.name}, table {name!r}, is not so:\n{wrong}{right}"


def anchor_of(page: Path, line: int) -> str:
    """Return the anchor of the section in which this line of the page stands."""
    for anchor, section in sections(page).items():
        line -= section.count("\n")
        if line <= 0:
            return anchor
    raise ValueError(f"{page.name} has no line {line}")


def shell_blocks(*pages: Path) -> list[str]:
    """Return the blocks of shell commands on these pages."""
    texts = "".join(page.read_text(encoding="utf-8") for page in pages)
    return re.findall(r"(?ms)^```bash\n(.*?)^```$", texts)


def find_block(blocks: Sequence[str], words: str, *changes: tuple[str, str]) -> str:
    """Return the one block that has these words, with each (old, new) text replaced."""
    found = [each for each in blocks if words in each]
    assert len(found) == 1, f"{len(found)} shell blocks have {words!r}"
    return replace_each(found[0], *changes)


def links(text: str) -> list[str]:
    """Return the targets of the links and images in the text."""
    return [one or other for one, other in re.findall(r"\]\(([^)\s]+)\)|<(https?:[^>]+)>", text)]


def bars(heading: str) -> list[tuple[str, int, int]]:
    """Return name, start and end of each bar under a heading of a timeline in LEARNINGS.md."""
    bodies = re.findall(rf"(?m)^ +section {heading}\n((?: .+ :.+\n)+)", LEARNINGS)
    assert len(bodies) == 1, f"{len(bodies)} timelines have the heading {heading!r}"
    drawn = re.findall(r"(?m)^ +(.+?) +:(?:\w+, )*(\d+), (\d+)$", bodies[0])
    return [(bar, int(start), int(end)) for bar, start, end in drawn]


def moments(run: TaskRun) -> list[tuple[str, int]]:
    """Return the states of the task run until its end, and the whole seconds of each.

    A busy machine adds a fraction of a second to each, which is cut off.
    """
    return [
        (before.name or "", int((after.timestamp - before.timestamp).total_seconds() + 0.1))
        for before, after in pairwise(run.states)
        if before.name != "Pending"
    ]


def timeline(run: FlowRun) -> list[tuple[str, int, int]]:
    """Return each task run's start and end in whole seconds, without what Prefect itself takes."""
    ends: dict[UUID, int] = {}
    found = []
    for step in run.task_runs:
        start = max((ends[it.id] for it in run.task_runs if it.end <= step.start), default=0)
        ends[step.id] = start + sum(seconds for _, seconds in moments(step))
        found.append((step.name, start, ends[step.id]))
    return found


def attempts(step: TaskRun) -> list[tuple[str, int, int]]:
    """Return the label, start and end in whole seconds of each attempt and delay, in order."""
    found, number, end = [], 0, 0
    for state, seconds in moments(step):
        number += state != "AwaitingRetry"
        label = state if state == "AwaitingRetry" else f"attempt {number} fails"
        found.append((label, end, end + seconds))
        end += seconds
    return [*found[:-1], (f"attempt {number} succeeds", *found[-1][1:])]


def work_seconds(run: FlowRun) -> int:
    """Return the seconds from the first task's start to the last one's end, as in `timeline`."""
    return max((end for _, _, end in timeline(run)), default=0)


def edges(chart: str) -> set[tuple[str, str]]:
    """Return the arrows of a flowchart from task to task; a box may have the names of several."""
    labels = dict(re.findall(r'(\w+)\["\w+<br/>(.+?)"\]', chart))
    arrows = re.findall(r"(\w+)(?:\[.+?\])? --> (\w+)", chart)
    boxes = [[labels.get(box, box).split("<br/>") for box in arrow] for arrow in arrows]
    return {edge for arrow in boxes for edge in product(*arrow)}


def check_pictures(name: str, run: FlowRun) -> None:
    """Fail where LEARNINGS.md draws another timeline or graph of the lesson than its run had."""
    number = name[:2]
    if number in ("03", "04", "05"):
        (flow_name,) = re.findall(r"(?m)^@flow\ndef (\w+)", (ROOT / name).read_text("utf-8"))
        drawn, real = sorted(bars(f"{number} {flow_name}")), sorted(timeline(run))
        assert drawn == real, f"the timeline of {name} is not that of the run: {real}"
    if number == "06":
        drawn, real = bars("fetch_user_info"), attempts(run.task_run("fetch_user_info"))
        assert drawn == real, f"the timeline of {name} is not that of the run: {real}"
    overview, graph = (it.partition("```")[0] for it in LEARNINGS.split("flowchart LR\n")[1:])
    if number == "02":
        drawn_edges = edges(graph)
        assert drawn_edges == run.edges(), f"the arrows of {name} are those of {run.edges()}"
    if number == "08":
        drawn_edges = edges(overview)
        assert drawn_edges, "the overview has no arrows"
        assert drawn_edges <= run.edges(), f"the results of {name} go other ways: {run.edges()}"
