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

    Raises requests.RequestException if no answer comes, ValueError for any other answer.
    """
    parts = name.split("/")
    if len(parts) != 2 or {"", ".", ".."} & set(parts):
        raise ValueError(f"A name is FLOW/DEPLOYMENT, as user-flow/user-deployment, not {name!r}")
    flow_name, deployment_name = (quote(part, safe="") for part in parts)
    response = requests.get(
        f"{api_url}/deployments/name/{flow_name}/{deployment_name}",
        timeout=TIMEOUT_SECONDS,
        allow_redirects=False,  # to a login page, for example
    )
    if response.status_code != 200 or '"id"' not in response.text:
        hint = " (lesson 12 sends credentials)" if response.status_code == 401 else ""
        words = response.headers.get("Location") or response.text[:300]
        raise ValueError(f"{api_url} answers {response.status_code}: {words}{hint}")
    return str(response.json()["id"])


def main() -> None:
    """Read the command line and print the deployment's id."""
    parser = argparse.ArgumentParser(description="Print the id of a deployment.")
    parser.add_argument("name", nargs="?", default="user-flow/user-deployment", metavar="NAME")
    default = os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL
    parser.add_argument("--api-url", default=default, help="default: PREFECT_API_URL, or port 4200")
    arguments = parser.parse_args()
    try:
        if "@" in arguments.api_url:
            raise ValueError("An API URL carries no credentials; lesson 12 sends them")
        print(get_deployment_id(arguments.api_url.rstrip("/"), arguments.name))
    except (requests.RequestException, LookupError, TypeError, ValueError) as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
