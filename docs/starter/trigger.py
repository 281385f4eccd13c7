"""Trigger a deployment by its name: no trigger lost, none sent twice.

Run:    python trigger.py churn-flow/nightly --wait
Notice: the flow run's id goes to stdout, the rest to stderr, the outcome into the exit code:
  0  triggered, and with --wait Completed    1  the run ended, but not Completed
  2  refused, nothing was triggered: usage, name, parameter, key of another event
  3  timed out while the run goes on         4  no usable answer; the run may exist if it says so
"""

import argparse
import base64
import difflib
import json
import logging
import os
import random
import sys
import time
import uuid
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import requests

DEFAULT_NAME = "churn-flow/nightly"
DEFAULT_API_URL = "http://127.0.0.1:4200/api"
TIMEOUT_SECONDS = 300  # for everything: look up, trigger, wait
REQUEST_SECONDS = 30  # for one answer
BACKOFF_SECONDS = 0.2  # before the second attempt, at most; it doubles with each attempt ...
BACKOFF_MAX_SECONDS = 8  # ... up to this
POLL_SECONDS = 1
CHECK_URL = "Check PREFECT_API_URL, or --api-url."
START = "Start one with: prefect server start --background"
KIND = '"__prefect_kind":'  # marks a template, which the server fills in
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
    Raises ValueError for what is refused, and LookupError for an unknown name: nothing was
    triggered. Raises PermissionError for the credentials, and ConnectionError if no usable answer
    came in `timeout` seconds: if it says that the run may exist, ask again with the same key.
    """
    deadline = time.monotonic() + timeout
    api_url = (api_url or os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL).rstrip("/")
    key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
    body = {"parameters": parameters or {}, "idempotency_key": key}  # the same in all attempts
    check_arguments(name, body, timeout)
    path = "/".join(quote(part, safe="") for part in name.split("/"))
    deployment = ask("GET", f"{api_url}/deployments/name/{path}", deadline)
    check_names(body["parameters"], deployment)
    url = f"{api_url}/deployments/{deployment['id']}/create_flow_run"
    try:
        flow_run = ask("POST", url, deadline, body)
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
    api_url = (api_url or os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL).rstrip("/")
    state, url = flow_run["state"], f"{api_url}/flow_runs/{flow_run['id']}"
    while state["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
        if not (left := deadline - time.monotonic()) > 0:
            raise TimeoutError(f"timed out, and the run goes on ({state['name']}). See {url}")
        time.sleep(min(POLL_SECONDS, left))
        try:
            flow_run = ask("GET", url, deadline)
        except (OSError, LookupError, ValueError) as error:
            raise ConnectionError(f"{error} The run exists: {flow_run['id']}.") from None
        if flow_run["state"]["name"] != state["name"]:
            logger.info("%s is %s", flow_run["name"], flow_run["state"]["name"])
        state = flow_run["state"]
    return flow_run


class TransientError(ConnectionError):
    """Another attempt may succeed, `retry_after` seconds later."""

    retry_after = 0


def ask(method: str, url: str, deadline: float, body: Json | None = None) -> Json:
    """Send the request until its answer comes or the deadline, a time.monotonic(), has passed."""
    attempt, backoff = 1, BACKOFF_SECONDS
    while True:
        timeout = max(1, min(deadline - time.monotonic(), REQUEST_SECONDS))
        try:
            return send(method, url, body, timeout)
        except TransientError as error:
            if (left := deadline - time.monotonic()) <= 0:
                raise
            if attempt == 2:
                logger.warning("warning: %s Retrying for up to %.0f s.", error, left)
            # At random, or all clients come back at once and collide again.
            pause = max(random.uniform(0, backoff), error.retry_after)
        time.sleep(min(pause, left))
        attempt, backoff = attempt + 1, min(2 * backoff, BACKOFF_MAX_SECONDS)


def send(method: str, url: str, body: Json | None, timeout: float) -> Json:
    """Send one request; return its answer, a JSON object with an id, or raise what it means."""
    options: Any = {"auth": authorize, "verify": find_certificates(), "timeout": timeout}
    try:
        response = requests.request(method, url, json=body, allow_redirects=False, **options)
    except ValueError as error:  # without its text, which may show a credential
        check = "Check the API URL, PREFECT_API_KEY and PREFECT_CLIENT_CUSTOM_HEADERS."
        raise ValueError(f"cannot ask {url} ({type(error).__name__}). {check}") from None
    except OSError as error:
        reason = str(error).rpartition("] ")[2].rstrip("\"')")
        if type(error) in (OSError, requests.exceptions.SSLError) and "EOF" not in reason:
            problem = f"no secure connection to {url} ({reason}). Check PREFECT_API_SSL_CERT_FILE."
            raise ConnectionError(problem) from None
        hint = START if url.startswith(DEFAULT_API_URL) else CHECK_URL
        raise TransientError(f"no Prefect server answers at {url} ({reason}). {hint}") from None
    status, (answer, words) = response.status_code, read_answer(response)
    problem = f"{url} returned {status} ({words})."
    if status in TRANSIENT:
        transient = TransientError(f"{problem} Try again later.")
        if (after := response.headers.get("Retry-After", "")).isdecimal():
            transient.retry_after = int(after)
        raise transient
    if status in (401, 403):
        raise PermissionError(f"{problem} Check PREFECT_API_KEY or PREFECT_API_AUTH_STRING.")
    if 400 <= status < 500 and answer and words != "Not Found":  # Prefect says what it refuses
        hint = "List the names with: prefect deployment ls" if status == 404 else "Correct it."
        raise (LookupError if status == 404 else ValueError)(f"{problem} {hint}")
    if not 200 <= status < 300 or "id" not in answer:
        raise ConnectionError(f"{problem} {CHECK_URL}")
    return answer


def read_answer(response: requests.Response) -> tuple[Json, str]:
    """Return the JSON object of the answer, or {}; and its words, on one line without secrets."""
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        answer = None
    words = f"{response.reason}, a web page" if "<" in response.text else response.text
    if isinstance(answer, dict):
        names = ("detail", "exception_detail", "exception_message")
        words = next((str(answer[name]) for name in names if answer.get(name)), words)
    if 300 <= response.status_code < 400:
        words = f"it leads to {response.headers.get('Location')}"
    login = os.environ.get("PREFECT_API_AUTH_STRING", "")
    for secret in (login, login.partition(":")[2], *read_headers().values()):
        if len(secret) > 2:
            words = words.replace(secret.rpartition(" ")[2], "***")
    return answer if isinstance(answer, dict) else {}, " ".join(words.split())[:500]


def find_certificates() -> str | bool:
    """Return the file of the certificates to trust, or False to trust any."""
    if os.environ.get("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in ("1", "true"):
        return False
    own = os.environ.get("PREFECT_API_SSL_CERT_FILE") or os.environ.get("SSL_CERT_FILE")
    return own or requests.certs.where()


def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Add the headers of the settings, as the `auth` of requests: no .netrc takes its place."""
    request.headers.update(read_headers())
    return request


