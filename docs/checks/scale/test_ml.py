"""The machine learning of docs/growing: train, publish or refuse, predict, go wrong.

pytest docs/checks/scale/test_ml.py --write changed writes the tables of machine_learning.md.
"""

import importlib
import math
import shutil
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from clone import GROWING, Clone, block
from machinery import changed_copy, run
from pages import RUN_ID, Compare
from prefect import Task, flow, get_client
from prefect.artifacts import Artifact
from prefect.settings import (
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_TASKS_REFRESH_CACHE,
    temporary_settings,
)
from prefect.variables import Variable
from recorded import FlowRun, read_flow_run, record_flow

sys.path.append(str(GROWING))

import read_users
import score_users
import train_churn as training
from score_users import LESSON_WEIGHTS, VARIABLE, Weights, read_published

pytestmark = [
    pytest.mark.usefixtures("harness"),
    pytest.mark.timeout(300),  # most of it is imports and starts, on a busy machine
]

HEADER, *ROWS = read_users.FILE.read_text(encoding="utf-8").splitlines()
USERS, _ = read_users.check_rows.fn("\n".join([HEADER, *ROWS]))
SPLITS = training.split_users.fn(USERS)
TRAINING, VALIDATION, TEST = SPLITS
BASELINE = {"bias": 0.0, "balance_weight": 0.0, "login_weight": 0.0}


@pytest.fixture(autouse=True)
def start_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no model be published, and make lesson 08 fast."""
    Variable.unset(VARIABLE)
    for name, value in vars(score_users.lesson).items():
        if name.endswith("_SECONDS"):
            monkeypatch.setattr(score_users.lesson, name, 0)
        if isinstance(value, Task):
            monkeypatch.setattr(value, "retry_delay_seconds", 0)


def write(folder: Path, rows: list[str]) -> str:
    """Write a file of users into the folder; return its path."""
    (folder / "users.csv").write_text("\n".join([HEADER, *rows]), encoding="utf-8")
    return str(folder / "users.csv")


def train(file: str = str(read_users.FILE)) -> FlowRun:
    """Train on the file, and return what was recorded."""
    return record_flow(training.train_churn, file)


def message(of: FlowRun) -> str:
    return str((of.record.state and of.record.state.message) or "")


def last_artifact(key: str) -> str:
    found: Any = Artifact.get(key)
    return str(found.data)


def test_the_programs_are_described_by_their_first_lines(compare: Compare) -> None:
    names = ["make_users", "read_users", "train_churn", "score_users", "serve_churn"]
    rows = []
    for file in [f"{name}.py" for name in names]:
        docstring = (GROWING / file).read_text("utf-8").split('"""')[1]
        rows.append((f"[`{file}`]({file})", docstring.splitlines()[0]))
    compare("programs", ["file", "what it does"], rows)


def test_the_generator_makes_the_file_byte_for_byte(tmp_path: Path) -> None:
    made = run(shutil.copy(GROWING / "make_users.py", tmp_path))
    assert made.returncode == 0, made.stderr
    same = (tmp_path / "users.csv").read_bytes() == read_users.FILE.read_bytes()
    assert same, "make_users.py makes another file than users.csv"


def test_a_user_stays_in_the_same_split(compare: Compare) -> None:
    uses = {
        "training": "to fit each candidate",
        "validation": "to choose the best candidate",
        "test": "to evaluate the winner",
    }
    sizes = [(len(split), f"{len(split) / len(USERS):.0%}") for split in SPLITS]
    rows = [(*use, *size) for use, size in zip(uses.items(), sizes, strict=True)]
    compare("splits", ["split", "what it is for", "users", "share"], rows)
    some = training.split_users.fn(dict([*USERS.items()][::77]))
    for part, whole in zip(some, SPLITS, strict=True):
        assert {*part} <= {*whole}, "a user's split depends on the other users"


