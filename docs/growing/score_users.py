"""Score many users with the published model and lesson 08's steps.

Run:    python docs/growing/score_users.py 101 102 103
Notice: the first log line names the model; with 999 among them, the others have their score,
        999 is named with its error, and the flow run is Failed.
"""

import argparse
import importlib
import math
import sys
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, task, unmapped
from prefect.artifacts import create_table_artifact
from prefect.futures import wait
from prefect.states import Failed
from prefect.variables import Variable

sys.path.append(str(Path(__file__).parents[2]))  # the folder of the lessons
lesson = importlib.import_module("08_sync_async_retry_logger")

VARIABLE = "churn_model"  # what train_churn.py publishes under this name
NOTHING = "nothing is published"

Weights = dict[str, float]
LESSON_WEIGHTS: Weights = {
    "bias": lesson.BIAS,
    "balance_weight": lesson.BALANCE_WEIGHT,  # per dollar
    "login_weight": lesson.LOGIN_WEIGHT,  # per login in four weeks
}


def round_all(weights: Weights) -> Weights:
    """Return the weights as people read them."""
    return {name: float(f"{weight:.4g}") for name, weight in weights.items()}


def read_published() -> Weights | None:
    """Return the published weights, or None if nothing is published.

    Raises ValueError if what is published is no model.
    """
    published: Any = Variable.get(VARIABLE, default=NOTHING)
    if published == NOTHING:
        return None
    try:
        weights = {name: published["weights"][name] for name in LESSON_WEIGHTS}
        if not all(math.isfinite(weight) for weight in weights.values()):
            raise ValueError(f"not all of {weights} are finite")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The variable {VARIABLE} holds no model ({type(error).__name__}: {error}). "
            "A run of train_churn.py replaces it."
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
    """Return each user's probability of leaving, and notify them as lesson 08 does.

    The artifact of the run keeps each user's outcome. If a step failed, the flow run is Failed,
    and its message names each such user and the error.
    """
    logger = get_run_logger()
    try:
        weights = read_published()
    except ValueError as error:
        return Failed(message=str(error))
    if weights is None:
        weights = LESSON_WEIGHTS
        logger.warning("No model is published: lesson 08's constants are used, %s", weights)
    else:
        logger.info("The published model is used: %s", round_all(weights))

    users = lesson.fetch_user_info.map(user_ids)
    balances = lesson.fetch_account_balance.map(users)
    activities = lesson.fetch_recent_activity.map(users)
    churns = predict_churn.map(balances, activities, unmapped(weights))
    sent = lesson.send_notification.map(users, churns)

    scores, errors = {}, {}
    for user_id, *steps in zip(user_ids, users, balances, activities, churns, sent, strict=True):
        wait(steps)
        failed = [step.state for step in steps if not step.state.is_completed()]
        if failed:  # the first one has the user's own error: the steps behind it never ran
            errors[user_id] = str(failed[0].message)
            logger.error("User %s: %s", user_id, errors[user_id])
        else:
            scores[user_id] = steps[3].result()
            logger.info("User %s: %.3f", user_id, scores[user_id])

    outcomes = [{"user": user_id, "churn": churn, "error": ""} for user_id, churn in scores.items()]
    outcomes += [
        {"user": user_id, "churn": "", "error": error} for user_id, error in errors.items()
    ]
    create_table_artifact(
        outcomes, key="churn-scores", description=f"Weights: {round_all(weights)}"
    )
    if errors:
        named = [f"user {user_id}: {error}" for user_id, error in errors.items()]
        return Failed(message="\n".join([f"{len(errors)} of {len(user_ids)} failed", *named]))
    return scores


def main() -> None:
    """Score the users of the command line; exit with 1 if a step failed."""
    parser = argparse.ArgumentParser(description="Score users with the published model.")
    parser.add_argument("user_ids", nargs="+", type=int, metavar="USER_ID")
    state = score_users(parser.parse_args().user_ids, return_state=True)
    if not state.is_completed():
        sys.exit(state.message)


if __name__ == "__main__":
    main()
