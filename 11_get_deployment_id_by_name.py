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

    Raises requests.RequestException if no answer comes, ValueError if it is no deployment.
    """
    parts = name.split("/")
    if len(parts) != 2 or {"", ".", ".."} & set(parts):
        raise ValueError(f"A name is FLOW/DEPLOYMENT, as user-flow/user-deployment, not {name!r}")
    response = requests.get(
        f"{api_url}/deployments/name/" + "/".join(quote(part, safe="") for part in parts),
        timeout=TIMEOUT_SECONDS,
        allow_redirects=False,  # to a login page, for example
    )
    try:
        response.raise_for_status()
        return str(response.json()["id"])
    except (requests.HTTPError, KeyError, TypeError, ValueError):
        said = response.headers.get("Location") or " ".join(response.text.split())[:300]
        if response.status_code == 401:
            said += "; lesson 12 sends credentials"
        if response.ok or "Not Found" in said:
            said += f"; an API URL looks like {DEFAULT_API_URL}"
        answer = f"{response.status_code} {response.reason}: {said}"
        raise ValueError(f"{api_url} answers {answer}") from None


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
        cause: BaseException = error
        while cause.__context__:  # requests and urllib3 wrap what happened
            cause = cause.__context__
        sys.exit(f"No answer from {api_url} ({type(error).__name__}: {cause})")
    except UnicodeEncodeError as error:
        sys.exit(f"Not valid Unicode, and not sent: {error.object!r}")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
