"""Serve a flow: a long-lived process that runs it whenever somebody asks.

Run:    python 09_user_flow.py    (add --interval 60, and it also runs every 60 seconds)
Notice: it serves until you press Ctrl-C. Lessons 10 and 12 trigger it.
"""

import argparse
import time
from typing import Any

from prefect import flow, get_client, get_run_logger, task
from prefect.settings import PREFECT_API_URL, temporary_settings

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
USER_SECONDS = 1

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}


@task
def fetch_user_info(user_id: int) -> dict[str, Any]:
    """Return the user's id and name; raise LookupError if there is no such user."""
    time.sleep(USER_SECONDS)
    if user_id not in USERS:
        raise LookupError(f"no user {user_id}")
    return {"user_id": user_id, "name": USERS[user_id]}


@flow
def user_flow(user_id: int = 101) -> dict[str, Any]:
    """Return the user's id and name; raise LookupError if there is no such user."""
    user = fetch_user_info(user_id)
    get_run_logger().info("User %s is %s", user_id, user["name"])
    return user


def check_server(api_url: str) -> None:
    """Exit with one line unless a Prefect server accepts a request at the URL."""
    try:
        with get_client(httpx_settings={"timeout": 10}, sync_client=True) as client:
            client.read_flows(limit=1)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one line
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        advice = "Check PREFECT_API_URL, its server and your credentials."
        if api_url == DEFAULT_API_URL and cause.startswith("ConnectError"):
            advice = "Start a server: prefect server start --background"
        raise SystemExit(f"error: no usable Prefect API at {api_url} ({cause}). {advice}") from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve user-flow/user-deployment.")
    parser.add_argument("--interval", type=int, metavar="SECONDS", help="also run it by itself")
    interval = parser.parse_args().interval
    if interval is not None and not 1 <= interval <= 10_000_000:
        parser.error(f"argument --interval: expected 1 to 10000000 seconds, got {interval}")
    api_url = PREFECT_API_URL.value() or DEFAULT_API_URL
    with temporary_settings({PREFECT_API_URL: api_url}):  # or each run would start a server
        check_server(api_url)
        user_flow.serve("user-deployment", interval=interval, limit=5)  # runs at a time
