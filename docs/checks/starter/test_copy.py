"""The starter, copied to an empty place: its two commands, the linters, and what its tests notice."""

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
    ("services.py", "=TIMEOUT_SECONDS", "=None", "hangs", "is the time-out passed"),
    ("services.py", "> deadline", "< 0", "trickles", "a slow body has no limit"),
    ("services.py", "status_code >= 400", "status_code >= 600", "refusal", "is the status checked"),
    ("services.py", "in TRANSIENT_STATUSES", "== 503", "transient", "it is worth a retry"),
    ("services.py", "redirects=False", "redirects=True", "redirect", "redirect was followed"),
    ("services.py", "if 300 <=", "if 600 <=", "redirect", "a redirect became"),
    ("services.py", "strict=True", "strict=False", "shape", "is it validated"),
    ("services.py", "_validate_json(bytes(content))", "_construct()", "shape", "is it validated"),
    ("services.py", "if isinstance(error, SSLError)", "if False", "certificate", "trusted"),
    ("services.py", "    ChunkedEncodingError,\n)", ")", "cut", "a cut connection"),
    ("services.py", 'r"//[^/\\s]*@"', '"$^"', "password", "shows a password"),
    ("pipeline.py", "{day}", "{time.time()}", "the_key", "the second attempt has another key"),
    ("pipeline.py", "date.today()", "date.today()", "the_key", "another day has the same key"),
    ("pipeline.py", "retries=3, ", "", "an_outage", "has its task its retries"),
    ("pipeline.py", ", retry_condition_fn=is_outage", "", "a_refusal", "its retry condition"),
    ("pipeline.py", "get_run_logger().warning", "get_run_logger().debug", "logged", "one WARNING"),
    ("pipeline.py", "time.sleep(", "max(0, ", "retry_after", "was asked before"),
    ("report.py", "part.replace(target)", "pass", "replaces", "the figures of pro"),
]


def environment(home: Path) -> dict[str, str]:
    """Return the environment of somebody whose home is empty, who has nothing of ours."""
    left_out = ("PREFECT_", "PYTHON", "VIRTUAL_ENV", "SERVICE_", "DO_NOT_TRACK", "PYTEST_")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(left_out)}
    python = Path(sys.executable).parent  # where `python3` is one that the project supports
    return {**kept, "HOME": str(home), "PATH": f"{python}{os.pathsep}{kept['PATH']}"}
