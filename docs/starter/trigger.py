"""Trigger a deployment by its name: no trigger is lost, none is sent twice.

Run:    python trigger.py churn-flow/nightly --wait
Notice: the flow run's id goes to stdout, all else to stderr, the outcome into the exit code:
0 triggered, with --wait Completed. 1 The run ended, but not Completed. 2 Refused, nothing was
triggered (usage, name, parameter, key of another event). 3 Timed out while the run goes on.
4 No usable answer from the API; if the line says so, the run may exist. 130 Interrupted.
"""

import argparse
import base64
import difflib
import json
import logging
import os
import random
import time
import uuid
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import certifi
import requests

DEFAULT_NAME = "churn-flow/nightly"
DEFAULT_API_URL = "http://127.0.0.1:4200/api"
TIMEOUT_SECONDS = 300  # for everything: look up, trigger, wait
REQUEST_SECONDS = 30  # for one answer
BACKOFF_SECONDS, BACKOFF_MAX_SECONDS = 0.2, 8  # doubled with each attempt
POLL_SECONDS = 1
TRANSIENT = {408, 425, 429, 500, 502, 503, 504, *range(520, 525)}  # 503: SQLite is busy
EXIT_CODES = {ValueError: 2, LookupError: 2, TimeoutError: 3, KeyboardInterrupt: 130}  # else 4

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

    One `idempotency_key` is one flow run, however often you ask; without it, each call is another.
    Raises ValueError or LookupError (unknown name) if it is refused: nothing was triggered. Raises
    PermissionError for the credentials, ConnectionError for no usable answer in `timeout` seconds:
    if the message says that the run may exist, ask again with the same key.
    """
    deadline, parameters = time.monotonic() + timeout, parameters or {}
    key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
    url = (api_url or os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL).rstrip("/")
    check_arguments(name, parameters, key, url)
    deployment = ask("GET", f"{url}/deployments/name/{quote(name)}", deadline)
    names = (deployment.get("parameter_openapi_schema") or {}).get("properties", parameters)
    if unknown := [each for each in parameters if each not in names]:
        near = {each: difflib.get_close_matches(str(each), names, 1) for each in unknown}
        raise ValueError(f"unknown parameters, with near ones: {near}. Choose from {list(names)}.")
    url = f"{url}/deployments/{deployment['id']}/create_flow_run"
    try:
        flow_run = ask("POST", url, deadline, {"parameters": parameters, "idempotency_key": key})
    except OSError as error:
        raise type(error)(f"{error} The run may exist: ask again with the key {key!r}.") from None
    check_flow_run(flow_run, deployment, parameters, key)
    return flow_run


def wait_for_flow_run(flow_run: Json, timeout: float, api_url: str | None = None) -> Json:
    """Return the flow run of `trigger` when it has ended. Raises TimeoutError, ConnectionError."""
    url = (api_url or os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL).rstrip("/")
    deadline, state, run_id = time.monotonic() + timeout, flow_run["state"], flow_run["id"]
    while state["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError(f"the flow run {run_id} goes on ({state['name']}). Wait longer.")
        time.sleep(min(POLL_SECONDS, left))
        try:
            flow_run = ask("GET", f"{url}/flow_runs/{run_id}", deadline)
        except (OSError, LookupError, ValueError) as error:
            raise ConnectionError(f"{error} The flow run exists: {run_id}.") from None
        if state["name"] != (state := flow_run["state"])["name"]:
            logger.info("%s is %s", flow_run["name"], state["name"])
    return flow_run


def check_arguments(name: str, parameters: Json, key: str, url: str) -> None:
    """Raise ValueError, which names the argument, for what cannot be sent as it is."""
    if name.count("/") != 1 or {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"{name!r} is not a deployment's name. Write FLOW/DEPLOYMENT.")
    if not key:
        raise ValueError("the idempotency key is empty (''). Name the event, or leave it out.")
    if "@" in url:
        raise ValueError("the API URL contains credentials. Set PREFECT_API_AUTH_STRING instead.")
    for what, value in {"name": name, "idempotency_key": key, **parameters}.items():
        try:
            json.dumps({what: value}, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{what!r} is not JSON in Unicode ({error}). Correct it.") from None


def check_flow_run(flow_run: Json, deployment: Json, parameters: Json, key: str) -> None:
    """Raise ValueError if the key was used before, for another deployment or other parameters."""
    asked = {**(deployment.get("parameters") or {}), **parameters}  # the server adds the defaults
    templates = [name for name, it in asked.items() if '"__prefect_kind":' in json.dumps(it)]

    def exact(values: Json) -> Any:  # 6e23 is 600000000000000000000000; as a tuple, 1 is not True
        number: Any = dict.fromkeys(("parse_int", "parse_float"), lambda text: (Decimal(text),))
        kept = {name: it for name, it in values.items() if name not in templates}
        return json.loads(json.dumps(kept), **number)

    same = exact(flow_run.get("parameters") or {}) == exact(asked)
    if not same or flow_run.get("deployment_id") != deployment["id"]:
        problem = f"the key {key!r} was used before, for other parameters or another deployment"
        raise ValueError(f"{problem} (flow run {flow_run['id']}). Give each event its own key.")


def ask(method: str, url: str, deadline: float, body: Json | None = None) -> Json:
    """Send the request until its answer comes or the deadline, a time.monotonic(), has passed."""
    attempt, backoff = 1, BACKOFF_SECONDS
    while True:
        answer, problem, retry_after = send(method, url, body, deadline - time.monotonic())
        if answer:
            return answer
        if (left := deadline - time.monotonic()) <= 0:
            raise ConnectionError(problem)
        if attempt == 2:
            logger.warning("warning: %s Retrying for up to %.0f s.", problem, left)
        pause = random.uniform(0, backoff)  # or all clients come back at once, and collide again
        time.sleep(min(max(pause, retry_after), left))
        attempt, backoff = attempt + 1, min(2 * backoff, BACKOFF_MAX_SECONDS)


def send(method: str, url: str, body: Json | None, seconds: float) -> tuple[Json, str, int]:
    """Send one request; return its answer, or {}, the problem, and when to retry; or raise."""
    options: Any = read_settings() | {"timeout": min(max(1, seconds), REQUEST_SECONDS)}
    try:
        response = requests.request(method, url, json=body, allow_redirects=False, **options)
    except ValueError as error:
        raise ValueError(f"not a usable URL or header ({error}). Correct the setting.") from None
    except OSError as error:
        reason = str(error).rpartition("] ")[2].rstrip(")\"'")
        problem = f"no Prefect server at {url} ({reason})."
        if type(error) in (OSError, requests.exceptions.SSLError) and "EOF" not in problem:
            raise ConnectionError(f"{problem} Check PREFECT_API_SSL_CERT_FILE.") from None
        start = "Start one with: prefect server start --background (or check --api-url)"
        return {}, f"{problem} {start}", 0
    status, answer = response.status_code, read_json(response.text, {})
    answer = answer if isinstance(answer, dict) else {}
    words = str(answer.get("detail") or response.headers.get("Location") or response.text)
    login = os.environ.get("PREFECT_API_AUTH_STRING", "")
    for secret in (login, login.partition(":")[2], *options["headers"].values()):
        words = words.replace(secret.rpartition(" ")[2] or "\0", "***")
    problem = f"{url} returned {status} ({' '.join(words.split())[:300]})."
    if status in TRANSIENT:
        after = response.headers.get("Retry-After", "")
        return {}, f"{problem} Try again later.", int(after) if after.isdecimal() else 0
    if status in (401, 403):
        raise PermissionError(f"{problem} Check PREFECT_API_KEY or PREFECT_API_AUTH_STRING.")
    if 400 <= status < 500 and answer.get("detail", "Not Found") != "Not Found":
        raise (LookupError if status == 404 else ValueError)(f"{problem} Correct the request.")
    if not 200 <= status < 300 or "id" not in answer:
        raise ConnectionError(f"{problem} Check the API URL.")
    return answer, "", 0


def read_settings() -> Json:
    """Return what Prefect's own client reads from the environment, as options for requests."""
    setting, headers = os.environ.get, {}
    if login := setting("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    elif key := setting("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    try:
        custom = json.loads(setting("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}")
        headers = {name: " ".join(it.split()) for name, it in (headers | custom).items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError("PREFECT_CLIENT_CUSTOM_HEADERS is not a JSON object of text.") from None
    verify = setting("PREFECT_API_SSL_CERT_FILE") or setting("SSL_CERT_FILE") or certifi.where()
    skip = setting("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in ("1", "true")
    return {"headers": headers, "verify": not skip and verify, "auth": lambda it: it}  # no .netrc


def read_json(text: str, default: Any) -> Any:
    """Return the value of the text if it is JSON, else the default."""
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return default


def main() -> None:
    """Read the command line, trigger, print the flow run's id, and wait if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("name", nargs="?", default=DEFAULT_NAME, metavar="FLOW/DEPLOYMENT")
    add("-p", "--param", action="append", default=[], metavar="KEY=VALUE", help="JSON, or text")
    add("--api-url", help="default: PREFECT_API_URL, or port 4200 of this machine")
    add("--idempotency-key", default=str(uuid.uuid4()), metavar="KEY", help="one run for each KEY")
    add("--wait", action="store_true", help="wait until the run has ended")
    add("--timeout", type=float, default=TIMEOUT_SECONDS, metavar="SECONDS", help="default: 300")
    options = vars(parser.parse_args())
    name, pairs, wait = (options.pop(each) for each in ("name", "param", "wait"))
    parts = [pair.partition("=") for pair in pairs]
    parameters = {key: read_json(value, value) for key, _, value in parts}
    if "" in parameters or not all(equals for _, equals, _ in parts):
        parser.error(f"-p takes KEY=VALUE, as in -p user_id=102, not {pairs}.")
    if len(parameters) < len(pairs):
        parser.error(f"-p has the same KEY twice in {pairs}. Give each KEY once.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to stderr
    deadline = time.monotonic() + options["timeout"]
    try:
        run = trigger(name, parameters, **options)
        print(run["id"], flush=True)
        logger.info("%s is %s", run["name"], run["state"]["name"])
        if wait:
            run = wait_for_flow_run(run, deadline - time.monotonic(), options["api_url"])
            if run["state"]["type"] != "COMPLETED":
                end = f"{run['name']} is {run['state']['name']} ({run['state']['message']!r})"
                parser.exit(1, f"error: {end}. Look at its log in the UI.\n")
    except (KeyboardInterrupt, OSError, LookupError, ValueError) as error:
        key = options["idempotency_key"]
        hint = f"interrupted. The run may exist: ask again with the key {key!r}."
        parser.exit(EXIT_CODES.get(type(error), 4), f"error: {str(error) or hint}\n")


if __name__ == "__main__":
    main()
