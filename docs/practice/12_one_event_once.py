"""Who is about to leave? Cron asks for each user every night, and after a power cut it asked twice.

Run:   python docs/practice/12_one_event_once.py    (while lesson 09 is serving)
Now:   a second request for the same user and night schedules another flow run.
Goal:  one flow run for each user and night, even if the exercise is started again in between.
"""

import os
import sys

import requests

API_URL = os.environ.get("PREFECT_API_URL", "http://127.0.0.1:4200/api")


def trigger(user_id: int, night: str) -> str:
    """Schedule user-flow/user-deployment for the user; return the flow run's id.

    Raises requests.RequestException if the server is unreachable or returns an error.
    """
    name = "user-flow/user-deployment"
    answer = requests.get(f"{API_URL}/deployments/name/{name}", timeout=10)
    answer.raise_for_status()
    answer = requests.post(
        f"{API_URL}/deployments/{answer.json()['id']}/create_flow_run",
        json={"parameters": {"user_id": user_id}},
        timeout=10,
    )
    answer.raise_for_status()
    return str(answer.json()["id"])


if __name__ == "__main__":
    try:
        print(trigger(101, "2026-01-31"))
        print(trigger(101, "2026-01-31"))
    except requests.ConnectionError:
        sys.exit(f"error: no server at {API_URL}. Start it: prefect server start --background")
    except requests.RequestException as error:
        sys.exit(f"error: cannot trigger ({error}). Start lesson 09: python 09_user_flow.py")
