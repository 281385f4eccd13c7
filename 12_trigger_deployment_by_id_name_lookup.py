"""Trigger a deployment by its name: no trigger is lost, none is sent twice.

Run:    python 12_trigger_deployment_by_id_name_lookup.py user-flow/user-deployment --wait
Notice: the flow run's id goes to stdout, all else to stderr, the outcome into the exit code:
  0  triggered; with --wait: Completed      1  the run ended, but is not Completed
  2  refused, nothing was triggered: usage, name, parameter, key of another event
  3  timed out while the run goes on        4  no usable answer (it says if the run may exist)
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
from contextlib import suppress
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import certifi
import requests

DEFAULT_NAME = "user-flow/user-deployment"
DEFAULT_API_URL = "http://127.0.0.1:4200/api"
TIMEOUT_SECONDS = 300  # for everything: look up, trigger, wait
REQUEST_SECONDS = 30  # for one answer
BACKOFF_SECONDS, BACKOFF_MAX_SECONDS = 0.2, 8  # doubles with each attempt
POLL_SECONDS = 1
TRANSIENT = {408, 425, 429, 500, 502, 503, 504, *range(520, 525)}  # 503: SQLite is busy

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
    Raises ValueError for what is refused, LookupError for an unknown name: nothing was triggered.
    Raises PermissionError for the credentials, ConnectionError for no usable answer in `timeout`
    seconds: if its message says that the run may exist, ask again with the same key.
    """
    deadline = time.monotonic() + timeout
    key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
    body: Json = {"parameters": parameters or {}, "idempotency_key": key}  # for all attempts
    check_arguments(name, body, timeout)
    deployments = f"{find_api_url(api_url)}/deployments"
    deployment = ask("GET", f"{deployments}/name/{quote(name)}", deadline)
    check_names(body["parameters"], deployment)
    try:
        flow_run = ask("POST", f"{deployments}/{deployment['id']}/create_flow_run", deadline, body)
    except OSError as error:
        hint = f"The run may exist: ask again with the idempotency key {key!r}."
        raise type(error)(f"{error} {hint}") from None
    check_flow_run(flow_run, deployment, body)
    return flow_run


