"""What LEARNINGS.md says to try: each change has the effect, and fails the tests, that it says.

pytest -s docs/checks/page/test_things_to_try.py -k tests_fail prints which tests fail.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree

import pytest
from machinery import ROOT, changed_copy, run, script, serving
from pages import PAGES, RUN_ID, SECTIONS, work_seconds
from prefect.settings import PREFECT_API_URL
from recorded import read_ended
from transcripts import FENCE

pytestmark = pytest.mark.timeout(900)  # most of it is waiting, on a busy machine


@dataclass(frozen=True)
class Attempt:
    """A change that the page proposes, what it says will happen, and which tests tell."""

    script: str
    title: str
    diffs: tuple[str, ...]
    arguments: str
    effect: str
    tests: str

    def __str__(self) -> str:
        """Return what it is about."""
        return f"{self.script[:2]} {self.title}"

    def make(self, folder: Path) -> Path:
        """Return a copy of the script with the change."""
        text = (ROOT / self.script).read_text(encoding="utf-8")
        changes = [(lines(diff, " -"), lines(diff, " +")) for diff in self.diffs]
        for old, _ in changes:
            assert text.count(old) == 1, f"{self} changes what is there {text.count(old)} times"
        return changed_copy(ROOT / self.script, folder, *changes)

    def named(self) -> set[str]:
        """Return the tests that fail, as the page says."""
        found = set(re.findall(r"`(test_\w+)`", self.tests))
        assert found or "no test fails" in self.tests, f"{self} names no test"
        return found


def lines(diff: str, signs: str) -> str:
    """Return the lines of a diff that begin with one of the signs, without it."""
    return "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[:1] in signs)


def parts() -> Iterator[tuple[str, str, str]]:
    """Yield the script, the title and the text of everything that the page says to try."""
    for name, section in SECTIONS.items():
        for part in section.split("**Try it: ")[1:]:
            title, _, rest = part.partition("**")
            yield name, " ".join(title.split()), rest.partition("</details>")[0]


def attempts() -> Iterator[Attempt]:
    """Yield every change of a script that the page proposes."""
    for name, title, part in parts():
        diffs = re.findall(r"(?s)```diff\n(.*?)```", part)
        run_it = re.search(r"\nRun: `python \S+ ?(.*?)`", part)
        told = re.search(r"(?s)\n- Effect: (.*?)\n- Test: (.*?)(?:\n- Undo: |$)", part)
        if diffs:
            assert told, f"{name}: {title!r} has no effect, or no test"
            yield Attempt(name, title, tuple(diffs), run_it[1] if run_it else "", *told.groups())


ATTEMPTS = list(attempts())
of_attempts = pytest.mark.parametrize("attempt", ATTEMPTS, ids=str)


@of_attempts
def test_a_change_has_the_effect_that_the_page_states(attempt: Attempt, tmp_path: Path) -> None:
    copy = attempt.make(tmp_path)
    api_url = str(PREFECT_API_URL.value())
    served = serving(api_url, script("09"), tmp_path / "09.log")
    with served if attempt.script > "10" else nullcontext():
        told = run(copy, *attempt.arguments.split(), seconds=300, PREFECT_API_URL=api_url)
    text = told.stdout + told.stderr
    # As the page writes a record: its level and its message.
    text += re.sub(r"(?m)^\S+ \| (\w+) +\| .*? - ", r"\1 ", text)
    for effect in re.findall(r"`([^`]+)`", attempt.effect):
        assert " ".join(effect.split()) in text, f"{effect!r} is not what happens, but\n{text}"
    stated = re.findall(r"\*\*(\d+) s\*\*", attempt.effect)
    for seconds in stated:
        flow_run = read_ended(UUID(RUN_ID.findall(text)[0]))
        measured = work_seconds(flow_run, copy.read_text(encoding="utf-8"))
        assert measured == int(seconds), f"the work took {measured} s, and the page says {seconds}"
    assert stated or "`" in attempt.effect, "it states no effect to check"


@pytest.fixture(scope="session")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[Attempt, set[str]]:
    """Return which tests of its stage fail after each change: all stages run in one pytest."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "tests").mkdir()
    for path in [
        *(ROOT / "tests" / name for name in ("conftest.py", "recorded.py", "programs.py")),
        script("09"),
    ]:
        shutil.copy(path, folder / "tests" if "tests" in path.parts else folder)
    for number, attempt in enumerate(ATTEMPTS):
        place = folder / "tests" / str(number)
        place.mkdir()
        attempt.make(place)
        shutil.copy(ROOT / "tests" / f"test_{attempt.script}", place)
    options = ("--import-mode=importlib", "--rootdir=.", "-o", "pythonpath=tests", "-n2", "-q")
    told = run(
        *("-m", "pytest", "--timeout=300", "--junitxml=told.xml", *options, "tests"),
        cwd=folder,
        seconds=900,
    )
    assert told.returncode in (0, 1), told.stdout + told.stderr
    found: dict[Attempt, set[str]] = {attempt: set() for attempt in ATTEMPTS}
    for case in ElementTree.parse(folder / "told.xml").iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            number = int(case.attrib["classname"].split(".")[1])
            found[ATTEMPTS[number]].add(case.attrib["name"].partition("[")[0])
    return found


@of_attempts
def test_the_tests_fail_that_the_page_names(
    attempt: Attempt, failed: dict[Attempt, set[str]]
) -> None:
    print(f"\n{attempt}: {', '.join(sorted(failed[attempt])) or 'no test fails'}")
    assert failed[attempt] == attempt.named(), (
        f"after {str(attempt)!r} these tests fail: {failed[attempt] or 'none'}"
    )


def test_everything_to_try_is_tried() -> None:
    for name, title, part in parts():
        tried = "```diff" in part or FENCE.search(part) or re.search(r"`test_\w+`", part)
        assert tried, f"{name}, {title!r} has no diff, no transcript and no test"


def test_every_test_that_a_page_names_exists() -> None:
    files = [*(ROOT / "tests").glob("*.py"), *(ROOT / "docs" / "checks").glob("*/*.py")]
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    unknown = set(re.findall(r"`(test_\w+)`", texts)) - set(re.findall(r"def (test_\w+)", sources))
    assert not unknown, f"there are no tests {sorted(unknown)}"
