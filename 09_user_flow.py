"""Serve a flow: a long-lived process that runs it whenever somebody asks.

Run:    python 09_user_flow.py                  (lessons 10, 11 and 12 trigger it)
        python 09_user_flow.py --interval 60    (and it also runs every 60 seconds)
Notice: it serves until you press Ctrl-C, on the server that you have had since lesson 01.
"""

import argparse
import re
import shlex
import sys
import time
from typing import Any

from prefect import Flow, flow, get_client, get_run_logger, task
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

USER_SECONDS = 1
LIMIT = 5  # flow runs at the same time, each a process; without it, all that are due
DEFAULT_API_URL = "http://127.0.0.1:4200/api"  # where lessons 10, 11 and 12 look

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
    """Exit with one clear line unless the server answers what Prefect's own client asks it."""
    try:
        with get_client(httpx_settings={"timeout": 10}, sync_client=True) as client:
            client.read_flows(limit=1)
            client.raise_for_api_version_mismatch()
    except PrefectHTTPStatusError as error:
        answer = " ".join(error.response.text.split())
        sys.exit(f"{api_url} answers {error.response.status_code}: {answer[:300]}")
    except Exception as error:  # noqa: BLE001 - no answer, or none that the client can read
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        start = f"prefect server start --background starts one at {DEFAULT_API_URL}"
        sys.exit(f"No Prefect server answers at {api_url} ({reason[:300]}); {start}")


def main(served: Flow[..., Any], name: str) -> None:
    """Serve the flow as FLOW/NAME on the server that Prefect's settings name, else the local."""
    parser = argparse.ArgumentParser(description=f"Serve {served.name}/{name}.")
    parser.add_argument("--interval", metavar="SECONDS", help="run it by itself, too")
    interval = parser.parse_args().interval
    if interval is not None and not re.fullmatch("[1-9][0-9]{0,7}", interval):
        sys.exit(f"--interval takes whole seconds, 1 to 99999999, not {interval!r}")
    seconds = int(interval) if interval else None
    api_url = PREFECT_API_URL.value() or DEFAULT_API_URL
    # Pinned, or every flow run would start a temporary server of its own.
    with temporary_settings({PREFECT_API_URL: api_url}):
        check_server(api_url)
        full_name = shlex.quote(f"{served.name}/{name}")
        print(f"Serving {full_name}, web page {PREFECT_UI_URL.value()}; in another terminal:")
        print(f"  export PREFECT_API_URL={api_url}")
        print(f"  python 11_get_deployment_id_by_name.py {full_name}")
        print("  python 10_trigger_deployment_by_id.py ID")
        print(f"  python 12_trigger_deployment_by_id_name_lookup.py {full_name}", flush=True)
        served.serve(name, interval=seconds, limit=LIMIT, print_starting_message=False)


if __name__ == "__main__":
    main(user_flow, "user-deployment")
