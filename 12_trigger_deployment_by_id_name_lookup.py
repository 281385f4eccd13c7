"""Trigger a deployment by its name, made for production: no trigger lost, none sent twice.

Run:    python 12_trigger_deployment_by_id_name_lookup.py user-flow/user-deployment --wait
Notice: the flow run's states go to stderr, its id to stdout, its outcome into the exit code.
"""

import argparse
import base64
import difflib
import json
import os
import sys
import time
import uuid
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
TIMEOUT_SECONDS = 10
POLL_SECONDS = 1
BACKOFF_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 8
JITTER_SECONDS = 2


def say(line: str) -> None:
    """Print `line` for people, to stderr: stdout is for programs."""
    print(line, file=sys.stderr)


def make_session(api_url: str) -> requests.Session:
    """Return a session with the credentials of the environment and a minute of patience.

    Raises ValueError for credentials in the URL, and for a PREFECT_API_KEY that is damaged.
    """
    login = os.environ.get("PREFECT_API_AUTH_STRING", "")
    key = os.environ.get("PREFECT_API_KEY", "").strip()
    if "@" in api_url:
        raise ValueError("An API URL carries no credentials: set PREFECT_API_AUTH_STRING")
    if not (key.isascii() and key.isprintable()):
        raise ValueError("PREFECT_API_KEY has characters that no key has: copy it again")
    local = urlsplit(api_url).hostname in ("127.0.0.1", "localhost", "::1")
    if (login or key) and api_url.startswith("http://") and not local:
        say("Warning: http:// sends the credentials unencrypted; use https://")
    basic = base64.b64encode(login.encode()).decode()
    retry = Retry(
        total=10,
        read=6,  # SQLite may keep a server from answering for a minute
        status_forcelist=(429, 502, 503, 504),
        allowed_methods=("GET", "POST"),  # the idempotency key makes a second POST safe
        backoff_factor=BACKOFF_SECONDS,
        backoff_jitter=JITTER_SECONDS,  # or all clients come back together, and collide again
        backoff_max=BACKOFF_MAX_SECONDS,
        retry_after_max=BACKOFF_MAX_SECONDS,  # urllib3 2.6.3 or newer
        raise_on_status=False,
    )
    session = requests.Session()
    session.auth = lambda request: request  # or a .netrc would be read
    if login or key:
        session.headers["Authorization"] = f"Basic {basic}" if login else f"Bearer {key}"
    session.mount("http://", HTTPAdapter(max_retries=retry))
    session.mount("https://", HTTPAdapter(max_retries=retry))
    session.mount(f"{api_url}/flow_run_states/", HTTPAdapter())  # waiting asks again anyway
    return session


def call_api(
    session: requests.Session, method: str, api_url: str, path: str, **options: Any
) -> tuple[int, Any]:
    """Return the status and the JSON of the API's answer, or raise an error of one clear line.

    ConnectionError: no answer, or none of a healthy Prefect API. PermissionError: credentials.
    LookupError: no such thing. ValueError: not a URL, or refused parameters.
    """
    options = {"timeout": TIMEOUT_SECONDS, "allow_redirects": False, **options}
    answer = None
    try:
        response = session.request(method, api_url + path, **options)
        answer = response.json()
    except requests.JSONDecodeError:
        pass  # what it is instead, the status tells
    except ValueError:  # what requests raises for a URL that is none is also a ValueError
        raise ValueError(f"{api_url!r} is no API URL; one looks like {DEFAULT_API_URL}") from None
    except requests.RequestException as error:
        reason = type(error).__name__
        raise ConnectionError(f"No answer from {api_url} ({reason}): is a server up?") from None
    status = response.status_code
    if status in (401, 403):
        wanted = "set PREFECT_API_KEY or PREFECT_API_AUTH_STRING"
        raise PermissionError(f"{api_url} wants other credentials: {wanted}")
    if response.is_redirect:
        raise ConnectionError(f"{api_url} redirects elsewhere: a login page, not a Prefect API?")
    if status >= 429:
        raise ConnectionError(f"{api_url} answers {status}: see its log, or try later")
    known = isinstance(answer, list) or (isinstance(answer, dict) and "id" in answer)
    if answer in (None, {"detail": "Not Found"}) or (response.ok and not known):
        raise ConnectionError(f"{api_url} is not a Prefect API: its URL ends in /api")
    if status == 404:
        raise LookupError(f"{api_url} has no {path}")
    if not response.ok:
        detail = answer.get("detail") if isinstance(answer, dict) else None
        raise ValueError(" ".join(str(detail or answer).split()))
    return status, answer


