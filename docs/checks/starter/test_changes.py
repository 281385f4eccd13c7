"""The starter's tests notice what a change of the starter loses, and say so."""

import re
import shutil

import pytest
from machinery import ROOT, changed_copy, run
from prefect.settings import PREFECT_API_URL

STARTER = ROOT / "docs/starter"
# In each copy in place of the starter's, which would start another server: its tests import its
# modules, not those of the copy before.
CONFTEST = '''
import sys
from pathlib import Path

import pytest

for name in ("pipeline", "report", "services"):
    sys.modules.pop(name, None)
sys.path.insert(0, str(Path(__file__).parent))

@pytest.fixture
def prefect_server() -> None:
    """PREFECT_API_URL names a server."""
'''
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


@pytest.fixture(scope="module")
def failures(harness: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return which tests fail and why: one pytest runs them all, in one copy for each change."""
    root = tmp_path_factory.mktemp("changed")
    chosen = []
    for number, (name, old, new, tests, _) in enumerate(CHANGES):
        folder = root / f"change{number:02}"
        folder.mkdir()
        for path in (*STARTER.glob("*.py"), STARTER / "tests" / f"test_{name}"):
            shutil.copy(path, folder)
        changed_copy(STARTER / name, folder, (old, new))
        (folder / "conftest.py").write_text(CONFTEST, encoding="utf-8")
        chosen.append(f"({folder.name} and {tests})")
    options = ("--import-mode=importlib", "-q", "--tb=no", "-rfE", "-k", " or ".join(chosen))
    settings = {"COLUMNS": "1000", "PREFECT_API_URL": PREFECT_API_URL.value()}
    done = run("-m", "pytest", *options, cwd=root, **settings)
    assert done.returncode == 1, f"expected failed tests, got {done.stdout}"
    return done.stdout


@pytest.mark.parametrize(
    "number", range(len(CHANGES)), ids=[f"{it[1]} > {it[2]}" for it in CHANGES]
)
def test_a_change_is_noticed(number: int, failures: str) -> None:
    name, old, new, _, lost = CHANGES[number]
    found = re.findall(rf"(?m)^(?:FAILED|ERROR) change{number:02}/.*", failures)
    assert lost in "\n".join(found), f"{name}: {old!r} is now {new!r}, and {found or 'all pass'}"
