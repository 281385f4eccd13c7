"""What prose states is shown: each number, state and name in code style stands in a compared place.

A compared place is a block of code, the effect of a thing to try, a table that a check writes
(`<!-- compared: NAME -->`) or one that benchmark.py writes: other checks hold those. Prose may
take a fact from its own section, from the lesson that the section is about, and from what the
section links to. So a sentence can be reworded at will, but a fact that is changed by one word
stands nowhere any more. What no word shows, such as "is refused", belongs into an example: it
would not be noticed in a sentence.
"""

import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from machinery import ROOT
from pages import PAGES, links, normalised, sections

COUNTS = [
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
ORDINALS = ["third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
WORDS = dict(zip(COUNTS, range(2, 13), strict=True)) | dict(
    zip(ORDINALS, range(3, 11), strict=True)
)
STATES = "Scheduled Late Pending Submitting Running Retrying AwaitingRetry Cached Completed Failed"
STATES += " TimedOut Crashed Cancelling Cancelled NotReady DEBUG INFO WARNING ERROR CRITICAL"
# A fact: a span in code style, a number, a number in words, a state or the level of a log record.
FACT = re.compile(
    r"`+(?P<code>[^`]+)`+"
    r"|(?<![\w.-])(?P<number>\d+(?:[.,]\d+)*)(?![\w-])"
    rf"|\b(?P<word>{'|'.join([*WORDS, *STATES.split()])})\b"
)
# The number of a lesson, the name of a package.
FREE = {f"{number:02}" for number in range(1, 13)}
FREE |= {f"`{name}`" for name in [*sys.stdlib_module_names, *packages_distributions()]}
BLOCK = r"^ *```.*?^ *```$"
HELD = rf"{BLOCK}|^- Effect: .*?(?=^</details>)|^<!-- (?:compared|benchmark): .*?(?=^$|\Z)"


@cache
def held(page: Path, anchor: str) -> str:
    """Return what stands in the compared places of the section."""
    if not page.is_file():
        return ""
    if page.suffix != ".md":
        return page.read_text(encoding="utf-8", errors="replace")
    section = sections(page).get(anchor, "")
    files = [it for it in [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")] if it.stem in section[:99]]
    lesson = [it.read_text(encoding="utf-8") for it in files]
    return normalised("\n".join([*lesson, *re.findall(rf"(?ms){HELD}", section)]))


def stands(fact: re.Match[str], places: str) -> bool:
    """Return whether the fact stands in these places."""
    code, number, word = fact["code"], fact["number"], fact["word"]
    if code:
        quote = r"\s+".join(re.escape(part) for part in code.split())
        quote = quote.replace(r"\.\.\.", ".*?").replace("…", ".*?").replace(r"\(\)", r"\(")
        edges = (r"(?<!\w)" if code[0].isalnum() else "", r"(?!\w)" if code[-1].isalnum() else "")
        return re.search(edges[0] + quote + edges[1], places) is not None
    wanted = number or rf"(?:{word}|{WORDS.get(word, word)})"
    return re.search(rf"(?<![\w.-]){wanted}(?![\w-]|[.,]\d)", places) is not None


def prose(section: str) -> str:
    """Return the section without what is compared, blocks, the targets of links and comments."""
    kept = re.sub(rf"(?ms){HELD}", "", section)
    return re.sub(r"(?m)\]\([^)]*\)|<[^>]*>|^#+ .*$", " ", kept)


# Not those for contributors, nor the texts beside programs that have checks of their own.
HERE = [it for it in PAGES if it.parent.name not in ("practice", "hints", "starter")]


@pytest.mark.parametrize(
    ("page", "anchor"),
    [(page, it) for page in HERE if page.stem != "CONTRIBUTING" for it in sections(page)],
    ids=lambda it: str(it.relative_to(ROOT)) if isinstance(it, Path) else it,
)
def test_a_fact_in_prose_stands_in_a_compared_place(page: Path, anchor: str) -> None:
    section = sections(page)[anchor]
    places = [held(page, anchor)]
    for target in links(section):
        path, _, part = target.partition("#")
        places.append(held((page.parent / path).resolve() if path else page, part))
    unheld = [
        fact[0]
        for fact in FACT.finditer(prose(section))
        if fact[0] not in FREE
        and not any((at / fact[0].strip("`")).exists() for at in (page.parent, ROOT))
        and not stands(fact, "\n".join(places))
    ]
    assert not unheld, (
        f"{page.name}, section {anchor or 'at the top'!r}: in no example, transcript, lesson or "
        f"compared table of this section, nor of what it links to: {', '.join(unheld)}"
    )
