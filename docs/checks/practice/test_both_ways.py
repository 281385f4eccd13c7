"""Each exercise is unsolved as it stands, and its check tells right solutions from wrong ones."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from exercise import Exercise
from machinery import ROOT, run

pytestmark = pytest.mark.usefixtures("harness")

FOLDER = ROOT / "docs" / "practice"
NAMES = sorted(path.stem for path in FOLDER.glob("[01]*.py"))


def read_variants(name: str) -> dict[str, Any]:
    """Return the `right` and `wrong` variants of the solution, itself the first right one."""
    text = (FOLDER / "variants" / f"{name}.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)
    found["right"].insert(0, {"idea": "the solution", "changes": []})
    return found


def variants(kind: str) -> list[Any]:
    """Return name, changes to the solution, and words of each `right` or `wrong` variant."""
    return [
        pytest.param(name, it["changes"], it.get("words", ""), id=f"{name}: {it['idea']}")
        for name in NAMES
        for it in read_variants(name)[kind]
    ]


def judge(path: Path) -> str:
    """Return what the check says about the exercise at `path`, or "" if it is solved."""
    checks = Exercise(FOLDER / "checks" / f"test_{path.stem}.py").module  # loaded likewise
    (check,) = (value for name, value in vars(checks).items() if name.startswith("test_"))
    try:
        check(Exercise(path))
    except AssertionError as error:
        return str(error)
    return ""


def change(name: str, changes: list[list[str]], folder: Path) -> Path:
    """Return a copy, in `folder`, of the solution with the changes made."""
    text = (FOLDER / "solutions" / f"{name}.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, f"not once in the solution: {old}"
        text = text.replace(old, new)
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_command_stops_at_the_first_unsolved_exercise(tmp_path: Path) -> None:
    for folder in ("docs/practice", "tests"):
        ignored = shutil.ignore_patterns(".pytest_cache", "__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    first, second = NAMES[:2]
    change(first, [], tmp_path / "docs" / "practice")
    command = [sys.executable, "-m", "pytest", "docs/practice"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = ended.stdout
    for words in (f"Solved: 1 of {len(NAMES)} exercises", f"docs/practice/hints/{second}.md"):
        assert words in told, f"expected {words!r}, got {told}"
    assert "1 failed, 1 solved" in told, f"it goes on behind the first unsolved exercise: {told}"
    assert "Traceback" not in told, f"a learner reads a traceback: {told}"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_unsolved_as_it_stands(name: str) -> None:
    assert judge(FOLDER / f"{name}.py"), "there is nothing to solve"


@pytest.mark.parametrize(("name", "changes", "_words"), variants("right"))
def test_a_right_solution_is_accepted(
    name: str, changes: list[list[str]], _words: str, tmp_path: Path
) -> None:
    assert judge(change(name, changes, tmp_path)) == ""


@pytest.mark.parametrize(("name", "changes", "words"), variants("wrong"))
def test_a_wrong_idea_gets_a_message_about_it(
    name: str, changes: list[list[str]], words: str, tmp_path: Path
) -> None:
    message = judge(change(name, changes, tmp_path))
    assert words in message, f"expected {words!r}, got {message or 'no complaint'!r}"


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_story_a_hint_two_ways_right_and_two_wrong(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert re.match(r'"""Who is about to leave\?.*\n\nRun: .*\nNow: [\s\S]*\nGoal: ', text), text
    assert 15 <= len(text.splitlines()) <= 50, "an exercise has 15 to 50 lines"
    hint = (FOLDER / "hints" / f"{name}.md").read_text(encoding="utf-8")
    assert "```" not in hint, "a hint gives no code to paste"
    both = read_variants(name)
    assert len(both["right"]) >= 3, "two right variants beside the solution are needed"
    assert len(both["wrong"]) >= 2, "two wrong variants are needed"


def test_12_names_a_missing_server_in_one_line() -> None:
    api_url = "http://127.0.0.1:9/api"
    ended = run(FOLDER / "12_one_event_once.py", PREFECT_API_URL=api_url)
    expected = f"error: no server at {api_url}. Start it: prefect server start --background\n"
    assert (ended.returncode, ended.stderr) == (1, expected)
