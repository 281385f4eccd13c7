"""Trigger a deployment by its name, made for production: no trigger lost, none sent twice.

Run:    python 12_trigger_deployment_by_id_name_lookup.py user-flow/user-deployment --wait
Notice: the flow run's states go to stderr, its id to stdout, its outcome into the exit code.
A program imports this file and calls `trigger`, which prints nothing and never exits.
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
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

import requests

DEFAULT_API_URL = "http://127.0.0.1:4200/api"
TIMEOUT_SECONDS = 300  # for all of it: look up, trigger, wait
REQUEST_SECONDS = 30  # for one answer: a server whose SQLite is busy is slow
BACKOFF_SECONDS = 0.2  # before the second attempt, at most; then twice that, and so on, ...
BACKOFF_MAX_SECONDS = 8  # ... up to this
QUIET_SECONDS = 5  # trouble that lasts longer is told
POLL_SECONDS = 1
TRANSIENT = (429, 500, 502, 503, 504)  # 503: SQLite is busy; 500: PostgreSQL is away

Json = dict[str, Any]
logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())  # silent, unless the program that imports us logs


def make_session(api_url: str) -> requests.Session:
    """Return a session with the settings that Prefect's own client reads from the environment."""
    if "@" in api_url:
        raise ValueError("An API URL carries no credentials: set PREFECT_API_AUTH_STRING")
    setting = os.environ.get
    session = requests.Session()
    session.auth = lambda request: request  # or a .netrc would be read
    key = setting("PREFECT_API_KEY", "").strip()
    if login := setting("PREFECT_API_AUTH_STRING"):
        key = base64.b64encode(os.fsencode(login)).decode()
    if key:
        session.headers["Authorization"] = f"{'Basic' if login else 'Bearer'} {key}"
    try:
        custom = json.loads(setting("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}")
        session.headers.update({name: value.strip() for name, value in custom.items()})
    except (AttributeError, ValueError):
        raise ValueError("PREFECT_CLIENT_CUSTOM_HEADERS is no JSON object of text") from None
    sent = "".join([key, *custom, *custom.values()])
    if not (sent.isascii() and sent.isprintable()):
        raise ValueError("PREFECT_API_KEY or PREFECT_CLIENT_CUSTOM_HEADERS has odd characters")
    local = urlsplit(api_url).hostname in ("127.0.0.1", "localhost", "::1")
    if "Authorization" in session.headers and api_url.startswith("http://") and not local:
        logger.warning("Warning: http:// sends the credentials unencrypted; use https://")
    session.verify = setting("PREFECT_API_SSL_CERT_FILE") or setting("SSL_CERT_FILE") or True
    if setting("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() in ("1", "true"):
        session.verify = False
    return session


def cause_of(error: BaseException) -> BaseException:
    """Return what is at the bottom of an error of requests, such as ConnectionRefusedError."""
    inner = [each for each in (error.__cause__, *error.args) if isinstance(each, BaseException)]
    return cause_of(inner[0]) if inner else error


def read_answer(response: requests.Response) -> tuple[Any, str]:
    """Return the answer's JSON, or None, and the server's own words: a line, no credentials."""
    answer, words = None, "" if "<" in response.text else response.text  # HTML is no line
    with suppress(ValueError):
        answer = response.json()
    if isinstance(answer, dict):
        names = ("detail", "exception_detail", "exception_message")
        words = next((str(answer[name]) for name in names if answer.get(name)), words)
    for setting in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"):
        if secret := os.environ.get(setting, "").strip():
            words = words.replace(secret, setting)
    return answer, " ".join(words.split())[:500] or response.reason


def call_api(
    session: requests.Session, url: str, deadline: float, body: Any = None, kind: type = dict
) -> tuple[int, Any]:
    """Return status and JSON (of that kind) of the answer to a GET, or to a POST of the body.

    What may pass is tried again until the deadline, a `time.monotonic()`; then TimeoutError is
    raised. Other errors are those of `trigger`.
    """
    quiet_until, backoff = time.monotonic() + QUIET_SECONDS, BACKOFF_SECONDS
    while True:
        pause = random.uniform(0, backoff)  # or all clients come back together, and collide again
        options: Any = {"json": body, "allow_redirects": False}
        options["timeout"] = min(REQUEST_SECONDS, max(0.1, deadline - time.monotonic()))
        options["verify"] = session.verify  # told here, or REQUESTS_CA_BUNDLE would win
        try:
            response = session.request("GET" if body is None else "POST", url, **options)
        except ValueError as error:
            raise ValueError(f"{error}; an API URL is like {DEFAULT_API_URL}") from None
        except requests.RequestException as error:
            cause = cause_of(error)
            trouble = f"No answer from {url} ({type(error).__name__}: {cause})"
            if isinstance(cause, ssl.SSLCertVerificationError):
                trouble += "; PREFECT_API_SSL_CERT_FILE names certificates to trust"
            if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
                raise ConnectionError(trouble) from None
            if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
                raise ConnectionError(trouble) from None  # a typing error, most often
        else:
            status, (answer, words) = response.status_code, read_answer(response)
            trouble = f"{url} answers {status}: {words}"
            if status not in TRANSIENT:
                break
            if (after := response.headers.get("Retry-After", "")).isdecimal():
                pause = max(pause, int(after))
        if (now := time.monotonic()) >= deadline:
            raise TimeoutError(trouble)
        if now >= quiet_until:
            logger.warning("%s; trying again for up to %.0f s", trouble, deadline - now)
            quiet_until = deadline
        time.sleep(min(pause, deadline - now))
        backoff = min(2 * backoff, BACKOFF_MAX_SECONDS)
    if status in (401, 403):
        sent = "Authorization" in response.request.headers
        hint = "other credentials" if sent else "PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
        hint = "CSRF protection, which this program does not do" if "CSRF" in words else hint
        raise PermissionError(f"{trouble} (it wants {hint})")
    names = set(answer) if isinstance(answer, dict) else set()
    if 400 <= status < 500 and {"detail", "exception_message"} & names and words != "Not Found":
        raise LookupError(words) if status == 404 else ValueError(words)
    if status >= 300 or not isinstance(answer, kind) or (kind is dict and "id" not in names):
        raise ConnectionError(f"{trouble[:300]} (that is no Prefect API: its URL ends in /api)")
    return status, answer


def check(what: str, value: Any) -> None:
    """Raise ValueError for what cannot be sent as it is: no JSON, no valid Unicode, or a NUL."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON with valid Unicode: {error}") from None
    if r"\u0000" in text.replace(r"\\", ""):
        raise ValueError(f"{what} has a NUL character, which PostgreSQL does not take")


def get_deployment(session: requests.Session, api_url: str, name: str, deadline: float) -> Json:
    """Return the deployment with this name; raise LookupError with near names if there is none."""
    path = "/".join(quote(part, safe="") for part in name.split("/"))
    with suppress(LookupError):
        return dict(call_api(session, f"{api_url}/deployments/name/{path}", deadline)[1])
    near: list[str] = []
    with suppress(OSError, LookupError, ValueError):  # near names are a help, no more
        _, flows = call_api(session, f"{api_url}/flows/filter", deadline, {}, list)
        _, others = call_api(session, f"{api_url}/deployments/filter", deadline, {}, list)
        flow_names = {flow["id"]: flow["name"] for flow in flows}
        names = [f"{flow_names.get(other['flow_id'])}/{other['name']}" for other in others]
        near = difflib.get_close_matches(name, names)
    hint = " or ".join(near) or "`prefect deployment ls`"
    raise LookupError(f"There is no deployment with the name {name!r}; see {hint}")


def check_names(parameters: Json, deployment: Json) -> None:
    """Raise ValueError for a parameter that the flow lacks: the API takes it, and the run fails."""
    schema = deployment.get("parameter_openapi_schema") or {}
    accepted = list(schema.get("properties", parameters))
    for name in set(parameters).difference(accepted):
        near = difflib.get_close_matches(str(name), accepted, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"There is no parameter {name!r}; {hint}The flow accepts {accepted}")


def check_flow_run(flow_run: Json, deployment: Json, parameters: Json, key: str) -> None:
    """Raise ValueError for the flow run of a key that was used for something else."""
    # The server adds the deployment's defaults, and fills in its own variables and templates.
    asked = json.dumps({**(deployment.get("parameters") or {}), **parameters})
    has = json.dumps(flow_run.get("parameters"))
    same = json.loads(has, parse_int=float) == json.loads(asked, parse_int=float)  # 1e23 is 10**23
    ours = flow_run.get("deployment_id") == deployment["id"]
    if not ours or not (same or "__prefect_kind" in asked):
        other = "other parameters" if ours else "another deployment"
        told = f"The key {key!r} was used before, for {other}: flow run {flow_run['id']}"
        raise ValueError(f"{told}. Another event needs another key")


def wait_for(session: requests.Session, api_url: str, flow_run_id: str, deadline: float) -> Json:
    """Log each state of the flow run, with its time; return the flow run when it has ended."""
    url, seen = f"{api_url}/flow_run_states/?flow_run_id={flow_run_id}", 0
    while True:
        _, states = call_api(session, url, deadline, kind=list)
        for state in states[seen:]:
            at = datetime.fromisoformat(state["timestamp"])
            logger.info("%s %s", f"{at:%H:%M:%S %Z}", state["name"])
        seen = len(states)
        if not states or states[-1]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return dict(call_api(session, f"{api_url}/flow_runs/{flow_run_id}", deadline)[1])
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError(f"The flow run {flow_run_id} goes on; it is {states[-1]['name']}")
        time.sleep(min(POLL_SECONDS, left))


def trigger(
    name: str,
    parameters: Json | None = None,
    *,
    idempotency_key: str | None = None,
    wait: bool = False,
    timeout: float = TIMEOUT_SECONDS,
    api_url: str | None = None,
    scheduled: Callable[[Json], object] = lambda flow_run: None,
) -> Json:
    """Schedule a run of the deployment FLOW/DEPLOYMENT; return the flow run as the API tells it.

    `parameters` are what JSON takes: text, numbers, booleans, None, lists, dicts. A date is text.
    One `idempotency_key` is one flow run, however often you ask; without it each call is a new one.
    With `wait` it returns when the run has ended: see `["state"]["type"]`, such as COMPLETED; the
    function `scheduled` gets the flow run before that. `timeout` is in seconds, for everything.
    Threads may call `trigger` at the same time: each call has a session of its own.

    Raises ValueError for what is refused, LookupError for no such deployment, PermissionError for
    credentials, TimeoutError for a run that goes on, and else an OSError (ConnectionError).
    """
    if api_url is None:
        api_url = os.environ.get("PREFECT_API_URL") or DEFAULT_API_URL
    api_url, parameters = api_url.rstrip("/"), parameters or {}
    key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
    for what, value in {"The name": name, "The key": key, "The API URL": api_url}.items():
        check(what, value)
    for parameter, value in parameters.items():
        check(f"Parameter {parameter!r}", {parameter: value})
    parts = name.split("/")
    if len(parts) != 2 or {"", ".", ".."} & set(parts):
        raise ValueError(f"A name is FLOW/DEPLOYMENT, as user-flow/user-deployment, not {name!r}")
    if not key or not timeout > 0:
        raise ValueError(f"A key is not empty, a timeout above 0; not {key!r}, {timeout}")
    deadline = time.monotonic() + timeout
    with make_session(api_url) as session:
        try:
            deployment = get_deployment(session, api_url, name, deadline)
            check_names(parameters, deployment)
            url = f"{api_url}/deployments/{deployment['id']}/create_flow_run"
            body = {"parameters": parameters, "idempotency_key": key}
            status, flow_run = call_api(session, url, deadline, body)
        except TimeoutError as error:
            raise ConnectionError(f"{error}; ask again with the idempotency key {key}") from None
        check_flow_run(flow_run, deployment, parameters, key)
        if deployment.get("status") == "NOT_READY":
            logger.warning("%s is NOT_READY: nothing has asked for its flow runs of late", name)
        told = "Scheduled" if status == 201 else f"Scheduled before, under the key {key}"
        logger.info("%s: %s", told, flow_run["name"])
        if api_url.endswith("/api"):  # Prefect Cloud has its web page elsewhere
            logger.info("%s/v2/runs/flow-run/%s", api_url.removesuffix("/api"), flow_run["id"])
        scheduled(flow_run)
        return wait_for(session, api_url, flow_run["id"], deadline) if wait else flow_run


def parse_parameters(pairs: list[str]) -> Json:
    """Return KEY=VALUE pairs as parameters, each VALUE read as JSON if it is, else as text."""
    parameters: Json = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals or key in parameters:
            raise ValueError(f"-p takes KEY=VALUE, each KEY once, as user_id=102, not {pair!r}")
        try:
            parameters[key] = json.loads(value, parse_constant=int)  # int("NaN"): that is no JSON
        except ValueError:
            parameters[key] = value
    return parameters


def main() -> None:
    """Read the command line, trigger, print the flow run's id, and wait if asked to."""
    parser = argparse.ArgumentParser(description="Trigger a deployment by its name.")
    add = parser.add_argument
    add("name", nargs="?", default="user-flow/user-deployment", metavar="NAME")
    add("-p", "--param", action="append", default=[], metavar="KEY=VALUE")
    add("--api-url", help="default: PREFECT_API_URL, or port 4200")
    add("--idempotency-key", default=str(uuid.uuid4()), metavar="KEY", help="one run for each KEY")
    add("--wait", action="store_true", help="exit 0 only if the run completes")
    add("--timeout", type=float, default=TIMEOUT_SECONDS, metavar="SECONDS", help="default 300")
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to stderr
    try:
        parameters = parse_parameters(options.pop("param"))
        name, show = options.pop("name"), lambda run: print(run["id"], flush=True)
        state = trigger(name, parameters, scheduled=show, **options)["state"]
        if options["wait"] and state["type"] != "COMPLETED":
            sys.exit(f"{state['name']}: {' '.join(str(state['message']).split())}")
    except KeyboardInterrupt:
        logger.error("Interrupted; what was triggered goes on: key %s", options["idempotency_key"])
        sys.exit(130)
    except (OSError, LookupError, ValueError, RecursionError) as error:
        hint = "; text has quotes: -p KEY='\"12345\"'" if "of type 'string'" in str(error) else ""
        logger.error("%s%s", " ".join(str(error).split()), hint)
        sys.exit(3 if isinstance(error, TimeoutError) else 1)


if __name__ == "__main__":
    main()