def wait_for_flow_run(
    flow_run: Json, *, timeout: float = TIMEOUT_SECONDS, api_url: str | None = None
) -> Json:
    """Wait until the flow run that `trigger` returned has ended; return it as it is then.

    Raises TimeoutError if it goes on after `timeout` seconds, ConnectionError for no usable answer.
    """
    deadline = time.monotonic() + timeout
    run_id, state = flow_run["id"], flow_run["state"]
    while state["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError(f"the flow run {run_id} goes on ({state['name']}). Wait longer.")
        time.sleep(min(POLL_SECONDS, left))
        try:
            flow_run = ask("GET", f"{find_api_url(api_url)}/flow_runs/{run_id}", deadline)
        except (OSError, LookupError, ValueError) as error:
            raise ConnectionError(f"{error} The flow run exists: {run_id}.") from None
        if state["name"] != (state := flow_run["state"])["name"]:
            logger.info("%s is %s", flow_run["name"], state["name"])
    return flow_run


def ask(method: str, url: str, deadline: float, body: Json | None = None) -> Json:
    """Send the request until its answer comes or the deadline, a time.monotonic(), has passed."""
    backoff = BACKOFF_SECONDS
    while True:
        left = deadline - time.monotonic()
        answer, problem, retry_after = send(method, url, body, min(max(left, 1), REQUEST_SECONDS))
        if answer:
            return answer
        if (left := deadline - time.monotonic()) <= 0:
            raise ConnectionError(problem)
        if backoff > BACKOFF_SECONDS:
            logger.warning("warning: %s Retrying for up to %.0f s.", problem, left)
        pause = random.uniform(0, backoff)  # or all clients come back at once, and collide again
        time.sleep(min(max(pause, retry_after), left))
        backoff = min(2 * backoff, BACKOFF_MAX_SECONDS)


def send(method: str, url: str, body: Json | None, seconds: float) -> tuple[Json, str, int]:
    """Send one request, and return its answer, a JSON object; or raise what the answer means.

    If another attempt may help, return {}, the problem, and the seconds to wait before it.
    """
    options: Any = {"json": body, "timeout": seconds, "allow_redirects": False, **read_settings()}
    try:
        response = requests.request(method, url, **options)
    except ValueError as error:  # only its type: its text may show a credential
        problem = f"cannot send a request to {url} ({type(error).__name__})"
        raise ValueError(f"{problem}. Check the API URL and the PREFECT_ settings.") from None
    except OSError as error:
        reason = str(error).rpartition("] ")[2].rstrip("\"')")
        if type(error) in (OSError, requests.exceptions.SSLError) and "EOF" not in reason:
            problem = f"no secure connection to {url} ({reason})"
            raise ConnectionError(f"{problem}. Check PREFECT_API_SSL_CERT_FILE.") from None
        start = "Start one with: prefect server start --background (or check --api-url)"
        return {}, f"no Prefect server at {url} ({reason}). {start}", 0
    answer, words = read_answer(response)
    status, problem = response.status_code, f"{url} returned {response.status_code} ({words})."
    if status in TRANSIENT:
        after = response.headers.get("Retry-After", "")
        return {}, f"{problem} Try again later.", int(after) if after.isdecimal() else 0
    if status in (401, 403):
        raise PermissionError(f"{problem} Check PREFECT_API_KEY or PREFECT_API_AUTH_STRING.")
    if 400 <= status < 500 and answer and words != "Not Found":
        raise (LookupError if status == 404 else ValueError)(f"{problem} Correct the request.")
    if not 200 <= status < 300 or "id" not in answer:
        raise ConnectionError(f"{problem} Check the API URL.")
    return answer, words, 0


def read_answer(response: requests.Response) -> tuple[Json, str]:
    """Return the JSON object of the answer, or {}; and its words, on one line without secrets."""
    answer, words = None, response.headers.get("Location") or response.text or response.reason
    with suppress(ValueError, RecursionError):
        answer = response.json()
    answer = answer if isinstance(answer, dict) else {}
    for name in ("exception_message", "exception_detail", "detail"):
        words = str(answer.get(name) or words)
    login = os.environ.get("PREFECT_API_AUTH_STRING", "")
    for secret in (login, login.partition(":")[2], *read_settings()["headers"].values()):
        words = words.replace(secret.rpartition(" ")[2] or "\0", "***")
    return answer, " ".join(words.split())[:500]


def read_settings() -> Json:
    """Return what Prefect's own client reads from the environment, as options of requests."""
    setting = os.environ.get
    verify = setting("PREFECT_API_SSL_CERT_FILE") or setting("SSL_CERT_FILE") or certifi.where()
    insecure = setting("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in ("1", "true")
    headers = {}
    if login := setting("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    elif key := setting("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key.strip()}"
    try:
        custom = json.loads(setting("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}")
        headers |= {name: value.strip() for name, value in custom.items()}
    except (AttributeError, ValueError):
        problem = "PREFECT_CLIENT_CUSTOM_HEADERS is not a JSON object of text. Correct it."
        raise ValueError(problem) from None
    no_netrc = {"auth": lambda request: request}
    return {"headers": headers, "verify": not insecure and verify, **no_netrc}


def find_api_url(api_url: str | None) -> str:
    """Return the URL of the API, by default that of PREFECT_API_URL, without a slash."""
    api_url = (api_url or os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL).rstrip("/")
    if "@" in api_url:
        raise ValueError("the API URL contains credentials. Set PREFECT_API_AUTH_STRING instead.")
    return api_url


def check_arguments(name: str, body: Json, timeout: float) -> None:
    """Raise ValueError, which names the argument, for what cannot be sent as it is."""
    if name.count("/") != 1 or {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"{name!r} is not a deployment's name. Write FLOW/DEPLOYMENT.")
    if not body["idempotency_key"]:
        raise ValueError("the idempotency key is empty (''). Name the event, or leave it out.")
    if not timeout > 0:
        raise ValueError(f"the timeout is not above 0 ({timeout}). Give it in seconds.")
    key = body["idempotency_key"]
    for what, value in {"name": name, "idempotency_key": key, **body["parameters"]}.items():
        try:
            json.dumps({what: value}, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            problem = f"{what!r} is not JSON with valid Unicode ({error})"
            raise ValueError(f"{problem}. Correct it.") from None


def check_names(parameters: Json, deployment: Json) -> None:
    """Raise ValueError for parameters that the flow lacks: the API takes them, the run fails."""
    schema = deployment.get("parameter_openapi_schema") or {}
    accepted, unknown = list(schema.get("properties", parameters)), []
    for name in set(parameters).difference(accepted):
        near = difflib.get_close_matches(str(name), accepted, n=1)
        unknown.append(f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name))
    if unknown:
        raise ValueError(f"the flow has no parameter {', '.join(unknown)}. It takes: {accepted}")


def check_flow_run(flow_run: Json, deployment: Json, body: Json) -> None:
    """Raise ValueError if the key was used before, for another deployment or other parameters."""
    asked = {**(deployment.get("parameters") or {}), **body["parameters"]}  # the defaults, too

    def number(text: str) -> tuple[Decimal]:
        return (Decimal(text),)  # 6e23 is 600000000000000000000000; as a tuple, 1 is not True

    def exact(parameters: Json) -> Any:  # without templates: the server fills them in
        marks = {name: '"__prefect_kind":' in json.dumps(value) for name, value in asked.items()}
        kept = {name: it for name, it in parameters.items() if not marks.get(name)}
        return json.loads(json.dumps(kept), parse_int=number, parse_float=number)

    same = exact(flow_run.get("parameters") or {}) == exact(asked)
    if not same or flow_run.get("deployment_id") != deployment["id"]:
        other = "another deployment" if same else "other parameters"
        problem = f"the key {body['idempotency_key']!r} was used before, for {other}"
        raise ValueError(f"{problem}: flow run {flow_run['id']}. Give each event its own key.")


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
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("name", nargs="?", default=DEFAULT_NAME, metavar="FLOW/DEPLOYMENT")
    add("-p", "--param", type=parse_parameter, action="append", default=[], metavar="KEY=VALUE")
    add("--api-url", help="default: PREFECT_API_URL, or port 4200 of this machine")
    add("--idempotency-key", default=str(uuid.uuid4()), metavar="KEY", help="one run for each KEY")
    add("--wait", action="store_true", help="wait until the run has ended")
    add("--timeout", type=float, default=TIMEOUT_SECONDS, metavar="SECONDS", help="default: 300")
    options = vars(parser.parse_args())
    name, pairs, wait = (options.pop(each) for each in ("name", "param", "wait"))
    if len(dict(pairs)) < len(pairs):
        parser.error("-p has the same KEY twice. Give each KEY once.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to stderr
    deadline = time.monotonic() + options["timeout"]
    try:
        run = trigger(name, dict(pairs), **options)
        print(run["id"], flush=True)
        if wait:
            left = deadline - time.monotonic()
            run = wait_for_flow_run(run, timeout=left, api_url=options["api_url"])
    except KeyboardInterrupt:
        hint = f"The run may exist: ask again with --idempotency-key {options['idempotency_key']}"
        parser.exit(130, f"error: interrupted. {hint}\n")
    except TimeoutError as error:
        parser.exit(3, f"error: {error}\n")
    except OSError as error:
        parser.exit(4, f"error: {error}\n")
    except (LookupError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    state = run["state"]
    if wait and state["type"] != "COMPLETED":
        words = " ".join(str(state["message"]).split())
        parser.exit(1, f"error: the run is {state['name']} ({words}). Look at its log.\n")


if __name__ == "__main__":
    main()
