# mypy: disable-error-code="import-untyped"
"""The machine learning of docs/growing: train, publish or refuse, score, and what may go wrong."""

import math
import re
import shutil
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np
import pytest
from machinery import ROOT, changed_copy, run, script, serving
from pages import find_stated
from prefect import Task, flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_TASKS_REFRESH_CACHE,
    temporary_settings,
)
from prefect.variables import Variable
from recorded import FlowRun, Record, read_flow_run, wait_until

GROWING = ROOT / "docs" / "growing"
sys.path.append(str(GROWING))

import score_users  # noqa: E402
import train_churn  # noqa: E402
from score_users import LESSON_WEIGHTS, VARIABLE, Weights, read_published  # noqa: E402

pytestmark = pytest.mark.timeout(300)  # most of it is imports and starts, on a busy machine

PAGE = (GROWING / "machine_learning.md").read_text(encoding="utf-8")
stated = partial(find_stated, PAGE)
ROWS = train_churn.FILE.read_text(encoding="utf-8").splitlines()[1:]
USERS, DAMAGED = train_churn.validate.fn("\n".join([train_churn.HEADER, *ROWS]))
TRAINING, CHOOSING, TEST = train_churn.build_features.fn(USERS)
COMPUTED = {"validate", "build_features", "fit", "evaluate"}


