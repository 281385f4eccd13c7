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
README = (STARTER / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the starter in an empty home."""
    ignored = shutil.ignore_patterns(".*_cache", "__pycache__", ".venv")
    return shutil.copytree(STARTER, tmp_path / "copy", ignore=ignored)


def run_command(command: str, folder: Path) -> str:
    """Run the lines of shell as somebody who has nothing of ours; return the output."""
    ours = ("PREFECT_", "PYTHON", "VIRTUAL_ENV", "SERVICE_", "DO_NOT_TRACK", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    python = Path(sys.executable).parent  # where `python3` is one that the project supports
    path = {"HOME": str(folder.parent), "PATH": f"{python}{os.pathsep}{kept['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=kept | path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.mark.timeout(900)
def test_the_commands_run_the_pipeline_and_its_tests(folder: Path) -> None:
    run_pipeline, run_tests = re.findall(r"(?ms)^```bash\n(.*?)^```", README)
    (shown,) = re.findall(r"(?ms)^```text\n(.*?)^```", README)
    output = run_command(run_pipeline, folder)
    assert output.count("| WARNING | Task run") == 2, f"two attempts fail:\n{output}"
    printed = "".join(re.findall(r"(?m)^(?:.*delivered|\{).*\n", output))
    shown, printed = (re.sub(r"\d{4}-\d\d-\d\d", "DAY", text) for text in (shown, printed))
    assert printed == shown, f"README.md shows\n{shown}but the run printed\n{printed}"
    assert re.search(r"\d+ passed", run_command(run_tests, folder))


def test_the_types_are_right(folder: Path) -> None:
    cache = f"--cache-dir={ROOT / '.mypy_cache'}"  # where Prefect's types may be
    result = run("-m", "mypy", "--strict", cache, ".", cwd=folder)
    assert result.returncode == 0, result.stdout