def read_headers() -> dict[str, str]:
    """Return the headers that Prefect's own client takes from the environment."""
    headers = {}
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    elif key := os.environ.get("PREFECT_API_KEY", "").strip():
        headers["Authorization"] = f"Bearer {key}"
    try:
        custom = json.loads(os.environ.get("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}")
        return headers | {name: value.strip() for name, value in custom.items()}
    except (AttributeError, ValueError):
        problem = "PREFECT_CLIENT_CUSTOM_HEADERS is not a JSON object of text. Correct it."
        raise ValueError(problem) from None


def check_arguments(name: str, body: Json, timeout: float) -> None:
    """Raise ValueError, which names the argument, for what cannot be sent as it is."""
    if name.count("/") != 1 or {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"not a deployment's name ({name!r}). Write FLOW/DEPLOYMENT.")
    if not body["idempotency_key"]:
        raise ValueError("the idempotency key is empty (''). Name the event, or leave it out.")
    if not timeout > 0:
        raise ValueError(f"the timeout is not above 0 ({timeout}). Give it in seconds.")
    parameters = {f"parameter {name!r}": {name: it} for name, it in body["parameters"].items()}
    values = {"the name": name, "the idempotency key": body["idempotency_key"]} | parameters
    for what, value in values.items():
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{what} is not JSON with valid Unicode ({error}). Correct it."
            ) from None


