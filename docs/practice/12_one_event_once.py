"""Who is about to leave? Cron asks for each user every night, and after a power cut it asked twice.

Run:   python docs/practice/12_one_event_once.py    (while lesson 09 is serving)
Now:   a second request for the same user and night schedules another flow run.
Goal:  one flow run for each user and night, even if the program is started again in between.
"""

import os
import sys

import requests

DEFAULT_API_URL = "http://127.0.0.1:4200/api"


def trigger(user_id: int, night: str) -> str:
    """Schedule user-flow/user-deployment for the user; return the flow run's id.

    Raises requests.RequestException if the server is unreachable or returns an error.
    """
    api_url = os.environ.get("PREFECT_API_URL", DEFAULT_API_URL)
    name = "user-flow/user-deployment"
    answer = requests.get(f"{api_url}/deployments/name/{name}", timeout=10)
    answer.raise_for_status()
    answer = requests.post(
        f"{api_url}/deployments/{answer.json()['id']}/create_flow_run",
        json={"parameters": {"user_id": user_id}},
        timeout=10,
    )
    answer.raise_for_status()
    return str(answer.json()["id"])


if __name__ == "__main__":
    try:
        print(trigger(101, "2026-01-31"))
        print(trigger(101, "2026-01-31"))
    except requests.RequestException as error:
        sys.exit(f"error: cannot trigger ({error}). Start the server and lesson 09.")
