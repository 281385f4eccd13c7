"""A web service that triggers the pipeline: POST /churn/USER_ID with an Idempotency-Key header.

Try it: REMOTE_USER=me python -m deploy.web     (in the folder of trigger.py; port 8080)
        curl -X POST -H 'Idempotency-Key: order-1' http://127.0.0.1:8080/churn/101
Use it: any WSGI server runs `deploy.web:application`.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import make_server

from trigger import trigger

DEPLOYMENT = "churn-flow/nightly"
TIMEOUT_SECONDS = 20  # less than your callers and your proxy wait

logger = logging.getLogger(__name__)


def handle(caller: str, user_id: int, key: str) -> tuple[str, dict[str, str]]:
    """Trigger one run for the caller; return the HTTP status and the answer.

    The key is the caller's name for the event: sent again, it returns the same run. An error goes
    to the log. The caller gets general words, without names, addresses or another caller's run.

    It blocks for up to TIMEOUT_SECONDS. In an async framework, FastAPI for one, call it with
    `await asyncio.to_thread(handle, caller, user_id, key)`.
    """
    try:
        # As JSON, the two cannot run together, so no caller can use another caller's key.
        own_key = json.dumps([caller, key])
        run = trigger(
            DEPLOYMENT, {"user_id": user_id}, idempotency_key=own_key, timeout=TIMEOUT_SECONDS
        )
    except ValueError as error:
        logger.error("Refused: caller %r, user %s, key %r: %s", caller, user_id, key, error)
        return "409 Conflict", {"error": "Refused. Each event needs a separate Idempotency-Key."}
    except (OSError, LookupError) as error:
        logger.error("Not triggered: caller %r, user %s, key %r: %s", caller, user_id, key, error)
        again = "Temporarily unavailable. Retry later with the same Idempotency-Key."
        return "503 Service Unavailable", {"error": again}
    return "202 Accepted", {"id": run["id"]}


def answer_for(environ: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Check the request and handle it; return the HTTP status and the answer."""
    # REMOTE_USER is set by what authenticates: Apache, uWSGI, or middleware around `application`.
    # A header that callers can write themselves is not an identity.
    caller = environ.get("REMOTE_USER")
    user_id = re.fullmatch(r"/churn/([0-9]{1,9})", environ["PATH_INFO"])
    key = environ.get("HTTP_IDEMPOTENCY_KEY")
    if not caller:
        return "401 Unauthorized", {"error": "Log in first."}
    if not user_id:
        return "404 Not Found", {"error": "Send POST /churn/USER_ID."}
    if environ["REQUEST_METHOD"] != "POST":
        return "405 Method Not Allowed", {"error": "Send POST /churn/USER_ID."}
    if not key:
        return "400 Bad Request", {"error": "Send an Idempotency-Key header that names the event."}
    return handle(caller, int(user_id[1]), key)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer one request: this is what a WSGI server calls."""
    status, answer = answer_for(environ)
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    make_server("127.0.0.1", 8080, application).serve_forever()
