"""Find the id of a deployment by its name: one GET.

Run:    python 11_get_deployment_id_by_name.py user-flow/user-deployment
Notice: the id is all that goes to stdout, so a script can use it; ids change, names do not.
"""

import argparse
import os
import sys
from urllib.parse import quote

import requests

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
TIMEOUT_SECONDS = 10


def get_deployment_id(api_url: str, name: str) -> str:
    """Return the id of the deployment with this name, FLOW/DEPLOYMENT.

    Raises OSError if no Prefect API answers, or one in trouble or that wants credentials;
    LookupError if there is no such deployment; ValueError for a name of another form.
    """
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or ".." in parts or "." in parts:
        raise ValueError(f"A name is FLOW/DEPLOYMENT, as user-flow/user-deployment, not {name!r}")
    flow_name, deployment_name = (quote(part, safe="") for part in parts)
    response = requests.get(
        f"{api_url}/deployments/name/{flow_name}/{deployment_name}",
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
        raise LookupError(f"There is no deployment with the name {name!r}")
    if not response.ok:
        raise ValueError(" ".join(str(answer.get("detail", answer)).split()))
    return str(answer["id"])


def main() -> None:
    """Read the command line and print the deployment's id."""
    parser = argparse.ArgumentParser(description="Print the id of a deployment.")
    parser.add_argument("name", nargs="?", default="user-flow/user-deployment", metavar="NAME")
    default = os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL
    parser.add_argument("--api-url", default=default, help="default: PREFECT_API_URL, or port 4200")
    arguments = parser.parse_args()
    api_url = arguments.api_url.rstrip("/")
    if "@" in api_url:
        sys.exit("An API URL carries no credentials; lesson 12 sends PREFECT_API_AUTH_STRING")
    try:
        print(get_deployment_id(api_url, arguments.name))
    except requests.RequestException as error:
        if isinstance(error, ValueError):  # what requests raises for a URL that is none
            sys.exit(f"{api_url!r} is no API URL; one looks like {DEFAULT_API_URL}")
        sys.exit(f"No answer from {api_url} ({type(error).__name__}): is a server up?")
    except (OSError, LookupError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
