# mypy: disable-error-code="import-untyped"
"""Train the model behind `predict_churn`, and publish it if it beats the published model.

Run:    python docs/growing/train_churn.py
        python docs/growing/train_churn.py --runner processes
Notice: the second run takes every result from the cache (`Cached`) and publishes nothing.
"""

import argparse
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from prefect import State, flow, get_client, get_run_logger, task, unmapped
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import INPUTS, TASK_SOURCE
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from prefect.variables import Variable
from prefect_dask.task_runners import DaskTaskRunner
from read_users import FILE, Features, check_rows, read_file
from score_users import LESSON_WEIGHTS, VARIABLE, Weights, read_published, round_all
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

MAX_DAMAGED = 0.02  # of the rows; if more are damaged, something is wrong with the whole file
MIN_USERS = 100  # of those who left, and of those who stayed
C_VALUES = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]  # from strong regularization to weak
LOCK = "publish-churn-model"
RUNNERS: dict[str, Any] = {
    "threads": ThreadPoolTaskRunner,
    "processes": ProcessPoolTaskRunner,
    "dask": DaskTaskRunner,
}
CHART = """%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "#8fb8de, #b03a2e"}}}}%%
xychart-beta
title "Who left (bars), who was predicted to leave (line)"
x-axis "tenths of the test users, by prediction" 1 --> 10
y-axis "share" 0 --> 1"""

# A result is reused if the task's inputs and the task's own source lines are the same.
BY_CONTENT = INPUTS + TASK_SOURCE

Split = list[Features]
Evaluation = dict[str, Any]  # log_loss, roc_auc, calibration
Results = dict[str, Evaluation]  # by model: "challenger", "baseline", "champion"


@task(cache_policy=BY_CONTENT)
def split_users(users: dict[int, Features]) -> list[Split]:
    """Return the training split (60% of the users), validation split (20%) and test split (20%).

    A hash of the id decides, so a user stays in the same split in every file and every run.
    """
    splits: list[Split] = [[], [], []]
    for user_id, features in users.items():
        tenth = zlib.crc32(str(user_id).encode()) % 10
        splits[(tenth >= 6) + (tenth >= 8)].append(features)
    return splits


@task(cache_policy=BY_CONTENT)
def fit(c: float, training: Split) -> Weights:
    """Return the weights, per dollar and per login, of a logistic regression with this C.

    The features are standardized first, so that regularization treats both alike.
    """
    data = np.array(training)
    scaler, model = StandardScaler(), LogisticRegression(C=c)
    model.fit(scaler.fit_transform(data[:, :2]), data[:, 2])
    weights = model.coef_[0] / scaler.scale_
    bias = model.intercept_[0] - weights @ scaler.mean_
    return dict(zip(LESSON_WEIGHTS, [float(bias), *weights.tolist()], strict=True))


@task(cache_policy=BY_CONTENT)
def evaluate(weights: Weights, users: Split) -> Evaluation:
    """Return log loss, ROC AUC and calibration: (predicted, actual) share in each of ten groups."""
    data = np.array(users)
    score = weights["bias"] + data[:, :2] @ [weights["balance_weight"], weights["login_weight"]]
    churn, left = (1 + np.tanh(score / 2)) / 2, data[:, 2]
    actual, predicted = calibration_curve(left, churn, n_bins=10, strategy="quantile")
    return {
        "log_loss": float(log_loss(left, churn)),
        "roc_auc": float(roc_auc_score(left, churn)),
        "calibration": list(zip(predicted.tolist(), actual.tolist(), strict=True)),
    }


# No cache policy: the published model may have changed since the last run.
@task(retries=2, retry_delay_seconds=1)
def publish(challenger: Weights, baseline: Weights, test: Split) -> tuple[str, Results]:
    """Publish the new model, the challenger, if it beats the published one, the champion.

    Without a champion, it has to beat the baseline. Returns the verdict, and the evaluation of
    each on the test split.
    """
    results = {"challenger": evaluate(challenger, test), "baseline": evaluate(baseline, test)}
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LOCK, limit=1)
    # Only one run at a time compares and writes. Otherwise the last to write wins, not the best.
    with concurrency(LOCK, lease_duration=60, timeout_seconds=120, strict=True):
        try:
            if champion := read_published():
                results["champion"] = evaluate(champion, test)
        except ValueError as error:
            get_run_logger().warning("%s", error)
        opponent = "champion" if "champion" in results else "baseline"
        loss, to_beat = results["challenger"]["log_loss"], results[opponent]["log_loss"]
        losses = f"log loss {loss:.4f}, {opponent} {to_beat:.4f}"
        if loss >= to_beat:
            return f"Not published, no better: {losses}", results
        scores = {"log_loss": loss, "roc_auc": results["challenger"]["roc_auc"]}
        model = {"weights": challenger, **scores, "flow_run_id": str(flow_run.id)}
        Variable.set(VARIABLE, model, overwrite=True)  # the whole model in one request
    return f"Published, better: {losses}", results


