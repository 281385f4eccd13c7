"""The commands of README.md: they set up, start a server, and fix what they are said to fix."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import requests
from machinery import ROOT, Server, free_port, migrated_database, run, script
from pages import LEARNINGS

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"(?ms)^```bash\n(.*?)^```$", README)
SHELL = ("bash", "-euc")
# A command, and the same in PowerShell.
POWERSHELL = {
    r"^export (\w+)=(\S+)": r'$env:\1 = "\2"',
    r"^unset (\w+)": r"Remove-Item Env:\1",
    r"^source |^python3(?= -m venv)": "",
    r"^ -m venv": "py -m venv",
    r"\.venv/bin/": r".venv\\Scripts\\",
    r" &&": ";",
}


def block(words: str, *changes: tuple[str, str]) -> str:
    """Return the block with these words, with each (old, new) text replaced."""
    (found,) = (text for text in BLOCKS if words in text)
    for old, new in changes:
        assert old in found, f"no {old!r} in\n{found}"
        found = found.replace(old, new)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a PREFECT_HOME in which a server starts fast."""
    shutil.copy(migrated_database(), tmp_path)
    return tmp_path


def run_shell(home: Path, *commands: str, **settings: Any) -> str:
    """Run the commands in one shell, by somebody who never ran Prefect; return what they print."""
    told = run("\n".join(commands), program=SHELL, PREFECT_HOME=str(home), **settings)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout + told.stderr


def test_two_commands_do_all_the_set_up() -> None:
    install = "python3 -m venv .venv && .venv/bin/pip install -r"
    python = ".venv/bin/python"
    assert BLOCKS[0] == f"{install} requirements.txt && {python} 01_basic_example_with_flows.py\n"
    assert BLOCKS[1] == f"{install} requirements-dev.txt && {python} -m pytest\n"


def test_the_commands_for_powershell_do_the_same() -> None:
    for line in re.findall(r"(?m)^.+ # PowerShell: .+$", README + LEARNINGS):
        assert_same(*re.split(" +# PowerShell: ", line))
    (setup,) = re.findall(r"(?ms)^```powershell\n(py .*?)^```$", README)
    for line, there in zip(BLOCKS[:2], setup.splitlines(), strict=True):
        assert_same(line.rstrip(), there)


def assert_same(command: str, powershell: str) -> None:
    """Fail if the second command is not the first one in PowerShell."""
    for pattern, replacement in POWERSHELL.items():
        command = re.sub(pattern, replacement, command)
    assert powershell == command, f"in PowerShell, this should be {command}"


def test_a_server_is_started_and_its_address_is_cleared(home: Path) -> None:
    port = str(free_port())
    start = block("status --wait", ("source .venv/bin/activate", ""), ("4200", port))
    (shown,) = re.findall(r"(?ms)^```bash\n(prefect server start.*?)^```$", LEARNINGS)
    shown = re.sub(" +#.*", "", shown.replace("4200", port))
    assert re.sub(" +#.*", "", start).strip() == shown.strip(), "LEARNINGS.md starts another server"
    switch, show = "prefect profile use local || :", "prefect config view"
    commands = [f"python {script('01')}", "prefect server stop", switch, block("unset"), show]
    printed = run_shell(home, start, *commands, PREFECT_SERVER_API_PORT=port)
    assert f"View at http://127.0.0.1:{port}/" in printed, f"no run on the server: {printed}"
    settings = printed.rpartition("PREFECT_PROFILE=")[2]
    assert settings.startswith("'ephemeral'"), f"another profile is left: {settings}"
    assert "PREFECT_API_URL" not in settings, f"an address is left: {settings}"


def test_a_server_is_started_on_another_port(home: Path) -> None:
    port = str(free_port())
    start = block("--port", ("4300", port))
    try:
        printed = run_shell(home, start, "prefect server status --wait", f"python {script('01')}")
        asked = requests.get(f"http://127.0.0.1:{port}/ui-settings", timeout=60).json()["api_url"]
    finally:
        run_shell(home, "prefect server stop", PREFECT_SERVER_API_PORT=port)
    assert f"View at http://127.0.0.1:{port}/" in printed, f"no run on the server: {printed}"
    assert asked == f"http://127.0.0.1:{port}/api", f"the UI asks {asked}"


def test_a_server_that_starts_too_slowly_gets_more_time(tmp_path: Path) -> None:
    message = "Timed out while attempting to connect to ephemeral Prefect API server"
    assert message in README
    less = block("STARTUP_TIMEOUT", ("=180", "=1"))
    printed = run_shell(tmp_path, less, f"! python {script('01')}")
    assert message in printed, f"it is another setting: {printed}"


def test_a_proxy_is_not_asked_for_this_machine(at: Server, tmp_path: Path) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "PREFECT_API_URL": at.api_url}
    lesson = f"! python {script('11')}"
    assert "returned 404" not in run_shell(tmp_path, lesson, **proxy), "the proxy was not asked"
    show = 'echo "$NO_PROXY" "$no_proxy"'
    printed = run_shell(tmp_path, block("NO_PROXY"), lesson, show, NO_PROXY="here", **proxy)
    assert "returned 404" in printed, f"the server was not asked: {printed}"
    assert "here,127.0.0.1,localhost 127.0.0.1,localhost" in printed, f"it is set to {printed}"
