"""A copy of docs/starter in an empty place, with a new .venv: README.md's commands, the types."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machinery import ROOT, run

STARTER = ROOT / "docs/starter"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the starter in an empty home."""
    ignored = shutil.ignore_patterns(".*_cache", "__pycache__", ".venv")
    return shutil.copytree(STARTER, tmp_path_factory.mktemp("home") / "copy", ignore=ignored)


def run_block(number: int, folder: Path) -> str:
    """Run this block of README.md as somebody who has nothing of ours; return the output."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    block = re.findall(r"(?ms)^```bash\n(.*?)^```", text)[number]
    ours = ("PREFECT_", "PYTHON", "VIRTUAL_ENV", "SERVICE_", "DO_NOT_TRACK", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    python = Path(sys.executable).parent  # where `python3` is one that the project supports
    path = {"HOME": str(folder.parent), "PATH": f"{python}{os.pathsep}{kept['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=kept | path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}"
    return done.stdout


def test_the_first_command_runs_the_pipeline(folder: Path) -> None:
    output = run_block(0, folder)
    assert output.count("| WARNING | Task run") == 2, f"two attempts fail:\n{output}"
    assert output.count("fake services: delivered") == 1, f"one message is delivered:\n{output}"
    assert "'message_id': 'message-1'" in output, f"the result is printed:\n{output}"


def test_the_second_command_passes_the_tests(folder: Path) -> None:
    output = run_block(1, folder)
    assert re.search(r"\d+ passed", output), output


def test_the_types_are_right(folder: Path) -> None:
    cache = f"--cache-dir={ROOT / '.mypy_cache'}"  # where Prefect's types may be
    result = run("-m", "mypy", "--strict", cache, ".", cwd=folder)
    assert result.returncode == 0, result.stdout
