"""Trigger a deployment by its name: no trigger is lost, none is sent twice.

Run:    python trigger.py churn-flow/nightly --wait
Notice: the flow run's id goes to stdout, all else to stderr. The exit code is the outcome:
0   Triggered, and with --wait, the run is Completed.
1   The run ended in another state.
2   Refused, and nothing was triggered (usage, name, parameter, key of another event).
3   Timed out: the run goes on.
4   No usable answer from the API: the line says if the run may exist.
130 Interrupted.
"""

import argparse
import base64
import difflib
import json
import logging
import os
import random
import socket
import ssl
import time
import uuid
from contextlib import suppress
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import quote

import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH

DEFAULT_NAME = "churn-flow/nightly"
DEFAULT_API_URL = "http://127.0.0.1:4200/api"
TIMEOUT_SECONDS = 300  # for everything: look up, trigger, wait
REQUEST_SECONDS = 30  # for one answer
BACKOFF_SECONDS, BACKOFF_MAX_SECONDS = 0.2, 8  # doubled with each attempt
POLL_SECONDS = 1
TRANSIENT = {408, 425, 429, 500, 502, 503, 504, *range(520, 525)}  # 503: SQLite is busy
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

Json = dict[str, Any]
logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())  # silent, unless the program that imports us logs


def trigger(
    name: str,
    parameters: Json | None = None,
    *,
    idempotency_key: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
    api_url: str | None = None,
) -> Json:
    """Schedule a run of the deployment FLOW/DEPLOYMENT; return the flow run as the API shows it.

    With the same `idempotency_key`, a flow gets one run, however often you ask. Without a key, each
    call creates another run.
    Raises ValueError or LookupError (unknown name) if it is refused: nothing was triggered. Raises
    PermissionError for the credentials, ConnectionError if no usable answer comes in `timeout`
    seconds. If the message says that the run may exist, ask again with the same key.
    """
    deadline = time.monotonic() + timeout
    parameters = parameters or {}
    key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
    check_arguments(name, parameters, key)
    deployment = ask(api_url, "GET", f"/deployments/name/{quote(name)}", deadline)
    check_parameter_names(parameters, deployment)
    path = f"/deployments/{deployment['id']}/create_flow_run"
    body = {"parameters": parameters, "idempotency_key": key}  # the same in every attempt
    try:
        flow_run = ask(api_url, "POST", path, deadline, body)
    except OSError as error:
        raise type(error)(f"{error} The run may exist: ask again with the key {key!r}.") from None
    check_flow_run(flow_run, deployment, parameters, key)
    if deployment.get("status") == "NOT_READY":
        logger.warning("warning: %s is NOT_READY: nothing polls for its runs now.", name)
    return flow_run


def wait_for_flow_run(flow_run: Json, timeout: float, api_url: str | None = None) -> Json:
    """Return the flow run of `trigger` when it has ended; log each new state.

    Raises TimeoutError if it goes on after `timeout` seconds, or ConnectionError if the API does
    not give a usable answer.
    """
    deadline = time.monotonic() + timeout
    path, state = f"/flow_runs/{flow_run['id']}", flow_run["state"]
    while state["type"] not in ENDS:
        left = deadline - time.monotonic()
        if left <= 0:
            hint = "Is it served?" if state["type"] == "SCHEDULED" else "Wait longer."
            raise TimeoutError(f"{flow_run['name']} goes on ({state['name']}). {hint}")
        time.sleep(min(POLL_SECONDS, left))
        try:
            flow_run = ask(api_url, "GET", path, deadline)
        except (OSError, LookupError, ValueError) as error:
            raise ConnectionError(f"{error} The flow run exists: {flow_run['id']}.") from None
        if flow_run["state"]["name"] != state["name"]:
            logger.info("%s is %s", flow_run["name"], flow_run["state"]["name"])
        state = flow_run["state"]
    return flow_run


def check_arguments(name: str, parameters: Json, key: str) -> None:
    """Raise ValueError, naming the argument, if something cannot be sent as JSON."""
    if name.count("/") != 1 or {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"{name!r} is not a deployment's name. Write FLOW/DEPLOYMENT.")
    if not key:
        raise ValueError("the idempotency key is empty (''). Name the event, or leave it out.")
    for argument, value in {"name": name, "idempotency_key": key, **parameters}.items():
        try:
            json.dumps({argument: value}, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{argument!r} is not valid JSON ({error}). Correct it.") from None


def check_parameter_names(parameters: Json, deployment: Json) -> None:
    """Raise ValueError for parameters that the flow doesn't have: with them, its run crashes."""
    schema = deployment.get("parameter_openapi_schema") or {}
    accepted = list(schema.get("properties", parameters))  # without a schema, accept every name
    unknown = []
    for name in parameters.keys() - accepted:
        near = difflib.get_close_matches(str(name), accepted, n=1)
        unknown.append(f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name))
    if unknown:
        raise ValueError(f"no parameter {', '.join(sorted(unknown))}. The flow has {accepted}.")


