"""How a service is asked, and what it may answer.

There is no Prefect in here: tests/test_services.py tries it over a real socket, without a flow.
"""

import os
import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, TypeVar

import requests
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError
from requests.exceptions import SSLError
from urllib3.exceptions import HTTPError  # a body that is cut off, or silent for too long

TIMEOUT_SECONDS = 10  # to connect, and from one byte of an answer to the next
TOTAL_SECONDS = 30  # for the whole body, however slowly it trickles (headers have no such limit)
RETRY_AFTER_LIMIT = 60  # seconds: wait as long as a service asks, but no longer than this
# 500 is not among them: a bug in a service outlasts a retry. 520 to 524 are Cloudflare's.
TRANSIENT_STATUSES = {408, 425, 429, 502, 503, 504, *range(520, 525)}
TRANSIENT_ERRORS = (requests.ConnectionError, requests.Timeout, HTTPError)


class ServiceError(Exception):
    """A service refused, or its answer cannot be used: a retry cannot help."""


class OutageError(Exception):
    """A service is unreachable or busy: a retry can help, after `retry_after` seconds or more."""

    retry_after = 0.0


class Answer(BaseModel):
    """What a service answers. A missing field or another type is an error, never converted."""

    model_config = ConfigDict(strict=True)


class User(Answer):
    """The answer of GET /user/ID."""

    user_id: int
    name: Annotated[str, Field(min_length=1)]


class Balance(Answer):
    """The answer of GET /balance/ID, in dollars."""

    balance: FiniteFloat


class Activity(Answer):
    """The answer of GET /activity/ID: the logins per week of the last four weeks."""

    logins: Annotated[list[NonNegativeInt], Field(min_length=4, max_length=4)]


class Receipt(Answer):
    """The answer of POST /message/ID."""

    message_id: Annotated[str, Field(min_length=1)]


AnswerT = TypeVar("AnswerT", bound=Answer)


def request_json(path: str, answer_type: type[AnswerT], body: Any = None, key: str = "") -> AnswerT:
    """Return the checked answer to a GET, or to a POST of the body under the idempotency key.

    The path follows SERVICE_URL; SERVICE_TOKEN, if it is set, is sent as a bearer token.
    Raises OutageError if a retry can help, and ServiceError if not. Both say what came from where.
    """
    base = os.environ.get("SERVICE_URL", "").strip()
    token = os.environ.get("SERVICE_TOKEN", "").strip()
    if not base.startswith(("http://", "https://")):
        raise ServiceError("SERVICE_URL is not set to an address such as http://127.0.0.1:8000")
    method, url = "GET" if body is None else "POST", f"{base.rstrip('/')}/{path}"
    headers = {"Idempotency-Key": key} if key else {}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}

    def report(what: object) -> str:
        """Return one line that names the request, without a password or token in it."""
        line = re.sub(r"//[^/\s]*@", "//", " ".join(f"{method} {url}: {what}".split()))
        return line.replace(token, "***") if token else line

    content, deadline = bytearray(), time.monotonic() + TOTAL_SECONDS
    try:
        with requests.request(
            method,
            url,
            json=body,
            headers=headers,
            timeout=TIMEOUT_SECONDS,
            allow_redirects=False,  # requests would follow a redirected POST with a GET
            stream=True,
        ) as response:
            # read1 returns what has arrived, so the deadline counts for a slow body, too.
            while part := response.raw.read1(65_536, decode_content=True):
                content += part
                if time.monotonic() > deadline:
                    raise requests.Timeout(f"no complete answer within {TOTAL_SECONDS} s")
    except TRANSIENT_ERRORS as error:
        reason = report(getattr(error.args[0], "reason", error))
        # A certificate stays untrusted; EOF is a connection that was cut.
        if isinstance(error, SSLError) and "EOF" not in reason:
            raise ServiceError(reason) from None
        raise OutageError(reason) from None
    except (requests.RequestException, ValueError) as error:
        reason = f"{type(error).__name__}. Is SERVICE_URL or SERVICE_TOKEN malformed?"
        raise ServiceError(report(reason)) from None

    came = f"{response.status_code} {response.reason}: {content[:300].decode(errors='replace')!r}"
    in_progress = bool(key) and response.status_code == 409  # an earlier attempt is not done yet
    if in_progress or response.status_code in TRANSIENT_STATUSES:
        outage = OutageError(report(came))
        outage.retry_after = read_retry_after(response.headers.get("Retry-After", ""))
        raise outage
    if 300 <= response.status_code < 400:
        location = response.headers.get("Location", "nowhere")
        raise ServiceError(report(f"redirected to {location}, {came}"))
    if response.status_code >= 400:
        raise ServiceError(report(came))
    try:
        return answer_type.model_validate_json(bytes(content))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}" for e in error.errors()[:3])
        raise ServiceError(
            report(f"not the answer of {answer_type.__name__}: {wrong}. {came}")
        ) from None


def read_retry_after(value: str) -> float:
    """Return the seconds, up to the limit, that a Retry-After header asks for; 0 if it is none."""
    try:
        if value.isdecimal():
            seconds = float(value)
        else:  # a date
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        seconds = 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_LIMIT)
