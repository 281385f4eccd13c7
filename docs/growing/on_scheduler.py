"""Lesson 08's flow on a Dask scheduler that runs already.

Run:    python docs/growing/on_scheduler.py                       (at tcp://127.0.0.1:8786)
        python docs/growing/on_scheduler.py tcp://ADDRESS:PORT
Notice: the log names that address; no cluster is started, and none is stopped.
"""

import importlib
import sys
from pathlib import Path

from prefect_dask.task_runners import DaskTaskRunner

sys.path.append(str(Path(__file__).parents[2]))  # the folder of the lessons
lesson = importlib.import_module("08_sync_async_retry_logger")

if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:8786"
    runner = DaskTaskRunner(address=address)
    print(lesson.pipeline_flow.with_options(task_runner=runner)(102))
