"""Each exercise is unsolved as it stands, and its check tells right solutions from wrong ones."""

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from exercise import Exercise
from machinery import ROOT, changed_copy, run
from prefect.settings import PREFECT_API_URL

pytestmark = pytest.mark.usefixtures("harness")

FOLDER = ROOT / "docs" / "practice"
NAMES = sorted(path.stem for path in FOLDER.glob("[01]*.py"))
SOLVED = "SOLVED"  # what is right
# Takes the place of tests/conftest.py, which would start another server.
CONFTEST = '''
import pytest

@pytest.fixture(scope="session")
def harness() -> None:
    """PREFECT_API_URL names a server."""
'''


def read_variants(name: str) -> dict[str, Any]:
    """Return the `right` and `wrong` variants of the solution, itself the first right one."""
    found = tomllib.loads((FOLDER / f"variants/{name}.toml").read_text(encoding="utf-8"))
    found["right"].insert(0, {"idea": "the solution", "changes": []})
    return found


VARIANTS = [
    pytest.param(name, it["changes"], it.get("words", SOLVED), id=f"{name}: {it['idea']}")
    for name in NAMES
    for kind in ("right", "wrong")
    for it in read_variants(name)[kind]
]


def judge(path: Path) -> str:
    """Return what the check says about the exercise at `path`, or SOLVED."""
    checks = Exercise(FOLDER / f"checks/test_{path.stem}.py").module  # loaded likewise
    (check,) = (value for name, value in vars(checks).items() if name.startswith("test_"))
    try:
        check(Exercise(path))
    except AssertionError as error:
        return str(error)
    return SOLVED


def test_the_command_stops_at_the_first_unsolved_exercise(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns(".pytest_cache", "__pycache__")
    for folder in ("docs/practice", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    (tmp_path / "tests/conftest.py").write_text(CONFTEST, encoding="utf-8")
    first, second = NAMES[:2]
    shutil.copy(FOLDER / f"solutions/{first}.py", tmp_path / "docs" / "practice")
    command = ("-m", "pytest", "docs/practice")
    shown = run(*command, cwd=tmp_path, PREFECT_API_URL=PREFECT_API_URL.value()).stdout
    for words in (f"Solved: 1 of {len(NAMES)} exercises", f"docs/practice/hints/{second}.md"):
        assert words in shown, f"expected {words!r}, got {shown}"
    assert "1 failed, 1 solved" in shown, f"it goes on behind the first unsolved one: {shown}"
    assert "Traceback" not in shown, f"a learner reads a traceback: {shown}"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_unsolved_as_it_stands(name: str) -> None:
    assert judge(FOLDER / f"{name}.py") != SOLVED, "there is nothing to solve"


@pytest.mark.parametrize(("name", "changes", "expected"), VARIANTS)
def test_a_right_solution_is_accepted_and_a_wrong_idea_gets_a_message_about_it(
    name: str, changes: list[tuple[str, str]], expected: str, tmp_path: Path
) -> None:
    message = judge(changed_copy(FOLDER / f"solutions/{name}.py", tmp_path, *changes))
    assert expected in message, f"expected {expected!r}, got {message!r}"


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
