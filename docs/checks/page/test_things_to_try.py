"""What LEARNINGS.md says to try: each change has the effect, and fails the tests, that it says."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from machinery import ROOT, changed_copy, run
from pages import RUN_ID, SECTIONS, work_seconds
from prefect.settings import PREFECT_API_URL
from recorded import read_ended

pytestmark = [
    pytest.mark.usefixtures("harness"),
    pytest.mark.timeout(900),  # most of it is waiting, on a busy machine
]


@dataclass(frozen=True)
class Attempt:
    """A change that the page proposes, what it says will happen, and which tests tell."""

    script: str
    name: str  # "03 make the slowest task slower."
    diffs: tuple[str, ...]
    answer: str

    def make(self, folder: Path) -> Path:
        """Return a copy of the script with the change."""
        text = (ROOT / self.script).read_text(encoding="utf-8")
        changes = [(lines(diff, " -"), lines(diff, " +")) for diff in self.diffs]
        for old, _ in changes:
            assert text.count(old) == 1, (
                f"{self.name} changes what is there {text.count(old)} times"
            )
        return changed_copy(ROOT / self.script, folder, *changes)


def lines(diff: str, signs: str) -> str:
    """Return the lines of a diff that begin with one of the signs, without it."""
    return "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[:1] in signs)


def attempts() -> Iterator[Attempt]:
    """Yield every change of a script that the page proposes."""
    for script, section in SECTIONS.items():
        for part in section.split("**Try it: ")[1:]:
            title, _, rest = part.partition("**")
            change, _, answer = rest.partition("</details>")[0].partition("</summary>")
            if diffs := re.findall(r"(?s)```diff\n(.*?)```", change):
                name = f"{script[:2]} {' '.join(title.split())}"
                yield Attempt(script, name, tuple(diffs), answer)


ATTEMPTS = list(attempts())
of_attempts = pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda it: it.name)


@of_attempts
def test_a_change_has_the_effect_that_the_page_states(attempt: Attempt, tmp_path: Path) -> None:
    told = run(attempt.make(tmp_path), PREFECT_API_URL=str(PREFECT_API_URL.value()))
    text = told.stdout + told.stderr
    # As the page writes a record: its level and its message.
    text += re.sub(r"(?m)^\S+ \| (\w+) +\| .*? - ", r"\1 ", text)
    spans = re.findall(r"`([^`]+)`", attempt.answer)
    effects = [it for it in spans if not it.startswith("test_")]
    for effect in effects:
        words = rf"(?<!\w){re.escape(' '.join(effect.split()))}(?!\w)"
        assert re.search(words, text), f"{effect!r} is not what happens, but\n{text}"
    stated = re.findall(r"\*\*(\d+) s\*\*", attempt.answer)
    for seconds in stated:
        measured = work_seconds(read_ended(UUID(RUN_ID.findall(text)[0])))
        assert measured == int(seconds), f"the work took {measured} s, and the page says {seconds}"
    assert stated or effects, "it states no effect to check"


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[Attempt, set[str]]:
    """Return which tests of its lesson fail after each change: all run in one pytest."""
    folder = tmp_path_factory.mktemp("changed")
    for name in ("conftest.py", "recorded.py"):
        shutil.copy(ROOT / "tests" / name, folder)
    for number, attempt in enumerate(ATTEMPTS):
        place = folder / str(number)
        place.mkdir()
        attempt.make(place)
        shutil.copy(ROOT / "tests" / f"test_{attempt.script}", place)
    options = ("--import-mode=importlib", "-o", "pythonpath=.", "-q", "-rfE")
    told = run("-m", "pytest", *options, cwd=folder).stdout
    assert re.search(r"(?m)^\d+ failed, \d+ passed", told), told
    found: dict[Attempt, set[str]] = {attempt: set() for attempt in ATTEMPTS}
    for number, test in re.findall(r"(?m)^(?:FAILED|ERROR) (\d+)/\S+?::(\w+)", told):
        found[ATTEMPTS[int(number)]].add(test)
    return found


@of_attempts
def test_the_tests_fail_that_the_page_names(
    attempt: Attempt, failed: dict[Attempt, set[str]]
) -> None:
    found, named = failed[attempt], set(re.findall(r"`(test_\w+)`", attempt.answer))
    assert found == named, f"after {attempt.name!r} these tests fail: {found or 'none'}"


def test_everything_to_try_is_tried() -> None:
    for script, section in SECTIONS.items():
        for part in section.split("**Try it: ")[1:]:
            tried = re.search(r"```diff|```console|`test_\w+`", part.partition("</details>")[0])
            assert tried, f"{script}, {part.partition('**')[0]!r} has no diff, transcript or test"
