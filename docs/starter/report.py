"""Which plan do customers leave? Read a CSV file, compute the figures of each plan, report them.

Run:    python report.py customers.csv      (writes report.md, and an artifact for the UI)
Notice: three rows are damaged. They are named, and the others count. Run it twice: it is safe.
"""

import argparse
import csv
import os
import sys
from pathlib import Path
from statistics import mean

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, ValidationError


class Customer(BaseModel):
    """A row of the file. The header has these names, in any order."""

    customer_id: int
    plan: str = Field(min_length=1)
    balance: FiniteFloat  # dollars
    logins: NonNegativeInt  # in four weeks
    left: bool


def parse_row(row: dict[str, str]) -> Customer:
    """Return the customer of a row; raise ValueError, in one line, if it is damaged."""
    try:
        return Customer.model_validate(row)
    except ValidationError as error:
        wrong = [f"{e['loc'][0]} is {e['input']!r}, {e['msg'].lower()}" for e in error.errors()]
        raise ValueError("; ".join(wrong)) from None


@task
def read_customers(source: Path) -> tuple[list[Customer], list[str]]:
    """Return the customers of the file, and a line about each row that is left out.

    Raises ValueError, naming the file, if it cannot be read, lacks a column, or has no good row.
    """
    customers: dict[int, Customer] = {}
    problems: list[str] = []
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if missing := set(Customer.model_fields) - set(rows.fieldnames or []):
                raise ValueError(f"no column {', '.join(sorted(missing))} in {rows.fieldnames}")
            for row in rows:
                try:
                    customer = parse_row(row)
                    if customer.customer_id in customers:
                        raise ValueError(f"customer {customer.customer_id} came before")
                    customers[customer.customer_id] = customer
                except ValueError as error:
                    problems.append(f"line {rows.line_num}: {error}")
        if not customers:
            raise ValueError("no row that can be used")
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"cannot report on {source}: {error}") from None
    return list(customers.values()), problems


@task
def summarize_plan(plan: str, customers: list[Customer]) -> str:
    """Return the plan's line of the report, from the customers of all plans."""
    own = [customer for customer in customers if customer.plan == plan]
    balance = mean(customer.balance for customer in own)
    left = mean(customer.left for customer in own)
    return f"| {plan} | {len(own)} | {balance:.2f} | {left:.0%} |"


@task
def write_report(text: str, target: Path) -> None:
    """Write the file at once: a reader never sees half of it, and a second run replaces it."""
    part = target.with_name(f"{target.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(target)
    create_markdown_artifact(text, key="churn-report", description=str(target))
