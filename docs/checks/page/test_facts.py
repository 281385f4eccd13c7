"""What prose states is shown: each number, state and name in code style stands in a compared place.

A compared place is a block of code, what a thing to try prints, a table that a check writes
(`<!-- compared: NAME -->`) or one that benchmark.py writes: other checks hold those. A paragraph
takes numbers and states from its section and from what the paragraph links to; and code also from
the lesson or exercise that the section is about. (A paragraph without a link takes code from what
its section links to.) So a sentence can be reworded at will, but a fact that is changed by one word
stands nowhere any more. What no word shows, such as "is refused", belongs into an example: it would
not be noticed in a sentence.
"""

import re
from functools import cache
from pathlib import Path

import prefect.settings
import pytest
from machinery import ROOT
from pages import PAGES, links, normalized, sections

COUNTS = "two three four five six seven eight nine ten eleven twelve"
ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth"
WORDS = {word: number for number, word in enumerate(COUNTS.split(), 2)}
WORDS |= {word: number for number, word in enumerate(ORDINALS.split(), 3)}
# A number in words is a fact before one of these, but not in "the two calls".
MEASURES = "second minute hour day time attempt retr delay failure request process worker machine"
STATES = "Scheduled Late Pending Submitting Running Retrying AwaitingRetry Cached Completed Failed"
STATES += " Paused TimedOut Crashed Cancelling Cancelled NotReady DEBUG INFO WARNING ERROR CRITICAL"
# A fact: a span in code style, a number, a number in words, a state or the level of a log record.
FACT = re.compile(
    r"`+(?P<code>[^`]+)`+"
    r"|(?<![\w.-])(?P<number>\d+(?:[.,]\d+)*)(?![\w-])"
    rf"|\b(?P<word>{'|'.join(WORDS)})\b(?= (?:{'|'.join(MEASURES.split())}))"
    # The first word of a sentence is not a state: "Running several tasks is simple".
    rf"|(?<!^)(?<![.!?:] )\b(?P<state>{'|'.join(STATES.split())})\b"
)
# A block that a check runs or compares, and any block.
RUN, BLOCK = (rf"^ *```(?:{it}).*?^ *```$" for it in ("python|console|diff|mermaid|bash", ""))
# Sums of seconds, and the seconds in the map of the lessons: test_transcripts.py compares those.
SECONDS = r"(?:\d+ s(?:\s\+\s\d+ s)+\s=\s)?\*\*\d+ s\*\*|\| \d+ \|$"
HELD = rf"(?ms){RUN}|{SECONDS}|^<!-- (?:compared|benchmark): .*?(?=^$|\Z)"
# What a change that is to be tried prints, and which tests fail: only these words are compared.
EFFECT, QUOTE = r"(?ms)^```diff\n.*?^</details>", r"`[^`\n]+(?:\n[^`\n]+)?`"


@cache
def held(page: Path, anchor: str) -> str:
    """Return what stands in the compared places of the section, or in the file."""
    if not page.is_file():
        return ""
    if page.suffix != ".md":
        return f"{page.name}\n{page.read_text(encoding='utf-8', errors='replace')}"
    section = sections(page).get(anchor, "")
    effects = re.findall(QUOTE, "".join(re.findall(EFFECT, section)))
    return normalized("\n".join([*re.findall(HELD, section), *effects]))


def linked(page: Path, text: str) -> str:
    """Return what stands in the compared places of the sections and files that the text links."""
    targets = [it.partition("#") for it in links(text)]
    return "\n".join(
        held((page.parent / path).resolve() if path else page, part) for path, _, part in targets
    )


@cache
def programs(section: str) -> str:
    """Return the lesson or exercise that the heading names, and the names of all tests."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("docs/practice/**/*.py")]
    named = [it.read_text(encoding="utf-8") for it in files if it.stem in section[:99]]
    tests = "".join(it.read_text(encoding="utf-8") for it in ROOT.glob("tests/*.py"))
    return "\n".join(named + re.findall(r"def (test_\w+)", tests))


def stands(fact: re.Match[str], places: str) -> bool:
    """Return whether the fact stands in these places."""
    code, number, word = fact["code"], fact["number"], fact["word"] or fact["state"]
    if code:
        quote = r"\s+".join(re.escape(part) for part in code.split())
        quote = quote.replace(r"\.\.\.", ".*?").replace("…", ".*?").replace(r"\(\)", r"\(")
        edges = (r"(?<!\w)" if code[0].isalnum() else "", r"(?!\w)" if code[-1].isalnum() else "")
        return re.search(edges[0] + quote + edges[1], places) is not None
    wanted = number or rf"(?:{word}|{WORDS.get(word, word)})"
    # A lesson's number may begin the name of a file: 07_retry_logger.py.
    return re.search(rf"(?<![\w.-]){wanted}(?![^\W_]|-|[.,]\d)", places) is not None


def paragraphs(section: str) -> list[str]:
    """Return what is not compared: the paragraphs, list items and table rows of the section."""
    kept = re.sub(EFFECT, lambda effect: re.sub(QUOTE, "", effect[0]), section)
    kept = re.sub(rf"{HELD}|{BLOCK}", "", kept)
    return re.split(r"\n(?=\n|- |\d\. |\|)", kept)


def prose(paragraph: str) -> str:
    """Return the paragraph in one line, without its number, the targets of links, and comments."""
    return " ".join(re.sub(r"^\s*(\d\.|-|#+) |\]\([^)]*\)|<[^>]*>", " ", paragraph).split())


# Not the starter's page, which stands beside its program and has checks of its own.
HERE = [it for it in PAGES if it.parent.name != "starter"]


@pytest.mark.parametrize(
    ("page", "anchor"),
    [(page, it) for page in HERE for it in sections(page)],
    ids=lambda it: str(it.relative_to(ROOT)) if isinstance(it, Path) else it,
)
def test_a_fact_in_prose_stands_in_a_compared_place(page: Path, anchor: str) -> None:
    section = sections(page)[anchor]
    unheld = []
    for paragraph in paragraphs(section):
        places = held(page, anchor) + linked(page, paragraph)
        of_code = programs(section) + ("" if links(paragraph) else linked(page, section))
        unheld += [
            fact[0]
            for fact in FACT.finditer(prose(paragraph))
            if not stands(fact, places + (of_code if fact["code"] else ""))
        ]
    assert not unheld, (
        f"{page.name}, section {anchor or 'at the top'!r}: in no example, transcript, lesson or "
        f"compared table of this section, nor of what its paragraph links to: {', '.join(unheld)}"
    )


of_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@of_pages
def test_every_setting_on_a_page_is_one_of_prefects(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    examples = "".join(re.findall(r"(?ms)^```python$.*?^```$", text))  # run, so they would fail
    names = set(re.findall(r"\bPREFECT_[A-Z_]+", text)) - set(re.findall(r"\w+", examples))
    unknown = [it for it in names if not hasattr(prefect.settings, it)]
    assert not unknown, f"{page.name}: Prefect has no setting {unknown}"


@of_pages
def test_a_link_that_names_a_file_or_a_lesson_leads_to_it(page: Path) -> None:
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)", page.read_text(encoding="utf-8")):
        number = re.search(r"[Ll]esson\s(\d\d)", text)
        name = number[1] if number else text.strip("`")
        is_file = any((folder / name).is_file() for folder in (page.parent, ROOT))
        leads = name.replace(".", "") in target.replace(".", "")  # an anchor has no dots
        assert leads or not (number or is_file), f"{page.name}: {text} leads to {target}"