# No cache policy: each flow run needs its report.
@task(retries=2, retry_delay_seconds=1)
def report(verdict: str, weights: Weights, results: Results) -> None:
    """Create the artifact of the flow run: the evaluation as tables, and a calibration chart."""
    calibration = results["challenger"]["calibration"]
    lines = [f"**{verdict}**", "", "| model, on the test split | log loss | ROC AUC |", "|-|-|-|"]
    lines += [f"| {it} | {r['log_loss']:.4f} | {r['roc_auc']:.3f} |" for it, r in results.items()]
    lines += ["", "| weight | challenger | lesson 08 |", "|-|-|-|"]
    lines += [f"| {it} | {w} | {LESSON_WEIGHTS[it]} |" for it, w in round_all(weights).items()]
    lines += ["", "| tenth of the test users | predicted to leave | left |", "|-|-|-|"]
    lines += [f"| {n} | {p:.1%} | {a:.1%} |" for n, (p, a) in enumerate(calibration, start=1)]
    lines += ["", "```mermaid", CHART, f"bar {[round(actual, 3) for _, actual in calibration]}"]
    lines += [f"line {[round(predicted, 3) for predicted, _ in calibration]}", "```"]
    create_markdown_artifact("\n".join(lines), key="churn-model", description=verdict)


@flow
def train_churn(path: str = str(FILE)) -> State:
    """Train on the users in the file. The state's message says whether the model is published."""
    logger = get_run_logger()
    users, damaged = check_rows(read_file(path))
    counts = f"{len(users)} rows are good, {len(damaged)} are damaged"
    logger.info(counts)
    if damaged:
        logger.warning("Damaged rows are left out:\n%s", "\n".join(damaged))
    if len(damaged) > MAX_DAMAGED * (len(users) + len(damaged)):
        limit = f"{counts}, more than {MAX_DAMAGED:.0%}. The first ones:"
        return Failed(message="\n".join([limit, *damaged[:10]]))
    left = sum(features[2] for features in users.values())
    stayed = len(users) - left
    if min(left, stayed) < MIN_USERS:
        return Failed(message=f"{left} users left, {stayed} stayed: {MIN_USERS} of each are needed")

    training, validation, test = split_users(users)
    candidates = fit.map(C_VALUES, unmapped(training)).result()
    evaluations = evaluate.map(candidates, unmapped(validation)).result()
    losses = [evaluation["log_loss"] for evaluation in evaluations]
    best = losses.index(min(losses))  # the lowest log loss wins
    logger.info("The best C is %s: %s", C_VALUES[best], round_all(candidates[best]))

    # The baseline predicts the same probability for everybody.
    share = sum(features[2] for features in training) / len(training)
    baseline = {"bias": math.log(share / (1 - share)), "balance_weight": 0.0, "login_weight": 0.0}
    verdict, results = publish(candidates[best], baseline, test)
    report(verdict, candidates[best], results)
    return Completed(message=verdict)


def main() -> None:
    """Train on the file of the command line; exit with 1 if the flow run fails."""
    parser = argparse.ArgumentParser(description="Train the churn model and publish it.")
    parser.add_argument("path", nargs="?", default=str(FILE))
    parser.add_argument("--runner", choices=RUNNERS, default="threads")
    arguments = parser.parse_args()
    if not Path(arguments.path).is_file():
        parser.error(f"no such file: {arguments.path}")
    training = train_churn.with_options(task_runner=RUNNERS[arguments.runner]())
    state = training(arguments.path, return_state=True)
    if not state.is_completed():
        sys.exit(f"error: {state.message}")


if __name__ == "__main__":
    main()