def check_flow_run(flow_run: Json, deployment: Json, parameters: Json, key: str) -> None:
    """Raise ValueError if the key belongs to a run of another deployment or other parameters."""
    expected = {**(deployment.get("parameters") or {}), **parameters}  # the server adds defaults
    found = dict(flow_run.get("parameters") or {})
    for name, value in expected.items():
        if '"__prefect_kind":' in json.dumps(value):  # a template, which the server fills in
            found[name] = value
    is_ours = flow_run.get("deployment_id") == deployment["id"]
    if not is_ours or exact(found) != exact(expected):
        other = "other parameters" if is_ours else "another deployment"
        problem = f"the key {key!r} was used before, for {other} (flow run {flow_run['id']})"
        raise ValueError(f"{problem}. Give each event its own key.")


def exact(value: Any) -> Any:
    """Return the JSON value with exact numbers: 6e23 is what it says, and 1 is not True."""

    def number(text: str) -> tuple[Decimal]:
        return (Decimal(text),)  # 6e23 is 600000000000000000000000, as PostgreSQL returns it

    return json.loads(json.dumps(value), parse_int=number, parse_float=number)


class TransientError(Exception):
    """A problem that may go away, and how many seconds the server asks us to wait."""


def ask(
    api_url: str | None, method: str, path: str, deadline: float, body: Json | None = None
) -> Json:
    """Send a request until it is answered, or time.monotonic() reaches the deadline."""
    attempt, backoff = 1, BACKOFF_SECONDS
    while True:
        try:
            return send(api_url, method, path, deadline - time.monotonic(), body)
        except TransientError as error:
            problem, retry_after = error.args
        left = deadline - time.monotonic()
        if left <= 0:
            raise ConnectionError(problem)
        if attempt == 2:  # the first retry has not helped either
            logger.warning("warning: %s Retrying for up to %.0f s.", problem, left)
        pause = random.uniform(0, backoff)  # random, so that not all clients retry at once
        time.sleep(min(max(pause, retry_after), left))
        attempt, backoff = attempt + 1, min(2 * backoff, BACKOFF_MAX_SECONDS)


def send(api_url: str | None, method: str, path: str, seconds: float, body: Json | None) -> Json:
    """Send one request; return its answer, a JSON object with an id, or raise what it means."""
    api_url = (api_url or os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL).rstrip("/")
    if "@" in api_url:
        raise ValueError("the API URL contains credentials. Set PREFECT_API_AUTH_STRING instead.")
    options = read_settings() | {"timeout": min(max(1, seconds), REQUEST_SECONDS)}
    try:
        response = requests.request(
            method, api_url + path, json=body, allow_redirects=False, **options
        )
    except ValueError as error:
        raise ValueError(f"no usable API URL or header ({error}). Correct the setting.") from None
    except OSError as error:
        raise_connection_problem(api_url, error)
    status, (answer, words) = response.status_code, read_answer(response, options["headers"])
    problem = f"{api_url}{path} returned {status} ({words})."
    if status in TRANSIENT:
        after = response.headers.get("Retry-After", "")
        raise TransientError(f"{problem} Retry later.", float(after) if after.isdecimal() else 0)
    if status in (401, 403):
        raise PermissionError(f"{problem} Check PREFECT_API_KEY or PREFECT_API_AUTH_STRING.")
    # A bare "Not Found" is about the path, so the URL is wrong, not the request.
    if 400 <= status < 500 and answer.get("detail", "Not Found") != "Not Found":
        raise (LookupError if status == 404 else ValueError)(f"{problem} Correct the request.")
    if not 200 <= status < 300 or "id" not in answer:
        raise ConnectionError(f"{problem} Check the API URL.")
    return answer