def test_the_candidates(compare: Compare) -> None:
    rows = []
    for c in training.C_VALUES:
        weights = training.fit.fn(c, TRAINING)
        loss = training.evaluate.fn(weights, VALIDATION)["log_loss"]
        _, balance, logins = score_users.round_all(weights).values()
        rows.append((c, balance, logins, f"{loss:.4f}"))
    head = [
        "`C`, from strong to weak",
        "`balance_weight`",
        "`login_weight`",
        "log loss on the validation split",
    ]
    compare("candidates", head, rows)


def test_any_task_runner_trains_and_publishes(clone: Clone, compare: Compare) -> None:
    clone.exported["PREFECT_TASKS_REFRESH_CACHE"] = "true"
    _, records = clone.run(block("--runner"))
    published = Variable.get(VARIABLE)
    assert isinstance(published, dict), "nothing is published"
    assert published["flow_run_id"] in records, "the model's flow run is not known"
    evaluation, weights, calibration = [
        [row.strip("| ").split(" | ") for row in table.splitlines() if "|-" not in row]
        for table in last_artifact("churn-model").split("\n\n")[1:4]
    ]
    compare("evaluation", evaluation[0], evaluation[1:3])  # then comes the first one as champion
    compare("weights", weights[0], weights[1:])
    assert evaluation[1][1:] == [f"{published['log_loss']:.4f}", f"{published['roc_auc']:.3f}"]
    assert len(calibration) == 1 + 10, "the calibration has no ten groups"


def test_what_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: Compare
) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def fit(rows: list[str] = ROWS, program: Any = training) -> str:
        """Return the state in which the program's `fit` ends with these rows in a file."""
        text = read_users.read_file.fn(write(Path(tempfile.mkdtemp(dir=tmp_path)), rows))
        split = training.split_users.fn(read_users.check_rows.fn(text)[0])[0]
        return str(program.fit(1.0, split, return_state=True).name)

    def change(old: str, new: str) -> Any:
        """Return train_churn.py with another text, as a module with another name."""
        copy = changed_copy(GROWING / "train_churn.py", tmp_path, (old, new))
        return importlib.import_module(copy.rename(tmp_path / f"copy_{uuid4().hex}.py").stem)

    scaler = change("import StandardScaler", "import MinMaxScaler as StandardScaler")
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        assert fit() == "Completed", "the test begins with an empty cache"
        rows = [
            ("the name of the file, not its rows", fit()),
            ("the rows", fit(ROWS[:-40])),
            ("the lines of `fit`", fit(program=change("C=c)", "C=2 * c)"))),
            ("the lines of `evaluate`", fit(program=change("n_bins=10", "n_bins=5"))),
            ("the `StandardScaler` that `fit` imports", fit(program=scaler)),
        ]
        with temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}):
            rows.append(("nothing, but `PREFECT_TASKS_REFRESH_CACHE=true` is set", fit()))
    compare("caching", ["what changed since the last run", "`fit` ends as"], rows)


