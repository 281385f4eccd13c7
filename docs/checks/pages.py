"""The pages, their parts, and what a recorded flow run is compared with."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate, count, pairwise, product
from pathlib import Path
from uuid import UUID

from machinery import ROOT
from recorded import FlowRun, TaskRun

FOUND = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
PAGES = sorted(it for it in FOUND if ".pytest_cache" not in it.parts)
LEARNINGS = (ROOT / "LEARNINGS.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"(?ms)^## (\S+\.py)$(.*?)(?=^## )", LEARNINGS))  # of the lessons
Row = Sequence[object]  # the cells of a line of a table
Compare = Callable[[str, Row, Iterable[Row]], None]  # the name, the head and the rows of a table
RUN_ID = re.compile(r"/runs/flow-run/([0-9a-f-]{36})")

# A console block: one command, and what it prints.
FENCE = re.compile(
    r"^```console(?P<mark> no-server)?\n\$ (?P<command>.+)\n(?P<output>(?:(?!```).*\n)*)```$",
    re.MULTILINE,
)
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
    rows = re.findall(r"(?m)^\| \[(\S+\.py)\]\((\S+\.py)\) \|.*\| (\d+) \|$", LEARNINGS)
    assert all(name == link for name, link, _ in rows), "a row of the map links another script"
    return {name: int(seconds) for name, _, seconds in rows}


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


def find_table(name: str) -> tuple[Path, str]:
    """Return the page that has the table `<!-- compared: NAME -->`, and the table's lines.

    The tables that benchmark.py writes are marked `<!-- benchmark: NAME -->`.
    """
    marker = rf"(?m)<!-- (?:compared|benchmark): {re.escape(name)} -->\n((?:\|.*\n)*)"
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    found = [(page, it[1]) for page, text in texts.items() for it in re.finditer(marker, text)]
    assert len(found) == 1, f"{len(found)} pages have the table {name!r}, not one"
    return found[0]


def compare_table(name: str, head: Row, rows: Iterable[Row], write: bool) -> None:
    """Compare the whole table NAME of a page with this head and these rows, or write it there."""
    lines = [head, ["---"] * len(head), *rows]
    observed = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    page, table = find_table(name)
    if write:
        text = page.read_text(encoding="utf-8")
        marked = f": {name} -->\n"
        text = text.replace(marked + table, marked + observed)
        page.write_text(text, encoding="utf-8", newline="\n")
    else:
        wrong = "".join(f"- {it}\n" for it in table.splitlines() if f"{it}\n" not in observed)
        right = "".join(f"+ {it}\n" for it in observed.splitlines() if f"{it}\n" not in table)
        assert table == observed, f"{page.name}, table {name!r}, is not so:\n{wrong}{right}"


def anchor_of(page: Path, line: int) -> str:
    """Return the anchor of the section in which this line of the page stands."""
    for anchor, section in sections(page).items():
        line -= section.count("\n")
        if line <= 0:
            return anchor
    raise ValueError(f"{page.name} has no line {line}")


def links(text: str) -> list[str]:
    """Return the targets of the links and images in the text."""
    return [one or other for one, other in re.findall(r"\]\(([^)\s]+)\)|<(https?:[^>]+)>", text)]


def bars(name: str) -> dict[str, list[tuple[str, int, int]]]:
    """Return the bars of the timelines in a lesson's section: name, start and end, by heading."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    for chart in re.findall(r"(?s)```mermaid\ngantt\n(.*?)```", SECTIONS[name]):
        for heading, body in re.findall(r"(?ms)^ +section (.+?)$(.*?)(?=^ +section |\Z)", chart):
            drawn = re.findall(r"(?m)^ +(.+?) +:(?:\w+, )*(\d+), (\d+)$", body)
            found[heading] = [(bar, int(start), int(end)) for bar, start, end in drawn]
    return found


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


def work_seconds(run: FlowRun) -> int:
    """Return the seconds from the first task's start to the last one's end, as in `timeline`."""
    return max((end for _, _, end in timeline(run)), default=0)


def check_pictures(name: str, run: FlowRun) -> None:
    """Fail where a timeline that LEARNINGS.md draws of the lesson, or its overview, is not so."""
    for heading, drawn in bars("03_sync_demo.py").items():
        if heading[:2] == name[:2]:
            real = sorted(timeline(run))
            assert sorted(drawn) == real, f"the timeline {heading!r} is not that of the run: {real}"
    for heading, drawn in bars(name).items():
        if name[:2] != "03":  # the attempts of one task, and the delays between
            states = moments(run.task_run(heading))
            spans = pairwise(accumulate((seconds for _, seconds in states), initial=0))
            assert [bar[1:] for bar in drawn] == list(spans), f"{heading} was {states}"
            number = count(1)
            labels = [
                state if state == "AwaitingRetry" else f"attempt {next(number)} fails"
                for state, _ in states
            ]
            labels[-1] = labels[-1].replace("fails", "succeeds")  # the last attempt
            found = [bar for bar, _, _ in drawn]
            assert found == labels, f"{heading}: the run had {labels}, the page draws {found}"
    for chart in re.findall(r"(?s)flowchart LR\n(.*?)```", SECTIONS[name]):
        edges = set(re.findall(r"(\w+) --> (\w+)", chart))
        assert edges == run.edges(), f"in the run graph, the arrows are {run.edges()}"
    if name[:2] == "08":
        chart = LEARNINGS.partition("flowchart LR\n")[2].partition("```")[0]
        nodes = re.findall(r'(\w+)\["(.+?)"\]', chart)
        tasks = {node: label.split("<br/>")[1:] for node, label in nodes}
        arrows = re.findall(r"(\w+)(?:\[.+?\])? --> (\w+)", chart)
        drawn_edges = {
            edge for a, b in arrows for edge in product(tasks.get(a, [a]), tasks.get(b, [b]))
        }
        assert drawn_edges, "the overview has no arrows"
        assert drawn_edges <= run.edges(), f"the results go other ways: {run.edges()}"
