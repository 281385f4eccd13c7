"""Phrases that were common here and are hard to read: none of them comes back.

It reads pages and programs. It does not judge style.
"""

import re
from pathlib import Path

import pytest
from machinery import ROOT
from pages import PAGES

# A phrase, and what to write in its place.
HABITS = {
    r"(?<!here )\bis no (?!longer|more|less|better|worse)\w+": "isn't a ..., is not a valid ...",
    r"\bfor who\b": "for anyone who",
    r"\b(?:program|server|lesson|page|script|record)s? tells?\b": "prints, logs, reports, shows",
    r"\b(?:is|are) told\b": "is reported, is printed, is passed",
    r"\bserver is away\b": "is unreachable, is down",
    r"\bunder way\b": "in progress",
    r", for (?:it|they|he|she|this|that|there|nothing|nobody)\b": "because",
    r"\banswers \d{3}\b": "returns 503",
}
FOLDERS = ("", "tests/", "docs/growing/", "docs/starter/**/", "docs/practice/**/")
PROGRAMS = [path for folder in FOLDERS for path in ROOT.glob(f"{folder}*.py")]


@pytest.mark.parametrize(
    "path", sorted({*PAGES, *PROGRAMS}), ids=lambda it: str(it.relative_to(ROOT))
)
def test_a_hard_phrase_does_not_come_back(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"(?ms)^ *```.*?^ *```$|`[^`]*`", "...", text)  # without its code
    text = " ".join(text.split())
    for phrase, better in HABITS.items():
        found = re.search(phrase, text)
        assert not found, f"{path.name} has {found and found[0]!r}. Better: {better}"
