"""Generate users.csv: a month of users who stay or leave as the model of lesson 08 predicts.

Run:    python docs/growing/make_users.py
Notice: the file is the same every time, byte for byte. Some rows are damaged, as in real files.
"""

import math
import random
from pathlib import Path

FILE = Path(__file__).with_name("users.csv")
SEED = 2026
USERS = 5_000
HEADER = "user_id,balance,week_1,week_2,week_3,week_4,left"

# The constants of lesson 08: the model that the training is to find again.
BIAS = 2.0
BALANCE_WEIGHT = -0.002  # per dollar
LOGIN_WEIGHT = -0.1  # per login in four weeks

# The damages: which field of a row is replaced, and by which text.
DAMAGES = [
    ("balance", ""),  # an empty field
    ("balance", "12 dollars"),  # text in a number
    ("balance", "nan"),  # a float in Python, but no use to a model
    ("week_2", "-3"),  # a negative number of logins
    ("left", "?"),  # unknown
    ("user_id", "1001"),  # the id of another user
    ("left", None),  # the row ends here
]


def make_rows(numbers: random.Random) -> list[list[str]]:
    """Return one row for each user, as text. `random()` gives the same on every Python version."""
    rows = []
    for user_id in range(1001, 1001 + USERS):
        balance = round(2_000 * numbers.random() ** 2, 2)  # dollars; most users have little
        habit = numbers.random()  # how often the user tends to log in
        weeks = [int(16 * habit * numbers.random()) for _ in range(4)]
        score = BIAS + BALANCE_WEIGHT * balance + LOGIN_WEIGHT * sum(weeks)
        left = numbers.random() < (1 + math.tanh(score / 2)) / 2
        rows.append([str(user_id), f"{balance:.2f}", *map(str, weeks), str(int(left))])
    return rows


def damage(rows: list[list[str]], numbers: random.Random) -> None:
    """Apply each of the DAMAGES to a random row, but not to the first one."""
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
