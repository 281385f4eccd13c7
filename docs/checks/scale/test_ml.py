# mypy: disable-error-code="import-untyped"
"""The machine learning of docs/growing: check, train, publish or refuse, predict, go wrong."""

import importlib
import math
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from clone import GROWING, LEARNING, check_table, table
from machinery import changed_copy, run, script, serving
from prefect import Task, flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.settings import PREFECT_API_URL, PREFECT_TASKS_REFRESH_CACHE, temporary_settings
from prefect.variables import Variable
from recorded import FlowRun, read_flow_run, record_flow
from sklearn.linear_model import LogisticRegression

sys.path.append(str(GROWING))

import read_users
import score_users
import train_churn as training
from score_users import LESSON_WEIGHTS, VARIABLE, Weights, read_published

pytestmark = pytest.mark.timeout(300)  # most of it is imports and starts, on a busy machine

HEADER, *ROWS = read_users.FILE.read_text(encoding="utf-8").splitlines()
USERS, _ = read_users.check_rows.fn("\n".join([HEADER, *ROWS]))
SPLITS = training.split_users.fn(USERS)
TRAINING, VALIDATION, TEST = SPLITS
CACHED = {"check_rows", "split_users", "fit", "evaluate"}  # the tasks with a cache policy


@pytest.fixture(autouse=True)
def start_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no model be published, and make lesson 08 fast."""
    Variable.unset(VARIABLE)
    for name, value in vars(score_users.lesson).items():
        if name.endswith("_SECONDS"):
            monkeypatch.setattr(score_users.lesson, name, 0)
        if isinstance(value, Task):
            monkeypatch.setattr(value, "retry_delay_seconds", 0)


def write(folder: Path, *rows: str) -> str:
    (folder / "users.csv").write_text("\n".join([HEADER, *rows]), encoding="utf-8")
    return str(folder / "users.csv")


def train(file: str = str(read_users.FILE)) -> FlowRun:
    """Train on the file, and return what was recorded."""
    return record_flow(training.train_churn, file)


def message(of: FlowRun) -> str:
    return str((of.record.state and of.record.state.message) or "")


def ends(of: FlowRun) -> dict[str, str]:
    """Return the state that the first run of each task with a cache policy ended in."""
    return {it.name: it.state_names()[-1] for it in of.task_runs[::-1] if it.name in CACHED}


def artifact(of: FlowRun) -> str:
    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[of.record.id]))
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(artifact_filter=mine)
    return str(found.data)


def test_training_publishes_a_model_and_its_evaluation() -> None:
    trained = train()
    published: Any = Variable.get(VARIABLE)
    assert published["flow_run_id"] == str(trained.record.id), "the model's flow run is not known"
    evaluation, _, calibration = re.findall(r"(?m)(?:^\|.*\n?)+", artifact(trained))
    rows = [row.strip("| ").split(" | ") for row in evaluation.splitlines()[2:]]
    check_table(LEARNING, "evaluation", *rows)
    assert rows[0][1:] == [f"{published['log_loss']:.4f}", f"{published['roc_auc']:.3f}"]
    assert len(calibration.splitlines()) == 2 + 10, "the calibration has no ten groups"
    assert message(trained) in artifact(trained)


def test_a_user_stays_in_the_same_split() -> None:
    names = ["training", "validation", "test"]
    sizes = [len(split) for split in SPLITS]
    shares = [f"{100 * size / sum(sizes):.0f}%" for size in sizes]
    check_table(LEARNING, "splits", *map(list, zip(names, sizes, shares, strict=True)))
    for user_id in [*USERS][::77]:
        alone = training.split_users.fn({user_id: USERS[user_id]})
        for part, everybody in zip(alone, SPLITS, strict=True):
            assert set(part) <= set(everybody), "a user's split depends on the other users"


def test_the_best_candidate_has_the_lowest_log_loss() -> None:
    rows = []
    for c in training.C_VALUES:
        weights = training.fit.fn(c, TRAINING)
        loss = training.evaluate.fn(weights, VALIDATION)["log_loss"]
        rounded = score_users.round_all(weights)
        rows.append([c, rounded["balance_weight"], rounded["login_weight"], f"{loss:.4f}"])
    check_table(LEARNING, "candidates", *rows)


def test_what_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (other := tmp_path / "other").mkdir()
    file = write(tmp_path, *ROWS[:-1])
    assert set(ends(train(file)).values()) == {"Completed"}
    again = train(write(other, *ROWS[:-1]))
    assert {it.state_names()[-1] for it in again.task_runs if it.name in CACHED} == {"Cached"}
    observed = [ends(again), ends(train(write(other, *ROWS[:-40])))]
    for stem, lines in {
        "changed_fit": ("C=c)", "C=2 * c)"),
        "changed_evaluate": ("n_bins=10", "n_bins=5"),
        "changed_import": ("import StandardScaler", "import MinMaxScaler as StandardScaler"),
    }.items():
        copy = changed_copy(GROWING / "train_churn.py", tmp_path, lines)
        copy.rename(tmp_path / f"{stem}.py")
        changed = importlib.import_module(stem)
        observed.append(ends(record_flow(changed.train_churn, file)))
        assert observed[-1]["check_rows"] == "Cached", "another task changed, and this one ran"
    with temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}):
        observed.append(ends(train(file)))
    changes = [row[0] for row in table(LEARNING, "caching")]
    check_table(LEARNING, "caching", *zip(changes, [it["fit"] for it in observed], strict=True))


@pytest.mark.parametrize("runner", re.findall(r"--runner (\w+)", LEARNING.read_text("utf-8")))
def test_any_task_runner_will_do(
    runner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, *ROWS[: -30 * len(runner)])
    monkeypatch.setattr(sys, "argv", ["train_churn.py", file, "--runner", runner])
    training.main()
    assert read_published(), f"nothing was published with {runner}"


DAMAGED_ROWS = {
    "": "1 fields",
    "1,,0,0,0,0,1": "balance is ''",
    "1,5.00,0,x,0,0,1": "week_2 is 'x'",
    "1,nan,0,0,0,0,1": "balance is 'nan'",
    "1,-inf,0,0,0,0,1": "balance is '-inf'",
    "1,5.00,0,0,-1,0,1": "week_3 is '-1'",
    "1,5.00,0,0,0,0,2": "left is '2'",
    "1,5.00,0,0": "4 fields",
    "1,5.00,0,0,0,0,0,0": "8 fields",
    "7,5.00,0,0,0,0,1": "user 7 appears twice",
}


def test_a_damaged_row_is_reported_and_left_out() -> None:
    text = "\n".join([HEADER, "7,1.50,1,2,3,4,0", *DAMAGED_ROWS])
    users, damaged = read_users.check_rows.fn(text)
    assert users == {7: (1.5, 10, 0)}, "a damaged row is not left out"
    for number, (line, why) in enumerate(zip(damaged, DAMAGED_ROWS.values(), strict=True), 3):
        assert line.startswith(f"line {number}: {why}"), f"{line!r} does not say {why}"


def train_worse(_: Path) -> FlowRun:
    seen = training.fit.fn(10.0, TEST)  # fitted to the test users: no other model beats it
    Variable.set(VARIABLE, {"weights": seen})
    trained = train()
    assert read_published() == seen, "a worse model was published"
    assert message(trained) in artifact(trained)
    return trained


def train_with_a_damaged_variable(_: Path) -> FlowRun:
    Variable.set(VARIABLE, {"weights": "?"})
    trained = train()
    assert any("does not contain a usable model" in log.message for log in trained.logs)
    assert read_published(), "the damaged model is still there"
    return trained


def score_with_a_damaged_variable(_: Path) -> FlowRun:
    Variable.set(VARIABLE, {})
    return record_flow(score_users.score_users, [101])


def die_before_publishing(folder: Path) -> FlowRun:
    file = write(folder, *ROWS[:-70])
    code = (
        "import os, signal, sys; sys.path.append('docs/growing'); import train_churn;"
        "train_churn.LOCK = 'crash';"  # a limit that the other tests do not use
        "train_churn.Variable.set = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL);"
        f"train_churn.train_churn({file!r})"
    )
    api_url = str(PREFECT_API_URL.value())
    killed = run("-c", code, seconds=240, PREFECT_API_URL=api_url)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Variable.get(VARIABLE) is None
    free = re.findall(r"(?m)^prefect (gcl .*)$", LEARNING.read_text("utf-8"))[0].split()
    assert free[2] == training.LOCK, f"{LEARNING.name} frees another limit"
    freed = run("-m", "prefect", *free[:2], "crash", *free[3:], PREFECT_API_URL=api_url)
    assert freed.returncode == 0, freed.stderr
    with get_client(sync_client=True) as client:
        assert not client.read_global_concurrency_limit_by_name("crash").active_slots
    again = ends(train(file))
    assert again == dict.fromkeys(CACHED, "Cached"), f"results are lost: {killed.stderr}"
    assert Variable.get(VARIABLE), "the next training does not publish"
    return read_flow_run(UUID(re.findall(r"flow-run/([0-9a-f-]{36})", killed.stderr)[0]))


CAUSES: dict[str, Callable[[Path], FlowRun]] = {
    "the file has other columns": lambda folder: train(str(GROWING / "costs.md")),
    "too many rows are damaged": lambda folder: train(
        write(folder, *["?" if number % 40 == 1 else row for number, row in enumerate(ROWS)])
    ),
    "too few users left or stayed": lambda folder: train(
        write(folder, *[row[:-1] + "0" for row in ROWS])
    ),
    "the challenger isn't better": train_worse,
    "the Variable is damaged, and you train": train_with_a_damaged_variable,
    "the Variable is damaged, and you score": score_with_a_damaged_variable,
    "the machine dies before the model is written": die_before_publishing,
}


def test_every_row_of_what_goes_wrong_has_its_cause() -> None:
    assert [row[0] for row in table(LEARNING, "what goes wrong")] == [*CAUSES]


@pytest.mark.parametrize(("what", "state", "said"), table(LEARNING, "what goes wrong"))
def test_what_goes_wrong(what: str, state: str, said: str, tmp_path: Path) -> None:
    ended = CAUSES[what](tmp_path)
    assert [ended.state, *message(ended).splitlines()[:1]] == [state, *[said] * bool(said)]


def test_of_two_trainings_at_the_same_time_the_better_model_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    better, worse = training.fit.fn(1.0, TRAINING), training.fit.fn(0.001, TRAINING)
    baseline = {"bias": 0.0, "balance_weight": 0.0, "login_weight": 0.0}

    def read_slowly() -> Weights | None:
        published = read_published()
        time.sleep(2)  # meanwhile the other training starts, and reads as well if it can
        return published

    @flow
    def two_trainings() -> None:
        first = training.publish.submit(better, baseline, TEST)
        time.sleep(1)
        second = training.publish.submit(worse, baseline, TEST)
        first.result(), second.result()

    monkeypatch.setattr(training, "read_published", read_slowly)
    two_trainings()
    assert read_published() == better, "the last model that was written won, not the better one"


@pytest.mark.parametrize(
    ("program", "word", "published", "error"),
    [
        (training, str(GROWING / "costs.md"), None, r"0 rows are good.*\nline 1: the columns"),
        (score_users, "101", None, r"The variable \w+ does not contain .*\Z"),
        (score_users, "101", "text", r"The variable \w+ does not contain .*\Z"),
        (score_users, "101", {"weights": {"bias": 2.0}}, r"The variable .*\Z"),
        (score_users, "101", {"weights": LESSON_WEIGHTS | {"bias": "2"}}, r"The variable .*\Z"),
    ],
)
def test_a_program_that_fails_exits_with_one_error(
    program: Any, word: str, published: Any, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Variable.set(VARIABLE, published)
    monkeypatch.setattr(sys, "argv", ["program", word])
    with pytest.raises(SystemExit, match=f"error: {error}"):
        program.main()


def test_without_a_model_scoring_uses_the_constants_of_lesson_08() -> None:
    scored = record_flow(score_users.score_users, [101, 102])
    assert any("No model is published" in log.message for log in scored.logs)
    for user_id, churn in scored.result.items():
        of_lesson_08 = score_users.lesson.pipeline_flow(user_id)["churn"]
        assert round(churn, 3) == of_lesson_08, "not the probability of lesson 08"


def test_scoring_uses_the_published_weights_and_reports_the_unknown_user() -> None:
    Variable.set(VARIABLE, {"weights": dict.fromkeys(LESSON_WEIGHTS, 0.0) | {"bias": 1.0}})
    scored = record_flow(score_users.score_users, [101, 999, 102])
    assert scored.state == "Failed", "a task failed, and the flow run is not Failed"
    assert message(scored) == "1 of 3 failed\nuser 999: LookupError: no user 999"
    outcomes = artifact(scored)
    assert outcomes.count(str(1 / (1 + math.exp(-1)))[:10]) == 2, "the outcome of a user is lost"
    assert "no user 999" in outcomes, "the outcome of the unknown user is lost"


def test_both_are_served_and_lesson_12_triggers_scoring(tmp_path: Path) -> None:
    api_url, name = str(PREFECT_API_URL.value()), "score-users/on-demand"
    with serving(api_url, GROWING / "serve_churn.py", tmp_path / "log", name=name):
        trigger = (script("12"), name, "-p", "user_ids=[101]", "--wait")
        triggered = run(*trigger, seconds=240, PREFECT_API_URL=api_url)
        assert triggered.returncode == 0, triggered.stderr
        with get_client(sync_client=True) as client:
            assert client.read_deployment_by_name("train-churn/monthly").schedules


def test_the_generator_makes_the_file_byte_for_byte(tmp_path: Path) -> None:
    made = run(shutil.copy(GROWING / "make_users.py", tmp_path))
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "users.csv").read_bytes() == read_users.FILE.read_bytes()


def test_the_estimates_agree_with_the_constants() -> None:
    data = np.array([*USERS.values()])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-9)
    churn = model.fit(data[:, :2], data[:, 2]).predict_proba(data[:, :2])[:, 1]
    x = np.column_stack([np.ones(len(data)), data[:, :2]])
    information = (x.T * (churn * (1 - churn))) @ x  # Fisher's: its inverse is the covariance
    errors = np.sqrt(np.diag(np.linalg.inv(information)))
    rows: list[list[object]] = []
    for name, weight, error, shown in zip(
        LESSON_WEIGHTS,
        [*model.intercept_, *model.coef_[0]],
        errors,
        table(LEARNING, "estimates"),
        strict=True,
    ):
        off, digits = abs(weight - LESSON_WEIGHTS[name]) / error, len(shown[2].partition(".")[2])
        assert off < 2, f"{name} is not the lesson's"
        estimate = [f"{weight:.{digits}f}", f"{error:.{digits}f}", f"{off:.1f}"]
        rows.append([name, LESSON_WEIGHTS[name], *estimate])
    check_table(LEARNING, "estimates", *rows)
