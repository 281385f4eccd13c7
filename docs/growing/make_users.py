"""Make users.csv: a month's users, who stay or leave as the model of lesson 05 says.

Run:    python docs/growing/make_users.py
Notice: the same file each time, byte for byte; some rows are damaged, as in real files.
"""

import math
import random
from pathlib import Path

FILE = Path(__file__).with_name("users.csv")
SEED = 2026
USERS = 5_000
HEADER = "user_id,balance,week_1,week_2,week_3,week_4,left"

# The constants of lessons 05 and 08. Nothing else of the model goes into the file.
BIAS = 2.0
BALANCE_WEIGHT = -0.002  # per dollar
LOGIN_WEIGHT = -0.1  # per login in four weeks

# What happens to a row on its way into a file: which field, and what stands there instead.
DAMAGES = [
    ("balance", ""),  # an empty field
    ("balance", "12 dollars"),  # text in a number
    ("balance", "nan"),  # a number to Python, and none to a model
    ("week_2", "-3"),  # less than no logins
    ("left", "?"),  # not known
    ("user_id", "1001"),  # another user's id
    ("left", None),  # a row cut short
]


def make_rows(numbers: random.Random) -> list[list[str]]:
    """Return a row of text for each user. Only `random()` is drawn, the same on every Python."""
    rows = []
    for user_id in range(1001, 1001 + USERS):
        balance = round(2_000 * numbers.random() ** 2, 2)  # dollars: many little, few much
        habit = numbers.random()  # how much the user is used to log in
        weeks = [int(16 * habit * numbers.random()) for _ in range(4)]
        score = BIAS + BALANCE_WEIGHT * balance + LOGIN_WEIGHT * sum(weeks)
        left = numbers.random() < (1 + math.tanh(score / 2)) / 2
        rows.append([str(user_id), f"{balance:.2f}", *map(str, weeks), str(int(left))])
    return rows


def damage(rows: list[list[str]], numbers: random.Random) -> None:
    """Spoil a row in each of the ways of DAMAGES, somewhere after the first row."""
    for field, text in DAMAGES:
        column = HEADER.split(",").index(field)
        row = rows[1 + int(numbers.random() * (len(rows) - 1))]
        row[column:] = [] if text is None else [text, *row[column + 1 :]]


if __name__ == "__main__":
    numbers = random.Random(SEED)
    rows = make_rows(numbers)
    damage(rows, numbers)
    lines = [HEADER, *(",".join(row) for row in rows)]
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    print(f"{FILE.name}: {len(rows)} users, {len(DAMAGES)} of them damaged")
