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
) -> dict[str, str]:
    """Schedule a run of the deployment with `parameters`; return the flow run's id and name.

    Raises requests.RequestException if no answer comes, ValueError if it is no flow run.
    """
    json.dumps(parameters, ensure_ascii=False).encode()  # raises if a text is not valid Unicode
    response = requests.post(
        f"{api_url}/deployments/{deployment_id}/create_flow_run",
        json={"parameters": parameters},
        timeout=TIMEOUT_SECONDS,
        allow_redirects=False,  # a POST that follows one becomes a GET
    )
    try:
        response.raise_for_status()
        flow_run = response.json()
        return {"id": flow_run["id"], "name": flow_run["name"]}
    except (requests.HTTPError, KeyError, TypeError, ValueError):
        said = response.headers.get("Location") or " ".join(response.text.split())[:300]
        if response.status_code == 401:
            said += "; lesson 12 sends credentials"
        if response.ok or "Not Found" in said:
            said += f"; an API URL looks like {DEFAULT_API_URL}"
        answer = f"{response.status_code} {response.reason}: {said}"
        raise ValueError(f"{api_url} answers {answer}") from None


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
        except (ValueError, RecursionError):
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
    api_url, deployment_id = arguments.api_url.rstrip("/"), arguments.deployment_id
    if "@" in api_url:
        sys.exit("An API URL carries no credentials; lesson 12 sends PREFECT_API_AUTH_STRING")
    if not re.fullmatch("[0-9a-fA-F-]{32,36}", deployment_id):
        sys.exit(f"{deployment_id!r} is no deployment id (a UUID); lesson 11 finds it")
    try:
        flow_run = trigger_deployment(api_url, deployment_id, parse_parameters(arguments.param))
    except requests.RequestException as error:
        cause: BaseException = error
        while cause.__context__:  # requests and urllib3 wrap what happened
            cause = cause.__context__
        sys.exit(f"No answer from {api_url} ({type(error).__name__}: {cause})")
    except UnicodeEncodeError as error:
        sys.exit(f"Not valid Unicode, and not sent: {error.object!r}")
    except ValueError as error:
        sys.exit(str(error))
    print(f"Scheduled {flow_run['name']}", file=sys.stderr)
    print(f"{api_url.removesuffix('/api')}/v2/runs/flow-run/{flow_run['id']}", file=sys.stderr)
    print(flow_run["id"])


if __name__ == "__main__":
    main()
