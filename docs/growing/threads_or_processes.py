"""Work that computes: four simulations, with threads and then with processes.

Run:    python docs/growing/threads_or_processes.py
Notice: the shares are the same; the processes are faster if there is a core for each.
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
    """Let each user leave or stay by chance; return the share that left and the process's id."""
    draw = random.Random(seed).random
    left = sum(draw() < CHURN for _ in range(USERS))
    return left / USERS, os.getpid()


@flow
def simulation_flow(seeds: list[int]) -> None:
    """Print the shares, the time, and how many processes took part."""
    started = time.perf_counter()
    results = simulate.map(seeds).result()
    seconds = time.perf_counter() - started
    shares = ", ".join(f"{share:.4f}" for share, _ in results)
    others = len({process for _, process in results} - {os.getpid()})
    print(f"{shares}: {seconds:.1f} s, {others} worker process(es)")


if __name__ == "__main__":
    runners: list[TaskRunner[Any]] = [ThreadPoolTaskRunner(), ProcessPoolTaskRunner(max_workers=2)]
    for runner in runners:
        simulation_flow.with_options(task_runner=runner)(SEEDS)
