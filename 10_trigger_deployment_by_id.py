"""Trigger a deployment by its id, as an application without Prefect does it: one POST.

Run:    python 10_trigger_deployment_by_id.py DEPLOYMENT_ID -p user_id=102
Notice: the answer comes at once: the flow run is scheduled, and a serving process runs it.
"""

import argparse
import json
import os
from contextlib import suppress
from uuid import UUID

import requests

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
TIMEOUT_SECONDS = 10


def trigger_deployment(api_url: str, deployment_id: UUID, parameters: dict[str, object]) -> str:
    """Schedule a run of the deployment with `parameters`; return the flow run's id.

    Raises requests.RequestException if no answer comes, LookupError for an answer without an id.
    """
    url, body = f"{api_url}/deployments/{deployment_id}/create_flow_run", {"parameters": parameters}
    # Don't follow a redirect: it would turn the POST into a GET.
    response = requests.post(url, json=body, timeout=TIMEOUT_SECONDS, allow_redirects=False)
    if response.status_code == 201:
        with suppress(ValueError, LookupError, TypeError):
            return str(response.json()["id"])
    words = " ".join(response.headers.get("Location", response.text).split())[:300]
    raise LookupError(f"{url} returned {response.status_code} ({words})")


def parse_parameter(text: str) -> tuple[str, object]:
    """Return KEY=VALUE as a pair; VALUE is read as JSON if it is JSON, else as text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, as in user_id=102")
    with suppress(ValueError, RecursionError):
        value = json.loads(value, parse_constant=str)
    json.dumps([key, value], allow_nan=False, ensure_ascii=False).encode()  # or ValueError
    return key, value


def main() -> None:
    """Read the command line, trigger, and print the flow run's id."""
    parser = argparse.ArgumentParser(description="Trigger a deployment by its id.")
    add = parser.add_argument
    add("deployment_id", type=UUID)
    add("-p", "--param", type=parse_parameter, action="append", default=[], metavar="KEY=VALUE")
    add("--api-url", default=os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL)
    arguments = parser.parse_args()
    api_url, parameters = arguments.api_url.rstrip("/"), dict(arguments.param)
    if len(parameters) < len(arguments.param):
        parser.error("-p has the same KEY twice. Give each KEY once.")
    if "@" in api_url:
        parser.error("the API URL contains credentials, which are not sent. Leave them out.")
    try:
        flow_run_id = trigger_deployment(api_url, arguments.deployment_id, parameters)
    except requests.RequestException as error:
        reason = str(error).rpartition(": ")[2].rstrip("\"')")
        hint = "Start one with: prefect server start --background (or check --api-url)"
        raise SystemExit(f"error: no Prefect server at {api_url} ({reason}). {hint}") from None
    except LookupError as error:
        raise SystemExit(f"error: {error}. Check the id, the parameters, the URL.") from None
    print(flow_run_id)


if __name__ == "__main__":
    main()
