"""What the pages consist of: sections, excerpts, addresses and images."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from machinery import ROOT, SCRIPTS
from pages import LEARNINGS, PAGES, SECTIONS, links, map_rows, sections

README = (ROOT / "README.md").read_text(encoding="utf-8")
# The parts of a lesson's section, in the order in which they stand there.
PARTS = ["```python lesson", "**Run it**", "**What happened.**", "**Key points**", "**Try it: "]
PARTS += ["- **Watch out:**", "- **More:**"]
LOCAL = "127.0.0.1:4200"  # the reader's server

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """Return the page without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))


def test_every_script_has_its_section_and_its_rows_in_order() -> None:
    assert list(SECTIONS) == SCRIPTS, "the sections of LEARNINGS.md are not the scripts, in order"
    assert list(map_rows()) == SCRIPTS, "the rows of the map are not the scripts, in order"
    paths = re.findall(r"(?m)^\|.*\]\((\d\d_\w+\.py)\)", README)
    assert paths == SCRIPTS, "README.md's path is another"


def test_the_idea_of_a_lesson_is_what_its_docstring_begins_with() -> None:
    for page in (README, LEARNINGS):
        rows = re.findall(r"(?m)^\| \[(\d\S+\.py)\]\(\S+\) \| (.+?) \|", page)
        for name, idea in rows:
            docstring = (ROOT / name).read_text(encoding="utf-8").strip('"')
            begins = docstring.lower().startswith(idea.lower())
            assert begins, f"{name} begins with {docstring.splitlines()[0]!r}, its row has {idea!r}"


def test_what_the_map_calls_new_is_not_in_the_lesson_before() -> None:
    for before, name in pairwise(SCRIPTS):
        (row,) = re.findall(rf"(?m)^\| \[{name}\].*\|(.*)\|.*\|$", LEARNINGS)
        source = (ROOT / before).read_text(encoding="utf-8")
        for code in re.findall(r"`(.*?)(?:\(\))?`", row):
            assert code not in source, f"{code} is in {before}, too, so it is not new in {name}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_section_has_its_parts_in_order(name: str) -> None:
    section = SECTIONS[name]
    places = {part: section.find(part) for part in (*PARTS, f"$ python {name}")}
    assert min(places.values()) >= 0, f"{name} has not all parts: {places}"
    order = [places[part] for part in PARTS]
    assert order == sorted(order), f"{name}: the parts do not stand in the order {PARTS}"
    points = section.partition("**Key points**\n")[2].partition("\n\n")[0]
    assert len(re.findall("(?m)^- ", points)) <= 4, f"{name} has more than four key points"
    code = section.partition("```python lesson\n")[2].partition("```")[0]
    assert 5 <= code.count("\n") <= 12, f"{name} shows {code.count(chr(10))} lines, not 5 to 12"


def test_every_practice_program_is_named_where_it_follows() -> None:
    for path in ROOT.glob("docs/practice/[01][0-9]*.py"):
        after = [text for name, text in SECTIONS.items() if name[:2] == path.name[:2]]
        places = "".join(after or [LEARNINGS])
        assert f"docs/practice/{path.name}" in places, f"LEARNINGS.md does not name {path.name}"


def test_the_tutorial_stays_short() -> None:
    lines, words = len(LEARNINGS.splitlines()), len(LEARNINGS.split())
    assert lines <= 900, f"LEARNINGS.md has {lines} lines; move what few need to another page"
    assert words <= 6500, f"LEARNINGS.md has {words} words; move what few need to another page"


@pages
def test_the_code_that_is_shown_of_a_program_stands_there(page: Path) -> None:
    """The program is the one that the block names, or else the lesson of its section."""
    for anchor, section in sections(page).items():
        own = section.partition("\n")[0].removeprefix("## ")
        for name, code in re.findall(r"(?ms)^```python lesson ?(\S*)\n(.*?)^```$", section):
            program = (page.parent / (name or own)).read_text(encoding="utf-8")
            there = iter([line.strip() for line in program.splitlines()])
            lines = [line.strip() for line in code.splitlines()]
            lines = [line for line in lines if line not in ("", "# ...", "...")]  # left out
            # `in` goes on where it found the line before: the lines must keep their order.
            missing = [line for line in lines if line not in there]
            assert not missing, f"#{anchor}: not in {name or own}, or earlier: {missing[0]!r}"


def test_in_the_diagram_of_lesson_09_everybody_asks_the_server_which_only_answers() -> None:
    arrows = set(re.findall(r"\w-+>>\w", SECTIONS["09_user_flow.py"]))
    assert arrows == {"A->>S", "S-->>A", "R->>S", "S-->>R", "R->>R"}, f"it draws {arrows}"


def test_every_address_is_one_that_was_seen_to_exist() -> None:
    known = (Path(__file__).parent / "links.txt").read_text(encoding="utf-8").split()
    for page in PAGES:
        for target in links(prose(page)):
            address = target.partition("#")[0]
            seen = address in known or not address.startswith("http") or LOCAL in address
            assert seen, f"{page.name}: {target} is not in links.txt"


def test_every_image_is_small_and_stands_in_the_section_of_its_number() -> None:
    images = {path.resolve() for path in (ROOT / "docs").rglob("*.png")}
    shown = {(page.parent / it).resolve() for page in PAGES for it in links(prose(page))} & images
    assert shown == images, f"no page shows {images - shown}"
    large = [it.name for it in images if it.stat().st_size > 300_000]
    assert not large, f"larger than 300 KB: {large}"
    for name, section in SECTIONS.items():
        for number in re.findall(r"\]\(docs/images/(\d\d)", section):
            assert name.startswith(number), f"{name} shows a picture of lesson {number}"


def test_the_command_that_renews_the_lock_is_the_one_that_made_it() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    told = re.search(r'--custom-compile-command[= ]"(.+?)"', texts)
    assert told, "no page has the command that renews the lock"
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert told[1] in lock, "constraints.txt was made by another command"
