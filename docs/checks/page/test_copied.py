"""What readers copy works elsewhere: a stage beside its lesson, and what docs/testing.md shows."""

import re
import shutil
from pathlib import Path

import pytest
from machinery import ROOT, run, script

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="session", autouse=True)
def harness() -> None:
    """Start no server: the copies start their own."""


def run_alone(folder: Path, *needed: str) -> None:
    """Run the tests in a folder with prefect and pytest, no pyproject.toml, the plugins needed."""
    for name in ("conftest.py", "recorded.py"):
        shutil.copy(ROOT / "tests" / name, folder)
    others = {"xdist", "timeout", "pytest_httpserver", "cacheprovider"} - {*needed}
    result = run("-m", "pytest", "-q", *[f"-pno:{it}" for it in others], cwd=folder, seconds=280)
    assert result.returncode == 0, f"copied, it fails:\n{result.stdout[-3000:]}"


@pytest.mark.parametrize(
    ("number", "further"), [("06", []), ("12", ["09_user_flow.py", "tests/programs.py"])]
)
def test_a_stage_passes_beside_a_copy_of_its_lesson(
    tmp_path: Path, number: str, further: list[str]
) -> None:
    name = script(number).name
    for path in (name, f"tests/test_{name}", *further):
        shutil.copy(ROOT / path, tmp_path)
    run_alone(tmp_path, *(["pytest_httpserver"] if number == "12" else []))


def test_the_flow_and_its_tests_in_testing_md_pass(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```python notest\n(.*?)^```$", page)
    (tmp_path / "sales.py").write_text(blocks[0], encoding="utf-8")
    (tmp_path / "test_sales.py").write_text("\n".join(blocks[1:]), encoding="utf-8")
    run_alone(tmp_path)
