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
from typing import Any

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


def check_row(row: dict[Any, Any]) -> Customer:
    """Return the customer of a row; raise ValueError, in one line, if the row is damaged."""
    if None in row:
        raise ValueError(f"more fields than the header: {row[None]}")
    try:
        return Customer.model_validate(row)
    except ValidationError as error:
        wrong = [f"{e['loc'][0]} is {e['input']!r} ({e['msg']})" for e in error.errors()]
        raise ValueError("; ".join(wrong)) from None


@task
def read_customers(source: Path) -> tuple[list[Customer], list[str]]:
    """Return the customers of the file, and a line about each damaged row, which is left out.

    Raises ValueError, naming the file, if it cannot be read, lacks a column, or has no good row.
    """
    customers: dict[int, Customer] = {}
    problems: list[str] = []
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if missing := set(Customer.model_fields) - set(rows.fieldnames or []):
                if not rows.fieldnames:
                    raise ValueError("the file is empty")
                raise ValueError(f"no column {', '.join(sorted(missing))} in {rows.fieldnames}")
            for row in rows:
                try:
                    customer = check_row(row)
                    if customers.setdefault(customer.customer_id, customer) is not customer:
                        raise ValueError(f"customer {customer.customer_id} again")
                except ValueError as error:
                    problems.append(f"line {rows.line_num}: {error}")
        if not customers:
            raise ValueError("; ".join(["no row that can be used", *problems[:3]]))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"cannot report on {source}: {error}") from None
    return list(customers.values()), problems


@task
def summarize_plan(plan: str, customers: list[Customer]) -> str:
    """Return the plan's line of the report."""
    balance = mean(customer.balance for customer in customers)
    left = mean(customer.left for customer in customers)
    return f"| {plan} | {len(customers)} | {balance:.2f} | {left:.0%} |"


@task
def write_report(text: str, target: Path) -> None:
    """Write the file at once: a reader never sees half of it, and a second run replaces it."""
    part = target.with_name(f"{target.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(target)
    create_markdown_artifact(text, key="churn-report", description=str(target))


@flow
def report_flow(source: Path, target: Path) -> str:
    """Write the report about the customers in `source` to `target`, and return its text.

    Rows that are left out are in the report and in the log. Raises ValueError if there is no
    usable file, and OSError if the report cannot be written.
    """
    customers, problems = read_customers(source)
    for problem in problems:
        get_run_logger().warning("left out: %s", problem)
    plans = sorted({customer.plan for customer in customers})
    groups = [[customer for customer in customers if customer.plan == plan] for plan in plans]
    lines = summarize_plan.map(plans, groups).result()
    header = ["| Plan | Customers | Mean balance | Left |", "|---|---|---|---|"]
    text = "\n".join([*header, *lines, "", *[f"- left out: {problem}" for problem in problems]])
    write_report(text, target)
    return text


def main() -> None:
    """Run the flow once; exit with 1 and one line if the run does not complete."""
    parser = argparse.ArgumentParser(description="Report on each plan of a file of customers.")
    parser.add_argument("source", type=Path)
    source = parser.parse_args().source
    try:
        state = report_flow(source, Path("report.md"), return_state=True)
    except RuntimeError as error:  # Prefect's: the flow's own errors are in its state
        sys.exit(f"error: {error}. Start the server, or unset PREFECT_API_URL.")
    if not state.is_completed():
        sys.exit(f"error: {state.message}")
    print(state.result())


if __name__ == "__main__":
    main()
