# mypy: disable-error-code="import-untyped"
"""Train the model behind `predict_churn`; publish it only if it is better than what is published.

Run:    python docs/growing/train_churn.py
        python docs/growing/train_churn.py --runner processes
Notice: the second time nothing is computed again (`Cached`), and nothing is published.
"""

import argparse
import math
import pkgutil
import sys
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from prefect import State, flow, get_client, get_run_logger, task, unmapped
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import INPUTS, TASK_SOURCE
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.variables import Variable
from score_users import LESSON_WEIGHTS, VARIABLE, Weights, read_published, round_all
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

FILE = Path(__file__).with_name("users.csv")
HEADER = "user_id,balance,week_1,week_2,week_3,week_4,left"
MAX_DAMAGED = 0.02  # of the rows; with more, something is wrong with the whole file
MIN_USERS = 100  # who left, and who stayed
MAX_BALANCE = 1_000_000  # dollars
MAX_LOGINS = 1_000  # a week
C_VALUES = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]  # from strong regularisation to little
LOCK = "publish-churn-model"
RUNNERS = {  # imported when it is chosen, for Dask takes seconds
    "threads": "prefect.task_runners:ThreadPoolTaskRunner",
    "processes": "prefect.task_runners:ProcessPoolTaskRunner",
    "dask": "prefect_dask:DaskTaskRunner",
}
CHART = """%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "#8fb8de, #b03a2e"}}}}%%
xychart-beta
title "Who left (bars), who was predicted to (line)"
x-axis "tenths of the users, by prediction" 1 --> 10
y-axis "share" 0 --> 1"""

# A step is computed anew if its inputs or its own lines have changed, and only then.
BY_CONTENT = INPUTS + TASK_SOURCE

User = tuple[int, float, list[int], int]  # id, balance in dollars, logins per week, left (0 or 1)
Features = list[tuple[float, int, int]]  # balance in dollars, logins in four weeks, left


@task(retries=2, retry_delay_seconds=1)
def read_file(path: str) -> str:
    """Return the file's text. Each run reads it anew: its content says what is cached."""
    return Path(path).read_text(encoding="utf-8-sig", errors="replace")


@task(cache_policy=BY_CONTENT)
def validate(text: str) -> tuple[list[User], list[str]]:
    """Return the users of the good rows, and the line number and error of each damaged one."""
    header, *lines = text.splitlines() or [""]
    if header != HEADER:
        return [], [f"line 1: {header!r} is not {HEADER!r}"]
    users: dict[int, User] = {}
    damaged = []
    for number, line in enumerate(lines, start=2):
        try:
            fields = line.split(",")
            if len(fields) != 7:
                raise ValueError(f"{len(fields)} fields instead of 7")
            user_id, balance, left = int(fields[0]), float(fields[1]), int(fields[6])
            weeks = [int(field) for field in fields[2:6]]
            if user_id in users:
                raise ValueError(f"user {user_id} is there already")
            if not abs(balance) < MAX_BALANCE:  # nor is NaN
                raise ValueError(f"the balance is {balance}")
            if not all(0 <= logins <= MAX_LOGINS for logins in weeks):
                raise ValueError(f"the logins are {weeks}")
            if left not in (0, 1):
                raise ValueError(f"left is {left}")
            users[user_id] = (user_id, balance, weeks, left)
        except ValueError as error:
            damaged.append(f"line {number}: {error}")
    return list(users.values()), damaged


@task(cache_policy=BY_CONTENT)
def build_features(users: list[User]) -> list[Features]:
    """Return the features of users to train on (60%), to choose by (20%) and to test on (20%).

    The id decides: who is tested on today was not trained on last month, or by another run.
    """
    parts: list[Features] = [[], [], []]
    for user_id, balance, weeks, left in users:
        tenth = zlib.crc32(str(user_id).encode()) % 10
        parts[(tenth >= 6) + (tenth >= 8)].append((balance, sum(weeks), left))
    return parts


@task(cache_policy=BY_CONTENT)
def fit(c: float, users: Features) -> Weights:
    """Return the weights of a logistic regression, per dollar and per login; a small c shrinks.

    The fit sees both features on one scale, so that c means the same for each.
    """
    data = np.array(users)
    scaler, model = StandardScaler(), LogisticRegression(C=c)
    model.fit(scaler.fit_transform(data[:, :2]), data[:, 2])
    weights = model.coef_[0] / scaler.scale_
    bias = model.intercept_[0] - weights @ scaler.mean_
    return dict(zip(LESSON_WEIGHTS, [float(bias), *weights.tolist()], strict=True))


@task(cache_policy=BY_CONTENT)
def evaluate(weights: Weights, users: Features) -> dict[str, Any]:
    """Return log loss, ROC AUC and, in ten groups by prediction, who was to leave and who did."""
    data = np.array(users)
    score = weights["bias"] + data[:, :2] @ [weights["balance_weight"], weights["login_weight"]]
    churn, left = (1 + np.tanh(score / 2)) / 2, data[:, 2]
    true, predicted = calibration_curve(left, churn, n_bins=10, strategy="quantile")
    return {
        "log_loss": float(log_loss(left, churn)),
        "roc_auc": float(roc_auc_score(left, churn)),
        "calibration": list(zip(predicted.tolist(), true.tolist(), strict=True)),
    }


