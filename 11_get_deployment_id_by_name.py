"""Find the id of a deployment by its name: one GET.

Run:    python 11_get_deployment_id_by_name.py user-flow/user-deployment
Notice: the id is all that goes to stdout, so a script can use it; ids change, names do not.
"""

import argparse
import os
from contextlib import suppress
from urllib.parse import quote

import requests

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
TIMEOUT_SECONDS = 10


def get_deployment_id(api_url: str, name: str) -> str:
    """Return the id of the deployment FLOW/DEPLOYMENT; raise LookupError if the answer has none."""
    url = f"{api_url}/deployments/name/{quote(name)}"
    response = requests.get(url, timeout=TIMEOUT_SECONDS, allow_redirects=False)
    if response.status_code == 200:
        with suppress(ValueError, LookupError, TypeError):
            return str(response.json()["id"])
    words = " ".join(response.headers.get("Location", response.text).split())[:300]
    raise LookupError(f"{url} returned {response.status_code} ({words})")


def main() -> None:
    """Read the command line and print the deployment's id."""
    parser = argparse.ArgumentParser(description="Print the id of a deployment.")
    parser.add_argument("name", nargs="?", default="user-flow/user-deployment")
    parser.add_argument("--api-url", default=os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL)
    name, api_url = vars(parser.parse_args()).values()
    if name.count("/") != 1 or {"", ".", ".."} & {*name.split("/")} or not name.isprintable():
        parser.error(f"{name!r} is not a deployment's name. Write FLOW/DEPLOYMENT.")
    if "@" in api_url:
        parser.error("the API URL contains credentials, which are not sent. Leave them out.")
    try:
        print(get_deployment_id(api_url.rstrip("/"), name))
    except requests.RequestException as error:
        reason = str(error).rpartition(": ")[2].rstrip("\"')")
        hint = "Start one with: prefect server start --background (or check --api-url)"
        raise SystemExit(f"error: no Prefect server at {api_url} ({reason}). {hint}") from None
    except LookupError as error:
        raise SystemExit(f"error: {error}. Check the name and the API URL.") from None


if __name__ == "__main__":
    main()
