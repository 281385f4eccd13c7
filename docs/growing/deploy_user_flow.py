"""Deploy the flow of lesson 09 to the work pool "team".

Run:    prefect work-pool create team --type process      (once)
        python docs/growing/deploy_user_flow.py
Notice: the program ends at once, because it does not serve: workers run what is triggered.
"""

from pathlib import Path

from prefect import Flow, flow

# Every worker must find the lesson under this path.
LESSONS = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    user_flow = flow.from_source(source=str(LESSONS), entrypoint="09_user_flow.py:user_flow")
    assert isinstance(user_flow, Flow)  # in asynchronous code it would be a coroutine
    user_flow.deploy("user-deployment", work_pool_name="team", ignore_warnings=True)