def test_what_goes_wrong(tmp_path: Path, clone: Clone, compare: Compare) -> None:
    rows = []

    def add(what: str, ended: FlowRun) -> FlowRun:
        first_line = message(ended).partition("\n")[0]
        rows.append((what, ended.state, first_line and f"`{first_line}`"))
        return ended

    damaged = ["?" if number % 40 == 1 else row for number, row in enumerate(ROWS)]
    stayed = [row[:-1] + "0" for row in ROWS]
    add("the file has other columns", train(str(GROWING / "costs.md")))
    add("too many rows are damaged", train(write(tmp_path, damaged)))
    add("too few users left or stayed", train(write(tmp_path, stayed)))

    unbeaten = training.fit.fn(10.0, TEST)  # fitted to the test users
    Variable.set(VARIABLE, {"weights": unbeaten})
    refused = add("the challenger isn't better", train())
    assert read_published() == unbeaten, "a worse model was published"
    assert message(refused) in last_artifact("churn-model"), "the artifact has no verdict"

    Variable.set(VARIABLE, {"weights": "?"}, overwrite=True)
    warned = add("the Variable is damaged, and you train", train())
    assert any("does not contain a usable model" in log.message for log in warned.logs)
    assert read_published(), "the damaged model is still there"

    Variable.set(VARIABLE, {}, overwrite=True)
    scored = record_flow(score_users.score_users, [101])
    add("the Variable is damaged, and you score", scored)

    clone.change("docs/growing/train_churn.py", r"Variable\.set\(.*", "import os; os._exit(9)")
    clone.exported["PREFECT_LOCAL_STORAGE_PATH"] = str(tmp_path / "results")
    _, records = clone.run("python docs/growing/train_churn.py", exits=9)
    died = read_flow_run(UUID(RUN_ID.findall(records)[0]))
    add("the machine dies before the model is written", died)
    clone.run(block("gcl update"))
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(training.LOCK)
    assert not limit.active_slots, "the page's command does not free the limit"
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        again = train()
    assert read_published(), "the next training does not publish"
    fits = [it.state_names()[-1] for it in again.task_runs if it.name == "fit"]
    assert {*fits} == {"Cached"}, "the results of the training that died are lost"
    compare("what goes wrong", ["what happens", "flow run", "message"], rows)


def test_a_training_that_fails_exits_with_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_churn.py", str(GROWING / "costs.md")])
    with pytest.raises(SystemExit, match=r"error: 0 rows are good.*\nline 1: the columns"):
        training.main()


@pytest.mark.parametrize(
    "published",
    ["text", None, {"weights": {"bias": 2}}, {"weights": LESSON_WEIGHTS | {"bias": "2"}}],
)
def test_scoring_with_a_damaged_model_exits_with_one_error(
    published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Variable.set(VARIABLE, published)
    monkeypatch.setattr(sys, "argv", ["score_users.py", "101"])
    with pytest.raises(
        SystemExit, match=r"error: The variable \w+ does not contain a usable model"
    ):
        score_users.main()


def test_two_trainings_do_not_compare_and_publish_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both_compare = threading.Barrier(2)

    def read_together() -> Weights | None:
        published = read_published()
        with suppress(threading.BrokenBarrierError):  # the other training waits for its turn
            both_compare.wait(2)
        return published

    @flow
    def two_trainings() -> list[str]:
        futures = [training.publish.submit(LESSON_WEIGHTS, BASELINE, TEST) for _ in range(2)]
        return sorted(future.result()[0].partition(",")[0] for future in futures)

    monkeypatch.setattr(training, "read_published", read_together)
    Variable.set(VARIABLE, {"weights": BASELINE})
    assert two_trainings() == ["Not published", "Published"], "two equal models are both published"


def test_without_a_model_scoring_uses_the_constants_of_lesson_08() -> None:
    scored = record_flow(score_users.score_users, [101])
    assert any("No model is published" in log.message for log in scored.logs)
    of_lesson_08 = score_users.lesson.pipeline_flow(101)["churn"]
    assert round(scored.result[101], 3) == of_lesson_08, "not the probability of lesson 08"


def test_scoring_uses_the_published_weights_and_reports_the_unknown_user() -> None:
    Variable.set(VARIABLE, {"weights": BASELINE | {"bias": 1.0}})
    scored = record_flow(score_users.score_users, [101, 999, 102])
    assert scored.state == "Failed", "a task failed, and the flow run is not Failed"
    assert message(scored) == "1 of 3 failed\nuser 999: LookupError: no user 999"
    outcomes = last_artifact("churn-scores")
    assert outcomes.count(str(1 / (1 + math.exp(-1)))[:10]) == 2, "the outcome of a user is lost"
    assert "no user 999" in outcomes, "the outcome of the unknown user is lost"


def test_both_are_served_and_lesson_12_triggers_scoring(clone: Clone) -> None:
    with clone.terminal(block("serve_churn.py"), "being served"):
        clone.run(block("score-users/on-demand"))
        with get_client(sync_client=True) as client:
            assert client.read_deployment_by_name("train-churn/monthly").schedules
