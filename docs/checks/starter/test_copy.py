"""The starter, copied to an empty place: its commands, the linters, what its tests notice."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

STARTER = Path(__file__).parents[2] / "starter"
IGNORED = shutil.ignore_patterns(".*_cache", "__pycache__", ".venv")

# What is changed in a file, which tests must notice it, and what they must say is lost.
MUTATIONS = [
    ("services.py", "if key else {}", "if None else {}", "its_body", "key is not sent"),
    ("services.py", "json=body", "json=None", "its_body", "the body is not sent"),
    ("services.py", "=TIMEOUT_SECONDS", "=None", "hangs", "is the timeout passed"),
    ("services.py", "> deadline", "< 0", "trickles", "a slow body has no limit"),
    ("services.py", "status_code >= 400", "status_code >= 600", "refusal", "is the status checked"),
    ("services.py", "in TRANSIENT_STATUSES", "== 503", "transient", "it is worth a retry"),
    ("services.py", "redirects=False", "redirects=True", "redirect", "redirect was followed"),
    ("services.py", "if 300 <=", "if 600 <=", "redirect", "where the redirect leads"),
    ("services.py", "strict=True", "strict=False", "shape", "is it validated"),
    ("services.py", "_validate_json(bytes(content))", "_construct()", "shape", "is it validated"),
    ("services.py", "if isinstance(error, SSLError)", "if False", "certificate", "trusted"),
    ("services.py", ", HTTPError)", ")", "cut", "a cut connection"),
    ("services.py", "read1(65_536,", "read1(1,", "large", "read byte by byte"),
    ("services.py", 'line.replace(token, "***") if token else line', "line", "token", "the token"),
    ("services.py", ", RETRY_AFTER_LIMIT)", ", 1e9)", "up_to_a_limit", "where is the limit"),
    ("services.py", 'r"//[^/\\s]*@"', '"$^"', "password", "shows a password"),
    ("services.py", "in_progress or ", "", "409", "whether the message was delivered"),
    ("pipeline.py", "[2.0, 10.0, 30.0]", "[0.0, 0.0, 0.0]", "an_outage", "at once: no delay"),
    ("pipeline.py", "churn-{user.user_id}-", "churn-", "another_user", "both users have the key"),
    ("pipeline.py", "answer.user_id != user_id", "False", "another_users", "was taken for 101"),
    ("pipeline.py", "{day}", "{time.time()}", "the_key", "the second attempt has another key"),
    ("pipeline.py", "day or date.today()", "date.today()", "the_key", "another day has"),
    ("pipeline.py", "retries=len(RETRY_DELAYS), ", "", "an_outage", "has its task its retries"),
    ("pipeline.py", ", retry_condition_fn=is_outage", "", "a_refusal", "its retry condition"),
    ("pipeline.py", "get_run_logger().warning", "get_run_logger().debug", "logged", "one WARNING"),
    ("pipeline.py", "time.sleep(", "max(0, ", "retry_after", "was asked again after"),
    ("report.py", "except RuntimeError", "except KeyError", "missing_server", "Failed to reach"),
    ("report.py", "is not customer", "is None", "damaged", "does not name"),
]


def environment(home: Path) -> dict[str, str]:
    """Return the environment of somebody whose home is empty, who has nothing of ours."""
    left_out = ("PREFECT_", "PYTHON", "VIRTUAL_ENV", "SERVICE_", "DO_NOT_TRACK", "PYTEST_")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(left_out)}
    python = Path(sys.executable).parent  # where `python3` is one that the project supports
    return {**kept, "HOME": str(home), "PATH": f"{python}{os.pathsep}{kept['PATH']}"}


def run(command: str, folder: Path) -> tuple[int, str]:
    """Run a line of shell in the folder; return its exit code and what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment(folder.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout


def copy_and_run_block(number: int, home: Path) -> tuple[Path, str]:
    """Copy the starter into the home, run this block of its README.md; return folder and output."""
    folder = shutil.copytree(STARTER, home / "my-pipeline", ignore=IGNORED)
    blocks = re.findall(r"(?ms)^```bash\n(.*?)^```", (folder / "README.md").read_text("utf-8"))
    code, output = run(blocks[number], folder)
    assert code == 0, f"{blocks[number]}\n{output}"
    return folder, output


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a copy in which the second command ran, and what it printed."""
    return copy_and_run_block(1, tmp_path_factory.mktemp("home"))


def test_the_first_command_runs_the_pipeline(tmp_path: Path) -> None:
    _, output = copy_and_run_block(0, tmp_path)
    assert output.count("| WARNING | Task run") == 2, f"two attempts fail:\n{output}"
    assert output.count("fake services: delivered") == 1, f"one message is delivered:\n{output}"
    assert "'message_id': 'message-1'" in output, f"the result is printed:\n{output}"


def test_the_second_command_passes_the_tests(tested: tuple[Path, str]) -> None:
    assert re.search(r"\d+ passed", tested[1]), tested[1]


def test_the_linters_are_content(tested: tuple[Path, str]) -> None:
    tools = f"{sys.executable} -m"
    checks = f"{tools} ruff check . && {tools} ruff format --check . && {tools} mypy --strict ."
    code, output = run(checks, tested[0])
    assert code == 0, output


@pytest.mark.timeout(900)  # seconds: thirty changes, two at a time
def test_the_tests_notice_what_a_change_loses(tested: tuple[Path, str], tmp_path: Path) -> None:
    def survives(number: int) -> str:
        name, old, new, tests, lost = MUTATIONS[number]
        folder = shutil.copytree(STARTER, tmp_path / str(number), ignore=IGNORED)
        text = (folder / name).read_text("utf-8")
        assert old in text, f"{name} has no {old!r}"
        (folder / name).write_text(text.replace(old, new), "utf-8")
        _, output = run(f"{tested[0]}/.venv/bin/python -m pytest -x -k {tests}", folder)
        is_noticed = re.search(r"\d+ (failed|error)", output) and lost in output
        return "" if is_noticed else f"{name}: {old!r} is now {new!r}, and {output}"

    with ThreadPoolExecutor(2) as pool:
        survivors = list(filter(None, pool.map(survives, range(len(MUTATIONS)))))
    assert not survivors, "\n".join(survivors)
