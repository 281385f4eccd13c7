"""LEARNINGS.md and README.md: links, anchors, images, tables and the set-up commands."""

import re
from pathlib import Path

import pytest
from support import ROOT, SCRIPTS

PAGES = [ROOT / "README.md", ROOT / "LEARNINGS.md"]
README = PAGES[0].read_text(encoding="utf-8")

# The pages of Prefect's documentation that ours point to; each was seen to exist.
PREFECT = "https://docs.prefect.io/v3/"
PREFECT_PAGES = {
    "api-ref/rest-api",
    "concepts/automations",
    "concepts/deployments",
    "concepts/flows",
    "concepts/schedules",
    "concepts/server",
    "concepts/states",
    "concepts/task-runners",
    "concepts/tasks",
    "concepts/work-pools",
    "concepts/workers",
    "how-to-guides/cloud/connect-to-cloud",
    "how-to-guides/configuration/store-secrets",
    "how-to-guides/deployment_infra/run-flows-in-local-processes",
    "how-to-guides/deployments/run-deployments",
    "how-to-guides/self-hosted/server-cli",
    "how-to-guides/workflows/access-runtime-info",
    "how-to-guides/workflows/add-logging",
    "how-to-guides/workflows/artifacts",
    "how-to-guides/workflows/cache-workflow-steps",
    "how-to-guides/workflows/retries",
    "how-to-guides/workflows/run-work-concurrently",
    "how-to-guides/workflows/write-and-run",
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page: Path) -> str:
    """Return the page without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[tuple[str, str]]:
    """Return the text and the target of every link and image of the page, `!` before an image."""
    found = re.findall(r"(?s)(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)", prose(page))
    return [(text, target) for text, target in found]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of the page."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    for text, target in links(page):
        path, _, anchor = target.partition("#")
        if target.startswith(PREFECT):
            known = path.removeprefix(PREFECT) in PREFECT_PAGES
            assert known, f"{page.name}: {target} is no page of Prefect's that was seen to exist"
        elif not target.startswith(("http://127.0.0.1:4200", "https://docs.astral.sh/uv")):
            goal = ROOT / path if path else page
            assert goal.exists(), f"{page.name}: {text} leads to {path}, which is not there"
            assert not anchor or anchor in anchors(goal), f"{page.name}: there is no #{anchor}"


@pages
def test_every_image_is_small_described_and_there(page: Path) -> None:
    for text, target in links(page):
        if text.startswith("!"):
            image = ROOT / target
            assert image.read_bytes()[:4] == b"\x89PNG", f"{target} is no PNG"
            assert image.stat().st_size < 300_000, f"{target} is larger than 300 KB"
            assert len(text) > 40, f"{page.name} does not describe {target}"


def test_every_image_is_shown_where_its_number_says() -> None:
    images = sorted(path.name for path in (ROOT / "docs" / "images").iterdir())
    text = PAGES[1].read_text(encoding="utf-8")
    assert re.findall(r"\]\(docs/images/(\S+)\)", text) == images, "an image is missing, or spare"
    for image in images:
        section = text.partition(f"docs/images/{image}")[0].rpartition("\n## ")[2]
        assert section.startswith(image[:2]), f"{image} is not in the section of its lesson"


@pages
def test_every_table_is_well_formed(page: Path) -> None:
    for table in re.findall(r"(?m)(?:^\|.*\n)+", prose(page)):
        rows = [re.split(r"(?<!\\)\|", row.strip())[1:-1] for row in table.splitlines()]
        assert len({len(row) for row in rows}) == 1, f"{page.name}: cells are missing in\n{table}"
        assert all(re.fullmatch(r"\s*:?-+:?\s*", cell) for cell in rows[1]), f"no rule in\n{table}"


@pages
def test_every_block_of_code_is_closed_and_has_a_language(page: Path) -> None:
    fences = re.findall(r"(?m)^```(.*)$", page.read_text(encoding="utf-8"))
    assert len(fences) % 2 == 0, f"{page.name} has a block that is not closed"
    known = {"bash", "console", "diff", "mermaid", "powershell", "python", "text"}
    assert {fence.partition(" ")[0] for fence in fences[::2]} <= known
    assert set(fences[1::2]) <= {""}


def test_readme_opens_with_two_commands_that_do_all_the_set_up() -> None:
    install = "python3 -m venv .venv && .venv/bin/pip install -r"
    commands = re.findall(r"(?ms)^```bash\n(.*?)^```$", README)
    assert commands[0] == (
        f"{install} requirements.txt && .venv/bin/python 01_basic_example_with_flows.py\n"
    )
    assert commands[1] == f"{install} requirements-dev.txt && .venv/bin/python -m pytest\n"


def test_readme_is_no_longer_than_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 100, "README.md is too long"


def test_readme_names_every_script_in_order() -> None:
    table = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    assert re.findall(r"\]\((\d\d_\w+\.py)\)", table) == SCRIPTS, "the path is another"


def test_the_command_that_renews_the_lock_is_the_one_that_made_it() -> None:
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (told,) = re.findall(r'--custom-compile-command "(.+?)"', README)
    assert told in lock, "constraints.txt was made by another command"
    assert f"## {told.partition(', ')[2]}\n" in README, f"README.md has no heading for {told!r}"