@pytest.fixture(autouse=True)
def start_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be published, and make lesson 08 quick."""
    Variable.unset(VARIABLE)
    for name, value in vars(score_users.lesson).items():
        if name.endswith("_SECONDS"):
            monkeypatch.setattr(score_users.lesson, name, 0)
        if isinstance(value, Task):
            monkeypatch.setattr(value, "retry_delay_seconds", 0)


def write(path: Path, *rows: str) -> str:
    """Write a file of users; return its path."""
    path.write_text("\n".join([train_churn.HEADER, *rows]), encoding="utf-8")
    return str(path)


def message(of: FlowRun) -> str:
    """Return what the final state says."""
    return str(of.record.state and of.record.state.message)


def ends(of: FlowRun) -> set[tuple[str, str]]:
    """Return each computing task of a run, and the states that its runs ended in."""
    return {(it.name, it.state_names()[-1]) for it in of.task_runs if it.name in COMPUTED}


def artifact(of: FlowRun) -> str:
    """Return the artifact of the flow run, as text."""
    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[of.record.id]))
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(artifact_filter=mine)
    return str(found.data)


def test_training_publishes_a_model_and_its_evaluation(record: Record) -> None:
    trained = record(train_churn.train_churn)
    published: Any = Variable.get(VARIABLE)
    assert message(trained).startswith("Published, for it is better"), message(trained)
    assert published["flow_run_id"] == str(trained.record.id), "it is not told who trained it"
    assert published["log_loss"] < 0.6, "the model knows no more than the base rate"
    assert published["roc_auc"] > 0.75, "the model does not tell those who leave from the others"
    page = artifact(trained)
    assert message(trained) in page
    assert f"{published['log_loss']:.4f} | {published['roc_auc']:.3f}" in page
    assert len(re.findall(r"\| tenth \d+ \|", page)) == 10, "the calibration is not on the page"
    logs = "\n".join(log.message for log in trained.logs)
    assert "7 are damaged" in logs
    for row in DAMAGED:
        assert row in logs, "a damaged row is not named"


def test_nobody_is_tested_on_who_was_trained_on_last_month() -> None:
    assert [round(10 * len(it) / len(USERS)) for it in (TRAINING, CHOOSING, TEST)] == [6, 2, 2]
    for user in USERS[::77]:
        alone = train_churn.build_features.fn([user])
        for part, everybody in zip(alone, (TRAINING, CHOOSING, TEST), strict=True):
            assert set(part) <= set(everybody), "a user's part depends on the other users"


def test_a_second_run_computes_nothing_again(record: Record, tmp_path: Path) -> None:
    first = record(train_churn.train_churn, write(tmp_path / "a.csv", *ROWS[:-1]))
    assert ("fit", "Completed") in ends(first)
    same = record(train_churn.train_churn, write(tmp_path / "b.csv", *ROWS[:-1]))
    assert ends(same) == {(name, "Cached") for name in COMPUTED}, "the same rows, computed again"
    assert same.state == "Completed"
    changed = record(train_churn.train_churn, write(tmp_path / "b.csv", *ROWS[:-40]))
    assert ends(changed) == {(name, "Completed") for name in COMPUTED}, (
        "the file has changed, and its old results were taken"
    )
    with temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}):
        anew = record(train_churn.train_churn, write(tmp_path / "b.csv", *ROWS[:-40]))
    assert ("fit", "Completed") in ends(anew), "the setting on the page computes nothing anew"


def test_a_step_whose_lines_have_changed_is_computed_anew(record: Record, tmp_path: Path) -> None:
    file = write(tmp_path / "users.csv", *ROWS[:-50])
    record(train_churn.train_churn, file)
    changed_copy(GROWING / "train_churn.py", tmp_path, ("C=c)", "C=2 * c)"))
    again = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, 'docs/growing'];"
        f"import train_churn; train_churn.train_churn({file!r})"
    )
    told = run("-c", again, seconds=240, PREFECT_API_URL=str(PREFECT_API_URL.value()))
    ended = dict(re.findall(r"Task run '(\w+)-\w+' - Finished in state (\w+)", told.stderr))
    assert ended["fit"] == "Completed", "the step has changed, and its old result was taken"
    assert ended["validate"] == "Cached", "another step has changed, and this one is computed again"


@pytest.mark.parametrize("runner", ["processes", "dask"])
def test_any_task_runner_will_do(
    runner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "users.csv", *ROWS[: -30 * len(runner)])
    monkeypatch.setattr(sys, "argv", ["train_churn.py", file, "--runner", runner])
    train_churn.main()
    assert read_published(), f"nothing was published with {runner}"


def test_a_worse_model_is_refused_and_that_is_no_failure(record: Record) -> None:
    seen = train_churn.fit.fn(10.0, TEST)  # nothing beats it on the users that it has seen
    Variable.set(VARIABLE, {"weights": seen})
    trained = record(train_churn.train_churn)
    assert read_published() == seen, "a worse model was published"
    assert trained.state == "Completed", "a worse model is no failure"
    assert message(trained).startswith("Not published, for it is no better: log loss 0.")
    assert message(trained) in artifact(trained)


def test_a_damaged_row_is_named_and_set_aside() -> None:
    damages = {
        "": "1 fields",
        "1,,0,0,0,0,1": "''",
        "1,5.00,0,x,0,0,1": "'x'",
        "1,nan,0,0,0,0,1": "balance is nan",
        "1,-inf,0,0,0,0,1": "balance is -inf",
        "1,5.00,0,0,-1,0,1": "logins are [0, 0, -1, 0]",
        "1,5.00,0,0,0,0,2": "left is 2",
        "1,5.00,0,0": "4 fields",
        "1,5.00,0,0,0,0,0,0": "8 fields",
        "7,5.00,0,0,0,0,1": "user 7 is there already",
    }
    text = "\n".join([train_churn.HEADER, "7,1.50,1,2,3,4,0", *damages])
    users, damaged = train_churn.validate.fn(text)
    assert users == [(7, 1.5, [1, 2, 3, 4], 0)], "a damaged row was taken for a good one"
    for number, (line, why) in enumerate(zip(damaged, damages.values(), strict=True), start=3):
        assert line.startswith(f"line {number}: ")
        assert why in line, f"{line!r} does not say {why}"


def test_too_many_damaged_rows_stop_the_run(record: Record, tmp_path: Path) -> None:
    bad = ["?" if number % 40 == 1 else row for number, row in enumerate(ROWS)]
    stopped = record(train_churn.train_churn, write(tmp_path / "users.csv", *bad))
    assert stopped.state == "Failed", "a model of a spoilt file"
    told = "4868 rows are good, 132 are damaged: too many"
    assert told in message(stopped)
    assert "line 43:" in message(stopped), f"it does not say which: {message(stopped)}"
    assert told in PAGE


@pytest.mark.parametrize("rows", [["other columns"], ROWS[:50], [row[:-1] + "0" for row in ROWS]])
def test_a_file_to_learn_nothing_from_is_refused(
    rows: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "users.csv", *rows)
    monkeypatch.setattr(sys, "argv", ["train_churn.py", file])
    with pytest.raises(SystemExit, match=r"too (few|many)"):
        train_churn.main()
    assert Variable.get(VARIABLE) is None


def test_a_crash_before_publishing_publishes_nothing(record: Record, tmp_path: Path) -> None:
    file = write(tmp_path / "users.csv", *ROWS[:-70])
    crash = (  # as if the machine died when the model is to be written, in a queue of its own
        "import os, signal, sys; sys.path.append('docs/growing'); import train_churn;"
        "train_churn.LOCK = 'crash';"
        "train_churn.Variable.set = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL);"
        f"train_churn.train_churn({file!r})"
    )
    died = run("-c", crash, seconds=240, PREFECT_API_URL=str(PREFECT_API_URL.value()))
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert Variable.get(VARIABLE) is None
    again = record(train_churn.train_churn, file)
    kept = ends(again) - {("evaluate", "Completed")}  # those of publishing, which had not ended
    assert kept == {(name, "Cached") for name in COMPUTED}, "finished steps are lost"
    assert Variable.get(VARIABLE), "the next run publishes nothing"


def test_of_two_trainings_at_once_the_better_one_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    better, worse = train_churn.fit.fn(1.0, TRAINING), train_churn.fit.fn(0.001, TRAINING)
    both_compare, real_set = Barrier(2), Variable.set

    def read() -> Weights | None:
        published = read_published()
        with suppress(BrokenBarrierError):  # let them compare at the same time, if they may
            both_compare.wait(3)
        return published

    def write(name: str, model: Any, overwrite: bool) -> None:
        if model["weights"] == worse and not both_compare.broken:
            wait_until("the better one is written first", lambda: Variable.get(VARIABLE))
        real_set(name, model, overwrite=overwrite)

    monkeypatch.setattr(train_churn, "read_published", read)
    monkeypatch.setattr(Variable, "set", write)

    @flow
    def two_trainings() -> None:
        base = {"bias": 0.0, "balance_weight": 0.0, "login_weight": 0.0}
        each = [train_churn.publish.submit(weights, base, TEST) for weights in (better, worse)]
        for publishing in each:
            publishing.result()

    two_trainings()
    assert read_published() == better, "the last one to write has won, not the better one"


@pytest.mark.parametrize(
    "value",
    [None, "text", {}, {"weights": {"bias": 2.0}}, {"weights": LESSON_WEIGHTS | {"bias": "2"}}],
)
def test_a_damaged_model_is_one_clear_error_in_scoring(
    value: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Variable.set(VARIABLE, value)
    monkeypatch.setattr(sys, "argv", ["score_users.py", "101"])
    with pytest.raises(SystemExit, match=f"The variable {VARIABLE} holds no model") as ended:
        score_users.main()
    assert "\n" not in str(ended.value)
    assert "Traceback" not in capsys.readouterr().err


def test_training_replaces_a_damaged_model_and_says_so(record: Record) -> None:
    Variable.set(VARIABLE, {"weights": "?"})
    trained = record(train_churn.train_churn)
    assert any("holds no model" in log.message for log in trained.logs)
    assert read_published(), "the damaged model is still there"


def test_without_a_model_scoring_says_so_and_uses_the_constants(record: Record) -> None:
    scored = record(score_users.score_users, [101, 102])
    assert any("No model is published" in log.message for log in scored.logs)
    for user_id, churn in scored.result.items():
        of_lesson_08 = score_users.lesson.pipeline_flow(user_id)["churn"]
        assert round(churn, 3) == of_lesson_08, "not the probability of lesson 08"


def test_scoring_takes_the_published_weights_and_names_the_bad_user() -> None:
    weights = {"bias": 1.0, "balance_weight": 0.0, "login_weight": 0.0}
    Variable.set(VARIABLE, {"weights": weights})
    state: Any = score_users.score_users([101, 999, 102], return_state=True)
    scored = read_flow_run(state.state_details.flow_run_id)
    assert scored.state == "Failed", "a step failed, and the flow run is green"
    assert message(scored).startswith("1 of 3 failed\nuser 999: ")
    assert "404" in message(scored), "the user's own error is not told"
    assert "101" not in message(scored), "a good user is named as a bad one"
    churn = str(1 / (1 + math.exp(-1)))[:10]
    assert artifact(scored).count(churn) == 2, "the outcome of a good user is lost"
    assert "404" in artifact(scored), "the outcome of the bad user is lost"


def test_both_are_served_and_scoring_is_triggered_by_lesson_12(tmp_path: Path) -> None:
    api_url = str(PREFECT_API_URL.value())
    name = "score-users/on-demand"
    with serving(api_url, GROWING / "serve_churn.py", tmp_path / "log", name=name):
        trigger = (script("12"), name, "-p", "user_ids=[101]", "--wait")
        told = run(*trigger, seconds=240, PREFECT_API_URL=api_url)
        assert told.returncode == 0, told.stderr
        with get_client(sync_client=True) as client:
            (monthly,) = client.read_deployment_by_name("train-churn/monthly").schedules
    assert getattr(monthly.schedule, "cron", None) == "0 6 1 * *", "training has no cron schedule"


def test_the_numbers_on_the_page_are_those_of_the_program() -> None:
    assert int(stated(r"more than (\d+)% of them")) == 100 * train_churn.MAX_DAMAGED
    told = stated(r"(\d+)% to fit six .*?, (\d+)% to choose one of them, and (\d+)% to test")
    parts = [round(100 * len(part) / len(USERS), -1) for part in (TRAINING, CHOOSING, TEST)]
    assert [float(share) for share in told] == parts
    longest = int(stated(r"up to ([\d,]+) characters").replace(",", ""))
    Variable.set("long", "x" * (longest - 2), overwrite=True)  # its JSON has two quotes
    with pytest.raises(ValueError, match=f"{longest}"):
        Variable.set("long", "x" * (longest - 1), overwrite=True)
    source = Path(train_churn.__file__).read_text(encoding="utf-8")
    assert f"timeout_seconds={stated(r'publishing times out after (.+?) s')}," in source


def test_the_generator_makes_the_file_byte_for_byte(tmp_path: Path) -> None:
    told = run(shutil.copy(GROWING / "make_users.py", tmp_path))
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "users.csv").read_bytes() == train_churn.FILE.read_bytes()


def test_the_estimates_on_the_page_are_true_and_agree_with_the_constants() -> None:
    data = np.array(TRAINING + CHOOSING + TEST)
    x = np.column_stack([np.ones(len(data)), data[:, :2]])
    weights = np.zeros(3)
    for _ in range(20):  # Newton's method: the top of the likelihood, and its curvature there
        churn = 1 / (1 + np.exp(-x @ weights))
        information = (x.T * (churn * (1 - churn))) @ x
        weights += np.linalg.solve(information, x.T @ (data[:, 2] - churn))
    errors = np.sqrt(np.diag(np.linalg.inv(information)))
    for name, weight, error in zip(LESSON_WEIGHTS, weights, errors, strict=True):
        assert abs(weight - LESSON_WEIGHTS[name]) < 2 * error, f"{name} is not the lesson's"
        (stated,) = re.findall(rf"(?m)^\| `{name}` \| (.*) \| (.*) \| (.*) \|$", PAGE)
        digits = len(stated[1].partition(".")[2])
        now = [LESSON_WEIGHTS[name], round(weight, digits), round(error, digits)]
        assert [float(text) for text in stated] == now, f"the page states {stated} for {name}"
