"""Trigger a deployment by its id, as an application without Prefect does it: one POST.

Run:    python 10_trigger_deployment_by_id.py DEPLOYMENT_ID -p user_id=102
Notice: the answer comes at once: the flow run is scheduled, and whoever serves it runs it.
"""

import argparse
import json
import os
import sys
import uuid
from typing import Any

import requests

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
TIMEOUT_SECONDS = 10


def trigger_deployment(
    api_url: str, deployment_id: str, parameters: dict[str, Any]
) -> dict[str, Any]:
    """Schedule a run of the deployment with `parameters`; return the flow run, its id and name.

    Raises OSError if no Prefect API answers, or one in trouble or that wants credentials;
    LookupError if there is no such deployment; ValueError for parameters that it refuses.
    """
    response = requests.post(
        f"{api_url}/deployments/{deployment_id}/create_flow_run",
        json={"parameters": parameters},
        timeout=TIMEOUT_SECONDS,
        allow_redirects=False,
    )
    if response.status_code in (401, 403):
        raise PermissionError(f"{api_url} wants credentials; lesson 12 sends them")
    if response.is_redirect:
        raise ConnectionError(f"{api_url} redirects elsewhere: a login page, not a Prefect API?")
    if response.status_code >= 429:
        raise ConnectionError(f"{api_url} answers {response.status_code}: see its log or try later")
    try:
        answer = dict(response.json())
    except (TypeError, ValueError):
        answer = {}
    if answer in ({}, {"detail": "Not Found"}) or (response.ok and "id" not in answer):
        raise ConnectionError(f"{api_url} is not a Prefect API: its URL ends in /api")
    if response.status_code == 404:
        raise LookupError(f"There is no deployment with the id {deployment_id}")
    if not response.ok:
        raise ValueError(" ".join(str(answer.get("detail", answer)).split()))
    return answer


def parse_parameters(pairs: list[str]) -> dict[str, Any]:
    """Return KEY=VALUE pairs as parameters, each VALUE read as JSON if it is, else as text.

    Raises ValueError for a pair that is none, or whose key was there before.
    """
    parameters: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals or key in parameters:
            raise ValueError(f"-p takes KEY=VALUE, each KEY once, as user_id=102, not {pair!r}")
        try:
            parameters[key] = json.loads(value, parse_constant=str)
        except ValueError:
            parameters[key] = value
    return parameters


def main() -> None:
    """Read the command line, trigger, and print the flow run's id."""
    parser = argparse.ArgumentParser(description="Trigger a deployment by its id.")
    parser.add_argument("deployment_id", help="as lesson 11 prints it")
    parser.add_argument("-p", "--param", action="append", default=[], metavar="KEY=VALUE")
    default = os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL
    parser.add_argument("--api-url", default=default, help="default: PREFECT_API_URL, or port 4200")
    arguments = parser.parse_args()
    api_url = arguments.api_url.rstrip("/")
    if "@" in api_url:
        sys.exit("An API URL carries no credentials; lesson 12 sends PREFECT_API_AUTH_STRING")
    try:
        deployment_id = str(uuid.UUID(arguments.deployment_id))
    except ValueError:
        sys.exit(f"{arguments.deployment_id!r} is no deployment id (a UUID); lesson 11 finds it")
    try:
        flow_run = trigger_deployment(api_url, deployment_id, parse_parameters(arguments.param))
    except requests.RequestException as error:
        if isinstance(error, ValueError):  # what requests raises for a URL that is none
            sys.exit(f"{api_url!r} is no API URL; one looks like {DEFAULT_API_URL}")
        sys.exit(f"No answer from {api_url} ({type(error).__name__}): is a server up?")
    except (OSError, LookupError, ValueError) as error:
        sys.exit(str(error))
    print(f"Scheduled {flow_run['name']}", file=sys.stderr)
    print(f"{api_url.removesuffix('/api')}/runs/flow-run/{flow_run['id']}", file=sys.stderr)
    print(flow_run["id"])


if __name__ == "__main__":
    main()
