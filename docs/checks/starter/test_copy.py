"""A copy of docs/starter in an empty place, with a new .venv: README.md's commands."""

import os
import re
import shutil
from pathlib import Path

import pytest
from clone import Clone
from machinery import ROOT
from pages import shell_blocks

STARTER = ROOT / "docs/starter"


@pytest.mark.timeout(1300)
def test_the_commands_run_the_pipeline_and_its_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*os.environ]:  # nothing of ours takes part
        if name.startswith(("PYTHON", "VIRTUAL_ENV", "SERVICE_")):
            monkeypatch.delenv(name)
    ignored = shutil.ignore_patterns(".*_cache", "__pycache__", ".venv")
    copy = shutil.copytree(STARTER, tmp_path / "copy", ignore=ignored)
    proxies = {name: os.environ[name] for name in os.environ if name.lower().endswith("_proxy")}
    shell = Clone(copy, {"HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path), **proxies})
    run_pipeline, run_tests = shell_blocks(STARTER / "README.md")
    result, log = shell.run(run_pipeline)
    assert log.count("| WARNING | Task run") == 2, f"two attempts fail:\n{log}"
    printed = "".join(re.findall(r"(?m)^(?:.*delivered|\{).*\n", log + result))
    readme = (STARTER / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"(?ms)^```text\n(.*?)^```", readme)
    shown, printed = (re.sub(r"\d{4}-\d\d-\d\d", "DAY", text) for text in (shown, printed))
    assert printed == shown, f"README.md shows\n{shown}but the run printed\n{printed}"
    assert re.search(r"\d+ passed", shell.run(run_tests)[0])
