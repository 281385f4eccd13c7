"""The starter's tests notice what a change of the starter loses, and say so."""

import re
import shutil
from pathlib import Path

import pytest
from machinery import ROOT, changed_copy, run
from prefect.settings import PREFECT_API_URL

pytestmark = pytest.mark.usefixtures("harness")

STARTER = ROOT / "docs/starter"
# Takes the place of the starter's conftest.py, which would start a server for each change.
CONFTEST = '''
import pytest

@pytest.fixture
def prefect_server() -> None:
    """PREFECT_API_URL names a server."""
'''
PLUGINS = ("--disable-plugin-autoload", "-p", "pytest_httpserver.pytest_plugin")
# What is changed in a file, which of its tests must notice it, and what they must say is lost.
CHANGES = [
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


@pytest.mark.parametrize(
    ("name", "old", "new", "tests", "lost"), CHANGES, ids=[f"{it[1]} > {it[2]}" for it in CHANGES]
)
def test_a_change_is_noticed(
    name: str, old: str, new: str, tests: str, lost: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(STARTER, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    changed_copy(STARTER / name, folder, (old, new))
    (folder / "tests/conftest.py").write_text(CONFTEST, encoding="utf-8")
    command = ("-m", "pytest", *PLUGINS, "-x", f"tests/test_{name}", "-k", tests)
    result = run(*command, cwd=folder, PREFECT_API_URL=PREFECT_API_URL.value())
    is_noticed = re.search(r"\d+ (failed|error)", result.stdout) and lost in result.stdout
    assert is_noticed, f"{name}: {old!r} is now {new!r}, and {result.stdout}"
