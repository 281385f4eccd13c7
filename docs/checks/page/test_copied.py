"""What readers copy works elsewhere: a lesson with its tests, and what docs/testing.md shows."""

import ast
import re
import shutil
from pathlib import Path

import pytest
from machinery import ROOT, run, script
from pages import Compare

pytestmark = pytest.mark.timeout(300)


def run_alone(folder: Path, *names: str, plugin: str = "") -> None:
    """Run the tests in a folder, after copying these files, without settings and other plugins."""
    for name in ("tests/conftest.py", "tests/recorded.py", *names):
        shutil.copy(ROOT / name, folder)
    others = {"xdist", "timeout", "pytest_httpserver", "cacheprovider"} - {plugin}
    result = run("-m", "pytest", "-q", *[f"-pno:{it}" for it in others], cwd=folder)
    assert result.returncode == 0, f"copied, it fails:\n{result.stdout[-3000:]}"


def test_the_fixtures_are_described_as_in_their_file(compare: Compare) -> None:
    tree = ast.parse((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    fixtures = {it.name: it for it in tree.body if isinstance(it, ast.FunctionDef)}
    rows = []
    for name, it in fixtures.items():
        uses = [f"`{one.arg}`" for one in it.args.args if one.arg in fixtures]
        does = " ".join(str(ast.get_docstring(it)).split())
        rows.append((f"`{name}`", does, ", ".join(uses)))
    compare("fixtures", ("Fixture", "What it does", "It uses"), rows)


def test_the_flow_of_testing_md_needs_two_fixture_files(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```python notest\n(.*?)^```$", page)
    (tmp_path / "sales.py").write_text(blocks[0], encoding="utf-8")
    (tmp_path / "test_sales.py").write_text("\n".join(blocks[1:]), encoding="utf-8")
    run_alone(tmp_path)


def test_lesson_10_needs_programs_and_the_lessons_that_it_works_with(tmp_path: Path) -> None:
    nine, ten, eleven = (script(number).name for number in ("09", "10", "11"))
    names = (nine, ten, eleven, f"tests/test_{ten}", "tests/programs.py")
    run_alone(tmp_path, *names, plugin="pytest_httpserver")
