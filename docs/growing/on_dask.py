"""Lesson 08's flow on a Dask cluster of two processes on this machine.

Run:    python docs/growing/on_dask.py
Notice: the log names the cluster's address; the result is the one of threads.
"""

import importlib
import sys
from pathlib import Path

from prefect_dask.task_runners import DaskTaskRunner

sys.path.append(str(Path(__file__).parents[2]))  # the folder of the lessons
lesson = importlib.import_module("08_sync_async_retry_logger")

if __name__ == "__main__":
    cluster = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    flow = lesson.pipeline_flow.with_options(task_runner=DaskTaskRunner(cluster_kwargs=cluster))
    print(flow(102))