@task(retries=2, retry_delay_seconds=1)
def publish(weights: Weights, base: Weights, test: Features) -> tuple[str, dict[str, Any]]:
    """Publish the weights if they beat the published ones, or the base rate if there are none.

    Returns the verdict, and the evaluation of each on the same users.
    """
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LOCK, limit=1)
    # One training at a time compares and writes: else the last one wins, not the best one.
    with concurrency(LOCK, lease_duration=60, timeout_seconds=120, strict=True):
        results = {"new model": evaluate(weights, test), "base rate": evaluate(base, test)}
        rival = "base rate"
        try:
            if published := read_published():
                results["published model"] = evaluate(published, test)
                rival = "published model"
        except ValueError as error:
            get_run_logger().warning("%s", error)
        loss, bar = results["new model"]["log_loss"], results[rival]["log_loss"]
        losses = f"log loss {loss:.4f}, {rival} {bar:.4f}"
        if loss >= bar:
            return f"Not published, for it is no better: {losses}", results
        model = {"weights": weights, "log_loss": loss, "roc_auc": results["new model"]["roc_auc"]}
        model |= {"flow_run_id": str(flow_run.id), "time": datetime.now(UTC).isoformat()}
        Variable.set(VARIABLE, model, overwrite=True)  # the whole model in one request
    return f"Published, for it is better: {losses}", results


@task(retries=2, retry_delay_seconds=1)
def report(verdict: str, weights: Weights, results: dict[str, Any]) -> None:
    """Put the evaluation on the page of the flow run: tables, and a chart of the calibration."""
    lines = [f"**{verdict}**", "", "| on users held out | log loss | ROC AUC |", "|-|-|-|"]
    for name, result in results.items():
        lines.append(f"| {name} | {result['log_loss']:.4f} | {result['roc_auc']:.3f} |")
    lines += ["", "| weight | new model | lesson 08 |", "|-|-|-|"]
    for name, weight in round_all(weights).items():
        lines.append(f"| {name} | {weight} | {LESSON_WEIGHTS[name]} |")
    lines += ["", "| users, by prediction | predicted to leave | left |", "|-|-|-|"]
    calibration = results["new model"]["calibration"]
    for tenth, (predicted, true) in enumerate(calibration, start=1):
        lines.append(f"| tenth {tenth} | {predicted:.1%} | {true:.1%} |")
    lines += ["", "```mermaid", CHART, f"bar {[round(true, 3) for _, true in calibration]}"]
    lines += [f"line {[round(predicted, 3) for predicted, _ in calibration]}", "```"]
    create_markdown_artifact("\n".join(lines), key="churn-model", description=verdict)


@flow
def train_churn(path: str = str(FILE)) -> State:
    """Train on the users in the file. The state's message says whether the model is published."""
    logger = get_run_logger()
    users, damaged = validate(read_file(path))
    counts = f"{len(users)} rows are good, {len(damaged)} are damaged"
    logger.info(counts)
    if damaged:
        logger.warning("Set aside:\n%s", "\n".join(damaged))
    if len(damaged) > MAX_DAMAGED * (len(users) + len(damaged)):
        return Failed(message="\n".join([f"{counts}: too many. The first:", *damaged[:10]]))
    left = sum(user[3] for user in users)
    if min(left, len(users) - left) < MIN_USERS:
        return Failed(message=f"{left} left, {len(users) - left} stayed: too few to learn from")

    training, choosing, test = build_features(users)
    fits = fit.map(C_VALUES, unmapped(training)).result()
    losses = [result["log_loss"] for result in evaluate.map(fits, unmapped(choosing)).result()]
    best = losses.index(min(losses))
    weights = fits[best]
    logger.info("The best C is %s: %s", C_VALUES[best], round_all(weights))

    share = sum(row[2] for row in training) / len(training)
    base = {"bias": math.log(share / (1 - share)), "balance_weight": 0.0, "login_weight": 0.0}
    verdict, results = publish(weights, base, test)
    report(verdict, weights, results)
    return Completed(message=verdict)


def main() -> None:
    """Train on the file of the command line; exit with 1 if the flow run failed."""
    parser = argparse.ArgumentParser(description="Train the churn model, publish it if better.")
    parser.add_argument("path", nargs="?", default=str(FILE))
    parser.add_argument("--runner", choices=RUNNERS, default="threads")
    arguments = parser.parse_args()
    if not Path(arguments.path).is_file():
        parser.error(f"there is no file {arguments.path}")
    runner = pkgutil.resolve_name(RUNNERS[arguments.runner])()
    training = train_churn.with_options(task_runner=runner)
    state = training(arguments.path, return_state=True)
    if not state.is_completed():
        sys.exit(state.message)


if __name__ == "__main__":
    main()