def get_deployment(session: requests.Session, api_url: str, name: str) -> dict[str, Any]:
    """Return the deployment with this name, FLOW/DEPLOYMENT: id, status, parameter schema, ...

    Raises ValueError for another form, LookupError with near names, else what `call_api` raises.
    """
    parts = name.split("/")
    if len(parts) != 2 or {"", ".", ".."} & set(parts):
        raise ValueError(f"A name is FLOW/DEPLOYMENT, as user-flow/user-deployment, not {name!r}")
    path = "/deployments/name/" + "/".join(quote(part, safe="") for part in parts)
    try:
        return dict(call_api(session, "GET", api_url, path)[1])
    except LookupError:
        flows = call_api(session, "POST", api_url, "/flows/filter", json={})[1]
        flow_names = {flow["id"]: flow["name"] for flow in flows}
        others = call_api(session, "POST", api_url, "/deployments/filter", json={})[1]
        names = [f"{flow_names.get(other['flow_id'])}/{other['name']}" for other in others]
        near = " or ".join(difflib.get_close_matches(name, names)) or "`prefect deployment ls`"
        raise LookupError(f"There is no deployment with the name {name!r}; see {near}") from None


def trigger_deployment(
    session: requests.Session,
    api_url: str,
    deployment: dict[str, Any],
    parameters: dict[str, Any],
    idempotency_key: str,
) -> tuple[dict[str, Any], bool]:
    """Schedule a run, once for each key; return the flow run, and whether it is a new one.

    Raises ValueError for a parameter that the flow does not have, else what `call_api` raises.
    """
    accepted = list(deployment["parameter_openapi_schema"].get("properties", parameters))
    for name in set(parameters).difference(accepted):  # the API takes it, and the run crashes
        near = difflib.get_close_matches(name, accepted, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"There is no parameter {name!r}; {hint}The flow accepts {accepted}")
    path = f"/deployments/{deployment['id']}/create_flow_run"
    body = {"parameters": parameters, "idempotency_key": idempotency_key}
    try:
        status, flow_run = call_api(session, "POST", api_url, path, json=body)
    except ConnectionError as error:
        raise ConnectionError(f"{error} Then add --idempotency-key {idempotency_key}") from None
    return flow_run, status == 201


def wait_for_flow_run(
    session: requests.Session, api_url: str, flow_run_id: str, timeout: float
) -> dict[str, Any]:
    """Print every state of the flow run to stderr, with its time (UTC), and return the last one.

    Raises TimeoutError after `timeout` seconds, LookupError if the run was deleted, else what
    `call_api` raises. A server that does not answer is waited for.
    """
    path = f"/flow_run_states/?flow_run_id={flow_run_id}"
    deadline = time.monotonic() + timeout
    seen = 0
    while (left := deadline - time.monotonic()) > 0:
        try:
            states = call_api(session, "GET", api_url, path, timeout=min(left, TIMEOUT_SECONDS))[1]
            if not states:
                raise LookupError(f"The flow run {flow_run_id} was deleted")
            for state in states[seen:]:
                say(f"{state['timestamp'][11:19]} {state['name']}")
            seen = len(states)
            if states[-1]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return dict(states[-1])
        except ConnectionError:
            pass  # the server is restarting, perhaps
        time.sleep(min(POLL_SECONDS, max(0, deadline - time.monotonic())))
    raise TimeoutError(f"The flow run {flow_run_id} goes on after {timeout:g} s")


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
    """Read the command line, look up, trigger, and wait if asked to."""
    parser = argparse.ArgumentParser(description="Trigger a deployment by its name.")
    parser.add_argument("name", nargs="?", default="user-flow/user-deployment", metavar="NAME")
    parser.add_argument("-p", "--param", action="append", default=[], metavar="KEY=VALUE")
    default = os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL
    parser.add_argument("--api-url", default=default, help="default: PREFECT_API_URL, or port 4200")
    parser.add_argument("--idempotency-key", metavar="KEY", help="trigger once for each KEY")
    parser.add_argument("--wait", action="store_true", help="exit 0 only if the run completes")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="default 300")
    arguments = parser.parse_args()
    api_url = arguments.api_url.rstrip("/")
    key = arguments.idempotency_key or str(uuid.uuid4())
    flow_run = None
    try:
        session = make_session(api_url)
        parameters = parse_parameters(arguments.param)
        deployment = get_deployment(session, api_url, arguments.name)
        if deployment["paused"] or deployment["status"] != "READY":
            say(f"Nothing serves {arguments.name} now: the flow run waits until something does")
        flow_run, is_new = trigger_deployment(session, api_url, deployment, parameters, key)
        again = arguments.idempotency_key and not is_new
        say(f"{'Already scheduled under this key' if again else 'Scheduled'}: {flow_run['name']}")
        say(f"{api_url.removesuffix('/api')}/runs/flow-run/{flow_run['id']}")
        print(flow_run["id"], flush=True)
        if arguments.wait:
            state = wait_for_flow_run(session, api_url, flow_run["id"], arguments.timeout)
            if state["type"] != "COMPLETED":
                sys.exit(f"{state['name']}: {' '.join(str(state['message']).split())}")
    except KeyboardInterrupt:
        say("Interrupted; the flow run goes on" if flow_run else f"Interrupted; its key is {key}")
        sys.exit(130)
    except (OSError, LookupError, ValueError) as error:
        say(str(error))
        sys.exit(3 if isinstance(error, TimeoutError) else 1)


if __name__ == "__main__":
    main()