def check_names(parameters: Json, deployment: Json) -> None:
    """Raise ValueError for parameters that the flow lacks: the API takes them, the run fails."""
    schema = deployment.get("parameter_openapi_schema") or {}
    accepted = list(schema.get("properties", parameters))
    unknown = []
    for name in set(parameters).difference(accepted):
        near = difflib.get_close_matches(str(name), accepted, n=1)
        unknown.append(f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name))
    if unknown:
        raise ValueError(f"the flow has no parameter {', '.join(unknown)}. It takes: {accepted}")


def check_flow_run(flow_run: Json, deployment: Json, body: Json) -> None:
    """Raise ValueError if the key was used before, for another deployment or other parameters."""
    asked = {**(deployment.get("parameters") or {}), **body["parameters"]}  # the defaults, too

    def exact(parameters: Json) -> Any:
        # The server fills in its templates. A number is a tuple here, because True == 1, and
        # decimal, because 6e23 comes back from PostgreSQL as 600000000000000000000000.
        kept = {n: v for n, v in parameters.items() if KIND not in json.dumps(asked.get(n))}
        number = dict.fromkeys(("parse_int", "parse_float"), lambda text: (Decimal(text),))
        return json.loads(json.dumps(kept), **number)

    other = ""
    if flow_run.get("deployment_id") != deployment["id"]:
        other = "another deployment"
    elif exact(flow_run.get("parameters") or {}) != exact(asked):
        other = "other parameters"
    if other:
        key = f"the key {body['idempotency_key']!r} was used before, for {other}"
        raise ValueError(f"{key} (flow run {flow_run['id']}). Give another event another key.")


def parse_parameters(pairs: list[str]) -> Json:
    """Return KEY=VALUE pairs as parameters, each VALUE read as JSON if it is, else as text."""
    parameters: Json = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ValueError(f"-p {pair!r} is not KEY=VALUE. Write it as in: -p user_id=102")
        if name in parameters:
            raise ValueError(f"-p {name!r} is given twice. Give it once.")
        try:
            parameters[name] = json.loads(value, parse_constant=int)  # NaN is text: not JSON
        except ValueError:
            parameters[name] = value
    return parameters


def main() -> None:
    """Read the command line, trigger, print the flow run's id, and wait if asked to."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    add = parser.add_argument
    add("name", nargs="?", default=DEFAULT_NAME, metavar="FLOW/DEPLOYMENT")
    add("-p", "--param", action="append", default=[], metavar="KEY=VALUE", help="JSON, or text")
    add("--api-url", help="default: PREFECT_API_URL, or port 4200 of this machine")
    add("--idempotency-key", default=str(uuid.uuid4()), metavar="KEY", help="one run for each KEY")
    add("--wait", action="store_true", help="wait until the run has ended")
    add("--timeout", type=float, default=TIMEOUT_SECONDS, metavar="SECONDS", help="default: 300")
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to stderr
    key, wait, name = options["idempotency_key"], options.pop("wait"), options.pop("name")
    deadline = time.monotonic() + options["timeout"]
    try:
        flow_run = trigger(name, parse_parameters(options.pop("param")), **options)
        print(flow_run["id"], flush=True)
        logger.info("%s is %s", flow_run["name"], flow_run["state"]["name"])
        if wait:
            left = deadline - time.monotonic()
            flow_run = wait_for_flow_run(flow_run, timeout=left, api_url=options["api_url"])
        state = flow_run["state"]
        if not wait or state["type"] == "COMPLETED":
            return
        code, problem = 1, f"the run ended as {state['name']} ({state['message']}). See its log."
    except KeyboardInterrupt:
        code, problem = 130, f"interrupted. The run may exist: ask again with the key {key!r}."
    except (LookupError, ValueError, RecursionError) as error:
        code, problem = 2, str(error)
    except OSError as error:
        code, problem = 3 if isinstance(error, TimeoutError) else 4, str(error)
    logger.error("error: %s", " ".join(problem.split()))
    sys.exit(code)


if __name__ == "__main__":
    main()
