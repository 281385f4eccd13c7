"""Run the flow of lesson 08 on Dask: on a local cluster, or on a scheduler that is running.

Run:    python docs/growing/on_dask.py                       (starts a cluster of two processes)
        python docs/growing/on_dask.py tcp://ADDRESS:PORT    (uses the scheduler at that address)
Notice: a log record names the cluster; the result is the same as with threads.
"""

import importlib
import sys
from pathlib import Path

from prefect_dask.task_runners import DaskTaskRunner

sys.path.append(str(Path(__file__).parents[2]))  # the folder of the lessons
lesson = importlib.import_module("08_sync_async_retry_logger")

if __name__ == "__main__":  # each new process imports this file, but must not run the flow
    if len(sys.argv) > 1:
        runner = DaskTaskRunner(address=sys.argv[1])
    else:
        runner = DaskTaskRunner(cluster_kwargs={"n_workers": 2, "threads_per_worker": 1})
    print(lesson.pipeline_flow.with_options(task_runner=runner)(102))
