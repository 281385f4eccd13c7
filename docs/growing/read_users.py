"""Read a file of users and check each row, for train_churn.py.

Run:    python docs/growing/read_users.py
Notice: a damaged row is reported with its line, its column and what is wrong with the value.
"""

from pathlib import Path
from typing import Literal

from prefect import task
from prefect.cache_policies import INPUTS, TASK_SOURCE
from pydantic import BaseModel, Field, ValidationError

FILE = Path(__file__).with_name("users.csv")

Features = tuple[float, int, int]  # balance in dollars, logins in four weeks, left (0 or 1)


class User(BaseModel):
    """A row of the file: the columns, in order, and the values that each may have."""

    user_id: int
    balance: float = Field(gt=-1e6, lt=1e6, allow_inf_nan=False)  # dollars
    week_1: int = Field(ge=0, le=1000)  # logins
    week_2: int = Field(ge=0, le=1000)
    week_3: int = Field(ge=0, le=1000)
    week_4: int = Field(ge=0, le=1000)
    left: Literal["0", "1"]  # 0: the user stayed, 1: the user left


COLUMNS = list(User.model_fields)


@task(retries=2, retry_delay_seconds=1)
def read_file(path: str) -> str:
    """Return the text of the file. The text is read in every run; what follows may be cached."""
    return Path(path).read_text(encoding="utf-8-sig", errors="replace")


@task(cache_policy=INPUTS + TASK_SOURCE)
def check_rows(text: str) -> tuple[dict[int, Features], list[str]]:
    """Return the features of each user by id, and a line for each damaged row that says why."""
    header, *rows = [line.split(",") for line in text.splitlines()] or [[]]
    if header != COLUMNS:
        return {}, [f"line 1: the columns are {header} instead of {COLUMNS}"]
    users: dict[int, Features] = {}
    damaged = []
    for number, fields in enumerate(rows, start=2):
        try:
            if len(fields) != len(COLUMNS):
                raise ValueError(f"{len(fields)} fields instead of {len(COLUMNS)}")
            user = User.model_validate(dict(zip(COLUMNS, fields, strict=True)))
            if user.user_id in users:
                raise ValueError(f"user {user.user_id} appears twice")
            logins = user.week_1 + user.week_2 + user.week_3 + user.week_4
            users[user.user_id] = (user.balance, logins, int(user.left))
        except ValueError as error:
            damaged.append(f"line {number}: {explain(error)}")
    return users, damaged


def explain(error: ValueError) -> str:
    """Return what is wrong with a row, with the column and the value if one value is wrong."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{first['loc'][0]} is {first['input']!r}: {first['msg']}"


if __name__ == "__main__":
    users, damaged = check_rows.fn(FILE.read_text(encoding="utf-8"))
    print(f"{len(users)} rows are good, {len(damaged)} are damaged:", *damaged, sep="\n")
