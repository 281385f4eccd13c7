"""Every Python example of the pages runs, and prints what the `#>` lines below its prints say.

pytest docs/checks/page/test_examples.py --update-examples writes those lines anew. The examples of
a section run in order and share what they define. Marked `notest` one does not run; marked `lesson`
it is cut from the lesson of its section: its lines stand there, in that order.
"""

import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from machinery import ROOT
from pages import PAGES, anchor_of
from pytest_examples import CodeExample, EvalExample, find_examples

EXAMPLES = [it for it in find_examples(*PAGES) if it.prefix.startswith("python")]
RUN = groupby(
    (it for it in EXAMPLES if it.prefix == "python"),
    key=lambda it: (it.path, anchor_of(it.path, it.start_line)),
)


def name(path: Path, anchor: str) -> str:
    """Return the name of a test: page and section."""
    return f"{path.relative_to(ROOT)}#{anchor}"


@pytest.mark.timeout(300, method="thread")  # Prefect's time limit wants the process's one alarm
@pytest.mark.usefixtures("harness")
@pytest.mark.filterwarnings("ignore")  # some symptoms are warnings
@pytest.mark.parametrize(
    "examples", [pytest.param([*found], id=name(*place)) for place, found in RUN]
)
def test_an_example_prints_what_stands_below_it(
    examples: list[CodeExample], eval_example: EvalExample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(eval_example.tmp_path)
    eval_example.set_config(line_length=100)
    known: dict[str, Any] = {}
    printed: list[Any] = []

    def count(path: Path, frame: Any, words: Any) -> bool:
        mine = bool(frame.filename == str(path))  # Prefect prints tracebacks, too
        printed.extend([words] * mine)
        return mine

    for example in examples:
        printed.clear()
        eval_example.include_print = count
        if eval_example.update_examples:
            known |= eval_example.run_print_update(example, module_globals=known)
        else:
            known |= eval_example.run_print_check(example, module_globals=known)
            shown = len(re.findall("(?m)^ *#> ", example.source))
            assert shown == len(printed), f"{shown} lines are shown, {len(printed)} are printed"
