"""Phrases that were common here and are hard to read: none of them comes back.

It reads pages, and docstrings, comments and messages of programs. It does not judge style.
"""

import io
import re
import tokenize
from pathlib import Path

import pytest
from machinery import ROOT

# A phrase, and what to write in its place.
HABITS = {
    r"(?<!here )\bis no (?!longer|more|less|better|worse)\w+": "isn't a ..., is not a valid ...",
    r"\bfor who\b": "for anyone who",
    r"\b(?:try|tries|tried|trying) again\b": "retry",
    r"\b(?:program|server|lesson|page|script|record)s? tells?\b": "prints, logs, reports, shows",
    r"\b(?:is|are) told\b": "is reported, is printed, is passed",
    r"\bserver is away\b": "is unreachable, is down",
    r"\bunder way\b": "in progress",
    r"\bof (?:its|their|your) own\b|\bPrefect's own\b": "its, their, your, Prefect's; separate",
    r"\bweb page\b": "the UI",
    r", for (?:it|they|he|she|this|that|there|nothing|nobody)\b": "because",
    r"\banswers \d{3}\b": "returns 503",
}
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
FOLDERS = ("", "tests/", "docs/growing/", "docs/starter/**/", "docs/practice/**/")
PROGRAMS = [path for folder in FOLDERS for path in ROOT.glob(f"{folder}*.py")]


def prose(path: Path) -> str:
    """Return the text of the page without its code, or the comments and strings of the program."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return re.sub(r"(?ms)^ *```.*?^ *```$|`[^`]*`", "...", text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    wanted = (tokenize.COMMENT, tokenize.STRING)
    return "\n".join(token.string for token in tokens if token.type in wanted)


@pytest.mark.parametrize(
    "path", sorted({*PAGES, *PROGRAMS}), ids=lambda it: str(it.relative_to(ROOT))
)
def test_a_hard_phrase_does_not_come_back(path: Path) -> None:
    text = " ".join(prose(path).split())
    for phrase, better in HABITS.items():
        found = re.search(phrase, text)
        assert not found, f"{path.name} has {found and found[0]!r}. Better: {better}"