def raise_connection_problem(api_url: str, error: BaseException) -> NoReturn:
    """Raise TransientError, or ConnectionError for an unknown host or a certificate problem."""
    cause = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner  # the error of requests says little, the one that caused it more
    problem = f"no answer from {api_url} ({cause})."
    # A plain OSError is about the certificate's file, which is missing.
    is_certificate = type(error) in (OSError, requests.exceptions.SSLError)
    if is_certificate and not isinstance(cause, ssl.SSLEOFError):  # an EOF is a cut connection
        raise ConnectionError(f"{problem} Check PREFECT_API_SSL_CERT_FILE.") from None
    if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:  # no such host
        raise ConnectionError(f"{problem} Check the API URL.") from None
    start = "Start a server with: prefect server start --background (or check the API URL)."
    raise TransientError(f"{problem} {start}", 0) from None


def read_answer(response: requests.Response, headers: dict[str, str]) -> tuple[Json, str]:
    """Return the answer's JSON object, or {}, and the server's words without credentials."""
    answer = None
    with suppress(ValueError, RecursionError):
        answer = response.json()
    if not isinstance(answer, dict):
        answer = {}
    words = str(answer.get("detail") or response.headers.get("Location") or response.text)
    login = os.environ.get("PREFECT_API_AUTH_STRING", "")
    sent = [value.rpartition(" ")[2] for value in headers.values()]
    for secret in filter(None, [login, login.partition(":")[2], *sent]):
        words = words.replace(secret, "***")
    return answer, " ".join(words.split())[:300] or response.reason


def read_settings() -> Json:
    """Return what Prefect's client reads from the environment, as options for requests."""
    setting, headers = os.environ.get, {}
    if login := setting("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    elif key := setting("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    try:
        headers |= json.loads(setting("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}")
        headers = {name: " ".join(text.split()) for name, text in headers.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError("PREFECT_CLIENT_CUSTOM_HEADERS is not a JSON object of text.") from None
    own = setting("PREFECT_API_SSL_CERT_FILE") or setting("SSL_CERT_FILE")
    verify = own or DEFAULT_CA_BUNDLE_PATH  # with True, REQUESTS_CA_BUNDLE would win
    skip = setting("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in ("1", "true", "yes", "on")
    no_netrc = lambda request: request  # noqa: E731 - or the password of a .netrc would win
    return {"headers": headers, "verify": not skip and verify, "auth": no_netrc}


def parse_parameter(text: str) -> tuple[str, Any]:
    """Return KEY=VALUE as a pair; VALUE is read as JSON if it is JSON, else as text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, as in user_id=102")
    with suppress(ValueError, RecursionError):
        return key, json.loads(value, parse_constant=str)
    return key, value


def main() -> None:
    """Read the command line, trigger, print the flow run's id, and wait if asked to."""
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_stands)
    add = parser.add_argument
    add("name", nargs="?", default=DEFAULT_NAME, metavar="FLOW/DEPLOYMENT")
    add("-p", "--param", type=parse_parameter, action="append", default=[], metavar="KEY=VALUE")
    add("--api-url", help="default: PREFECT_API_URL, or port 4200 of this machine")
    add("--idempotency-key", default=str(uuid.uuid4()), metavar="KEY", help="one run for each KEY")
    add("--wait", action="store_true", help="wait until the run has ended")
    add("--timeout", type=float, default=TIMEOUT_SECONDS, metavar="SECONDS", help="default: 300")
    asked = parser.parse_args()
    parameters, key, api_url = dict(asked.param), asked.idempotency_key, asked.api_url
    if len(parameters) < len(asked.param):
        parser.error("-p has the same KEY twice. Give each KEY once.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to stderr
    end = time.monotonic() + asked.timeout
    options: Any = {"idempotency_key": key, "timeout": asked.timeout, "api_url": api_url}
    try:
        flow_run = trigger(asked.name, parameters, **options)
        print(flow_run["id"], flush=True)
        logger.info("%s is %s", flow_run["name"], flow_run["state"]["name"])
        if asked.wait:
            state = wait_for_flow_run(flow_run, end - time.monotonic(), api_url)["state"]
            if state["type"] != "COMPLETED":
                reason = " ".join(str(state["message"]).split())
                problem = f"{flow_run['name']} is {state['name']} ({reason})"
                parser.exit(1, f"error: {problem}. Look at its log in the UI.\n")
    except KeyboardInterrupt:
        parser.exit(130, f"error: interrupted. A run may exist: ask again with the key {key!r}.\n")
    except (OSError, LookupError, ValueError) as error:
        code = 3 if isinstance(error, TimeoutError) else 4 if isinstance(error, OSError) else 2
        parser.exit(code, f"error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
