"""Run four simulations that keep a core busy, with threads and then with processes.

Run:    python docs/growing/threads_or_processes.py
Notice: both print the same shares; each line says in which process the tasks ran.
"""

import os
import random
import time
from typing import Any

from prefect import flow, task
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

USERS = 10_000_000
CHURN = 0.659  # lesson 08's probability for user 101
SEEDS = [1, 2, 3, 4]


@task
def simulate(seed: int) -> tuple[float, int]:
    """Return the share of the users who leave, drawn at random, and the id of this process."""
    draw = random.Random(seed).random
    left = sum(draw() < CHURN for _ in range(USERS))
    return left / USERS, os.getpid()


@flow
def simulation_flow(seeds: list[int]) -> None:
    """Print the shares, the seconds, and where the tasks ran."""
    started = time.perf_counter()
    results = simulate.map(seeds).result()
    seconds = time.perf_counter() - started
    shares = ", ".join(f"{share:.4f}" for share, _ in results)
    same = {process for _, process in results} == {os.getpid()}
    print(f"{shares}: {seconds:.1f} s in {'this process' if same else 'other processes'}")


if __name__ == "__main__":
    # Threads take turns at running Python code. Processes don't, but take seconds to start.
    runners: list[TaskRunner[Any]] = [
        ThreadPoolTaskRunner(),  # for work that waits, and for NumPy and similar libraries
        ProcessPoolTaskRunner(max_workers=2),  # for minutes of computing in Python
    ]
    for runner in runners:
        simulation_flow.with_options(task_runner=runner)(SEEDS)
