"""Trigger a deployment by its id, as an application without Prefect does it: one POST.

Run:    python 10_trigger_deployment_by_id.py DEPLOYMENT_ID -p user_id=102
Notice: the answer comes at once: the flow run is scheduled, and whoever serves it runs it.
"""

import argparse
import json
import os
import re
import sys
from typing import Any

import requests

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
TIMEOUT_SECONDS = 10


def trigger_deployment(
    api_url: str, deployment_id: str, parameters: dict[str, Any]
) -> tuple[str, str]:
    """Schedule a run of the deployment with `parameters`; return the flow run's id and name.

    Raises requests.RequestException if no answer comes, ValueError for any other answer.
    """
    json.dumps(parameters, ensure_ascii=False).encode()  # raises if a text is not valid Unicode
    response = requests.post(
        f"{api_url}/deployments/{deployment_id}/create_flow_run",
        json={"parameters": parameters},
        timeout=TIMEOUT_SECONDS,
        allow_redirects=False,  # a POST that follows one becomes a GET
    )
    if response.status_code != 201 or '"id"' not in response.text:
        hint = " (lesson 12 sends credentials)" if response.status_code == 401 else ""
        words = response.headers.get("Location") or response.text[:300]
        raise ValueError(f"{api_url} answers {response.status_code}: {words}{hint}")
    flow_run = response.json()
    return flow_run["id"], flow_run["name"]


def parse_parameters(pairs: list[str]) -> dict[str, Any]:
    """Return KEY=VALUE pairs as parameters, each VALUE read as JSON if it is, else as text."""
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
    try:
        if "@" in api_url:
            raise ValueError("An API URL carries no credentials; lesson 12 sends them")
        if not re.fullmatch("[0-9a-fA-F-]{36}", arguments.deployment_id):
            raise ValueError(f"{arguments.deployment_id!r} is no deployment id; lesson 11 finds it")
        parameters = parse_parameters(arguments.param)
        flow_run_id, name = trigger_deployment(api_url, arguments.deployment_id, parameters)
    except (requests.RequestException, LookupError, TypeError, ValueError, RecursionError) as error:
        sys.exit(" ".join(str(error).split()))
    print(f"Scheduled {name}", file=sys.stderr)
    print(f"{api_url.removesuffix('/api')}/v2/runs/flow-run/{flow_run_id}", file=sys.stderr)
    print(flow_run_id)


if __name__ == "__main__":
    main()
