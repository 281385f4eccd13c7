"""Score many users with the published model and the tasks of lesson 08.

Run:    python docs/growing/score_users.py 101 102 103
Notice: the first log record shows the model's weights. If you add 999, the other users still get
        their score, user 999 is reported with an error, and the flow run is Failed.
"""

import argparse
import importlib
import math
import sys
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, task, unmapped
from prefect.artifacts import create_table_artifact
from prefect.states import Failed
from prefect.variables import Variable

sys.path.append(str(Path(__file__).parents[2]))  # the folder of the lessons
lesson = importlib.import_module("08_sync_async_retry_logger")

VARIABLE = "churn_model"  # the name under which train_churn.py publishes a model

Weights = dict[str, float]
LESSON_WEIGHTS: Weights = {
    "bias": lesson.BIAS,
    "balance_weight": lesson.BALANCE_WEIGHT,  # per dollar
    "login_weight": lesson.LOGIN_WEIGHT,  # per login in four weeks
}


def round_all(weights: Weights) -> Weights:
    """Return the weights with four significant digits, for people to read."""
    return {name: float(f"{weight:.4g}") for name, weight in weights.items()}


def read_published() -> Weights | None:
    """Return the weights of the published model, or None if no model was ever published.

    Raises ValueError if the variable does not contain a usable model.
    """
    published: Any = Variable.get(VARIABLE, default="not published")
    if published == "not published":
        return None
    try:
        weights = {name: published["weights"][name] for name in LESSON_WEIGHTS}
        if not all(math.isfinite(weight) for weight in weights.values()):
            raise ValueError(f"not every weight is finite in {weights}")
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"The variable {VARIABLE} does not contain a usable model ({problem}). "
            "Run train_churn.py to replace it."
        ) from error
    return weights


@task
def predict_churn(balance: float, activity: list[int], weights: Weights) -> float:
    """Return the probability, 0 to 1, that a user leaves: lesson 08's formula, these weights."""
    score = weights["bias"] + weights["balance_weight"] * balance
    score += weights["login_weight"] * sum(activity)
    return (1 + math.tanh(score / 2)) / 2


@flow
def score_users(user_ids: list[int]) -> dict[int, float] | State:
    """Return each user's probability of leaving, and send the notification of lesson 08.

    An artifact lists the outcome for each user. If a task fails, the flow run is Failed, and its
    message lists each user whose task failed, with the error.
    """
    logger = get_run_logger()
    try:
        weights = read_published()
    except ValueError as error:
        return Failed(message=str(error))
    if weights is None:
        weights = LESSON_WEIGHTS
        logger.warning("No model is published; using the constants of lesson 08: %s", weights)
    else:
        logger.info("Using the published model: %s", round_all(weights))

    users = lesson.fetch_user_info.map(user_ids)
    balances = lesson.fetch_account_balance.map(users)
    activities = lesson.fetch_recent_activity.map(users)
    churns = predict_churn.map(balances, activities, unmapped(weights))
    sent = lesson.send_notification.map(users, churns)

    scores, errors, table = {}, [], []
    for user_id, *steps in zip(user_ids, users, balances, activities, churns, sent, strict=True):
        try:
            # The first task without a result raises the user's error: see many_users.py.
            scores[user_id] = [step.result() for step in steps][3]
        except Exception as error:  # noqa: BLE001 - whatever it is, the other users go on
            errors.append(f"user {user_id}: {type(error).__name__}: {error}")
            logger.error(errors[-1])
            table.append({"user": user_id, "churn": "", "error": str(error)})
        else:
            logger.info("User %s: %.3f", user_id, scores[user_id])
            table.append({"user": user_id, "churn": scores[user_id], "error": ""})
    create_table_artifact(table, key="churn-scores", description=f"Weights: {round_all(weights)}")
    if errors:
        return Failed(message="\n".join([f"{len(errors)} of {len(user_ids)} failed", *errors]))
    return scores


def main() -> None:
    """Score the users of the command line; exit with 1 if the flow run fails."""
    parser = argparse.ArgumentParser(description="Score users with the published model.")
    parser.add_argument("user_ids", nargs="+", type=int, metavar="USER_ID")
    state = score_users(parser.parse_args().user_ids, return_state=True)
    if not state.is_completed():
        sys.exit(f"error: {state.message}")


if __name__ == "__main__":
    main()
