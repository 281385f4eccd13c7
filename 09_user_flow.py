"""Serve a flow: a long-lived process that runs it whenever somebody asks.

Run:    python 09_user_flow.py                  (lessons 10, 11 and 12 trigger it)
        python 09_user_flow.py --interval 60    (and it also runs every 60 seconds)
Notice: it starts a Prefect server unless one is running, and ends when you press Ctrl-C.
"""

import argparse
import logging
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import requests
from prefect import flow, get_client, get_run_logger, task
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

NAME = "user-deployment"
USER_SECONDS = 1
SERVER_START_SECONDS = 60
LIMIT = 5  # flow runs at the same time, each a process; without it, all that are due
LOCAL_API_URL = "http://127.0.0.1:4200/api"
NEXT = """Next, in another terminal:
  python 11_get_deployment_id_by_name.py
  python 10_trigger_deployment_by_id.py "$(python 11_get_deployment_id_by_name.py)"
  python 12_trigger_deployment_by_id_name_lookup.py"""

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


def is_prefect(api_url: str) -> bool:
    """Return whether a Prefect server answers at `api_url`, if only to ask for credentials."""
    try:
        response = requests.get(f"{api_url}/health", timeout=10)
        return response.status_code in (401, 403) or response.json() is True
    except requests.RequestException:
        return False


@contextmanager
def running_server(api_url: str) -> Iterator[None]:
    """Use the server at `api_url`, else run one at port 4200 during the block, else exit."""
    if is_prefect(api_url):
        yield
        return
    if PREFECT_API_URL.value():
        sys.exit(f"No Prefect server at {api_url}: start one, or unset PREFECT_API_URL")
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host=127.0.0.1", "--port=4200"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Out of reach of Ctrl-C: the deployment is paused before the server stops.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    try:
        deadline = time.monotonic() + SERVER_START_SECONDS
        while not is_prefect(api_url):
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("No server on port 4200: is it taken, or slow? See: prefect server start")
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait()


def finish(api_url: str) -> None:
    """Pause the deployment and wait for its runs: with one under way `.serve()` does not always."""
    if not is_prefect(api_url):
        sys.exit(f"The server at {api_url} has gone away: user-flow/{NAME} is not paused")
    with suppress(ObjectNotFound), get_client(sync_client=True) as client:
        client.pause_deployment(client.read_deployment_by_name(f"user-flow/{NAME}").id)
    for flow_run in multiprocessing.active_children():
        flow_run.join()


def main() -> None:
    """Serve on the configured server, else on the one at port 4200, else on one of our own."""
    parser = argparse.ArgumentParser(description="Serve user_flow as user-flow/user-deployment.")
    parser.add_argument("--interval", metavar="SECONDS", help="run it by itself, too")
    text = parser.parse_args().interval
    if text is not None and not re.fullmatch("[1-9][0-9]{0,7}", text):
        sys.exit(f"--interval takes a whole number of seconds, such as 60, not {text!r}")
    interval = int(text) if text else None
    for name in ("SIGTERM", "SIGHUP"):  # both end it as Ctrl-C does; Windows has no SIGHUP
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_DFL:
            signal.signal(getattr(signal, name), signal.default_int_handler)
    # Where the end interrupts Prefect's own work, asyncio would log that as an error.
    logging.getLogger("asyncio").addFilter(lambda it: "asyncio.run() shutdown" not in it.msg)
    api_url = PREFECT_API_URL.value() or LOCAL_API_URL
    try:
        # Pinned, or every flow run would start a temporary server of its own.
        with running_server(api_url), temporary_settings({PREFECT_API_URL: api_url}):
            print(f"Serving user-flow/{NAME} at {api_url}, web page {PREFECT_UI_URL.value()}")
            print(NEXT, flush=True)
            try:
                user_flow.serve(NAME, interval=interval, limit=LIMIT, print_starting_message=False)
            finally:  # Ctrl-C ends it as usual, SIGTERM with SystemExit
                finish(api_url)
    except KeyboardInterrupt:
        pass
    except PrefectHTTPStatusError as error:
        sys.exit(f"The server at {api_url} refused: {error.response.status_code}")


if __name__ == "__main__":
    main()
