"""The commands of README.md: they set up, start a server, and fix what they are said to fix."""

import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import requests
from clone import Clone
from machinery import ROOT, Server, free_port, migrated_database, script
from pages import LEARNINGS, find_block, shell_blocks

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = shell_blocks(ROOT / "README.md")
block = partial(find_block, BLOCKS)
# A command, and the same in PowerShell.
POWERSHELL = {
    r"^export (\w+)=(\S+)": r'$env:\1 = "\2"',
    r"^unset (\w+)": r"Remove-Item Env:\1",
    r"^source |^python3(?= -m venv)": "",
    r"^ -m venv": "py -m venv",
    r"\.venv/bin/": r".venv\\Scripts\\",
    r" &&": ";",
}


@pytest.fixture
def shell(tmp_path: Path) -> Clone:
    """Return the repository and an empty home, with a database, so that a server starts fast."""
    shutil.copy(migrated_database(), tmp_path)
    return Clone(ROOT, {"PREFECT_HOME": str(tmp_path)})


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


def test_the_commands_that_cannot_be_run_here_are_those_that_were_tried() -> None:
    """One installs from the internet, and one is for Windows."""
    with_uv = "uv run --no-project --with-requirements requirements.txt python"
    policy = "Set-ExecutionPolicy -Scope Process RemoteSigned"
    for command in (f"{with_uv} {script('01').name}", policy):
        assert f"\n{command}\n```" in README, f"README.md has no longer: {command}"


def assert_same(command: str, powershell: str) -> None:
    """Fail if the second command is not the first one in PowerShell."""
    for pattern, replacement in POWERSHELL.items():
        command = re.sub(pattern, replacement, command)
    assert powershell == command, f"in PowerShell, this should be {command}"


def test_a_server_is_started_and_its_address_is_cleared(shell: Clone) -> None:
    port = shell.exported["PREFECT_SERVER_API_PORT"] = str(free_port())
    start = block("status --wait", ("source .venv/bin/activate", ""), ("4200", port))
    (shown,) = re.findall(r"(?ms)^```bash\n(prefect server start.*?)^```$", LEARNINGS)
    shown = re.sub(" +#.*", "", shown.replace("4200", port))
    assert re.sub(" +#.*", "", start).strip() == shown.strip(), "LEARNINGS.md starts another server"
    switch, show = "prefect profile use local || :", "prefect config view"
    commands = [f"python {script('01')}", "prefect server stop", switch, block("unset"), show]
    printed = "".join(shell.run("\n".join([start, *commands])))
    assert f"View at http://127.0.0.1:{port}/" in printed, f"no run on the server: {printed}"
    settings = printed.rpartition("PREFECT_PROFILE=")[2]
    assert settings.startswith("'ephemeral'"), f"another profile is left: {settings}"
    assert "PREFECT_API_URL" not in settings, f"an address is left: {settings}"


def test_a_server_is_started_on_another_port(shell: Clone) -> None:
    port = str(free_port())
    start = block("--port", ("4300", port))
    try:
        commands = f"{start}\nprefect server status --wait\npython {script('01')}"
        printed = "".join(shell.run(commands))
        asked = requests.get(f"http://127.0.0.1:{port}/ui-settings", timeout=60).json()["api_url"]
    finally:
        shell.run(f"PREFECT_SERVER_API_PORT={port} prefect server stop")
    assert f"View at http://127.0.0.1:{port}/" in printed, f"no run on the server: {printed}"
    assert asked == f"http://127.0.0.1:{port}/api", f"the UI asks {asked}"


def test_a_server_that_starts_too_slowly_gets_more_time(shell: Clone) -> None:
    message = "Timed out while attempting to connect to ephemeral Prefect API server"
    assert message in README
    less = block("STARTUP_TIMEOUT", ("=180", "=1"))
    shell.exported["PREFECT_HOME"] += "/empty"
    _, printed = shell.run(f"{less}\npython {script('01')}", exits=1)
    assert message in printed, f"it is another setting: {printed}"


def test_a_proxy_is_not_asked_for_this_machine(at: Server, shell: Clone) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "PREFECT_API_URL": at.api_url}
    shell.exported |= proxy | {"NO_PROXY": "here"}
    lesson, show = f"python {script('11')}", 'echo "$NO_PROXY" "$no_proxy"'
    assert "returned 404" not in shell.run(lesson, exits=1)[1], "the proxy was not asked"
    stdout, stderr = shell.run(f"{block('NO_PROXY')}\n{show}\n{lesson}", exits=1)
    assert "returned 404" in stderr, f"the server was not asked: {stderr}"
    assert stdout == "here,127.0.0.1,localhost 127.0.0.1,localhost\n", f"it is set to {stdout}"
