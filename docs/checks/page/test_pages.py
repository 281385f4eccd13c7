"""What the pages consist of: sections, links, images, tables, blocks, the set-up commands."""

import re
from pathlib import Path

import pytest
from machinery import ROOT, SCRIPTS
from pages import LEARNINGS, PAGES, SECTIONS, links, map_rows, sections

README = (ROOT / "README.md").read_text(encoding="utf-8")
# The parts of a lesson's section, in the order in which they stand there.
PARTS = ["```python lesson", "**Run it**", "**What happened.**", "**Key points**", "**Try it: "]
PARTS += ["- **Watch out:**", "- **More:**"]

# The pages elsewhere that ours point to; each was seen to exist.
KNOWN = (Path(__file__).parent / "links.txt").read_text(encoding="utf-8").split()

PRACTICE = sorted((ROOT / "docs" / "practice").glob("[01][0-9]*.py"))

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="session", autouse=True)
def harness() -> None:
    """Start no server: nothing runs here."""


def prose(page: Path) -> str:
    """Return the page without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))


def test_every_script_has_its_section_and_its_row_in_order() -> None:
    assert list(SECTIONS) == SCRIPTS, "the sections of LEARNINGS.md are not the scripts, in order"
    assert list(map_rows()) == SCRIPTS, "the rows of the map are not the scripts, in order"
    table = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    assert re.findall(r"\]\((\d\d_\w+\.py)\)", table) == SCRIPTS, "README.md's path is another"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_section_has_its_parts_in_order(name: str) -> None:
    section = SECTIONS[name]
    missing = [part for part in (*PARTS, f"$ python {name}") if part not in section]
    assert not missing, f"{name} has no part {missing[0]!r}"
    places = [section.index(part) for part in PARTS]
    assert places == sorted(places), f"{name}: the parts do not stand in the order {PARTS}"
    points = section.partition("**Key points**\n")[2].partition("\n\n")[0]
    assert len(re.findall("(?m)^- ", points)) <= 4, f"{name} has more than four key points"
    code = section.partition("```python lesson\n")[2].partition("```")[0]
    assert 5 <= code.count("\n") <= 12, f"{name} shows {code.count(chr(10))} lines, not 5 to 12"


@pytest.mark.parametrize("number", sorted({path.name[:2] for path in PRACTICE}))
def test_every_practice_program_is_named_where_it_follows(number: str) -> None:
    after = [section for name, section in SECTIONS.items() if name.startswith(number)]
    for path in PRACTICE:
        if path.name.startswith(number):
            assert f"docs/practice/{path.name}" in "".join(after or [LEARNINGS]), (
                f"LEARNINGS.md does not name the practice program {path.name}"
            )


def test_the_tutorial_stays_short() -> None:
    lines, words = len(LEARNINGS.splitlines()), len(LEARNINGS.split())
    assert lines <= 900, f"LEARNINGS.md has {lines} lines; move what few need to another page"
    assert words <= 6500, f"LEARNINGS.md has {words} words; move what few need to another page"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_new_code_is_cut_from_the_lesson(name: str) -> None:
    blocks = re.findall(r"(?ms)^```python lesson\n(.*?)^```$", SECTIONS[name])
    assert blocks, f"{name} shows no code: mark the block ```python lesson"
    lesson = iter((ROOT / name).read_text(encoding="utf-8").splitlines())
    lines = [line for block in blocks for line in block.splitlines()]
    lines = [line for line in lines if line.strip() not in ("", "# ...")]  # `# ...`: left out
    # `in` goes on where it found the line before: lines may be left out, but keep their order.
    missing = [line for line in lines if line not in lesson]
    assert not missing, f"{name} has no such line, or has it earlier: {missing[0]!r}"


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(prose(page)):
        path, _, anchor = target.partition("#")
        if target.startswith("http"):
            local = target.startswith("http://127.0.0.1:4200")
            assert local or path in KNOWN, f"{page.name}: {target} is not in links.txt"
        else:
            goal = page.parent / path if path else page
            assert goal.exists(), f"{page.name}: a link leads to {path}, which is not there"
            assert not anchor or anchor in sections(goal.resolve()), (
                f"{page.name}: there is no #{anchor}"
            )


@pages
def test_every_image_is_small_and_described(page: Path) -> None:
    for text, target in re.findall(r"(?s)!\[(.*?)\]\((\S+?)\)", prose(page)):
        if not target.startswith("http"):
            image = page.parent / target
            assert image.read_bytes()[:4] == b"\x89PNG", f"{target} is no PNG"
            assert image.stat().st_size < 300_000, f"{target} is larger than 300 KB"
            assert len(text) > 40, f"{page.name} does not describe {target}"


def test_every_image_is_shown_in_the_section_of_its_number() -> None:
    there = {path.resolve() for path in (ROOT / "docs").rglob("*.png")}
    shown = {(page.parent / it).resolve() for page in PAGES for it in links(prose(page))} & there
    assert shown == there, f"no page shows {there - shown}"
    for image in re.findall(r"\]\(docs/images/(\S+)\)", LEARNINGS):
        section = LEARNINGS.partition(f"docs/images/{image}")[0].rpartition("\n## ")[2]
        assert section.startswith(image[:2]), f"{image} is not in the section of its lesson"


@pages
def test_every_table_is_well_formed(page: Path) -> None:
    for table in re.findall(r"(?m)(?:^\|.*\n)+", prose(page)):
        rows = [re.split(r"(?<!\\)\|", row.strip())[1:-1] for row in table.splitlines()]
        assert len({len(row) for row in rows}) == 1, f"{page.name}: cells are missing in\n{table}"
        assert all(re.fullmatch(r"\s*:?-+:?\s*", cell) for cell in rows[1]), f"no rule in\n{table}"


@pages
def test_every_block_of_code_is_closed_and_has_a_language(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"(?m)^```(.*)$", text)
    assert len(fences) % 2 == 0, f"{page.name} has a block that is not closed"
    known = {"bash", "console", "diff", "ini", "mermaid", "powershell", "python", "text"}
    known |= {"dockerfile", "sh", "toml", "yaml"}
    assert {fence.partition(" ")[0] for fence in fences[::2]} <= known
    assert set(fences[1::2]) <= {""}
    assert text.count("<details>") == text.count("</details>"), f"{page.name}: details left open"


def test_readme_opens_with_two_commands_that_do_all_the_set_up() -> None:
    install = "python3 -m venv .venv && .venv/bin/pip install -r"
    commands = re.findall(r"(?ms)^```bash\n(.*?)^```$", README)
    assert commands[0] == (
        f"{install} requirements.txt && .venv/bin/python 01_basic_example_with_flows.py\n"
    )
    assert commands[1] == f"{install} requirements-dev.txt && .venv/bin/python -m pytest\n"
    assert len(README.splitlines()) <= 110, "README.md is longer than a screen and a half"


def test_the_command_that_renews_the_lock_is_the_one_that_made_it() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    told = re.search(r'--custom-compile-command[= ]"(.+?)"', texts)
    assert told, "no page has the command that renews the lock"
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert told[1] in lock, "constraints.txt was made by another command"


def test_readme_uses_one_other_port_in_each_line_about_it() -> None:
    ports = set(re.findall(r"(?:127\.0\.0\.1:|--port )(\d+)", README)) - {"4200"}
    assert len(ports) == 1, f"README.md names {sorted(ports)} in the place of port 4200"
