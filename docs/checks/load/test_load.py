"""Lessons 10 to 12 against a real server that wants a password, is busy, or is killed.

`TRIGGERS=200 pytest docs/checks/load -k threads` is the load at its full size.
"""

import os
import re
import signal
import ssl
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import certifi
import pytest
from machinery import NAME, Server, background, run, script, server
from pages import Compare
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from pytest_httpserver import HTTPServer
from recorded import wait_until
from werkzeug.serving import make_ssl_devcert

TRIGGERS = int(os.environ.get("TRIGGERS", "32"))
pytestmark = pytest.mark.timeout(600 + 5 * TRIGGERS)  # most of it is waiting, on a busy machine

lesson = import_module(script("12").stem)
LOGIN = "admin:sesame"
PASSWORDS = (LOGIN, "admin:wrong", "")
COMMANDS = ["prefect work-pool ls"] + [f"python {script(it).name}" for it in ("12", "11", "10")]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """Return a server that wants a password, on SQLite, with a deployment that nothing serves."""
    with server(PREFECT_SERVER_API_AUTH_STRING=LOGIN) as running:
        running.deploy()
        yield running


def test_who_gets_past_the_password(guarded: Server, compare: Compare) -> None:
    rows = []
    for command in (*COMMANDS[:3], f"{COMMANDS[3]} ID"):
        words = command.replace("ID", guarded.deployment()["id"]).replace("prefect ", "-m prefect ")
        cells = []
        for password in PASSWORDS:
            settings: Any = {"PREFECT_API_AUTH_STRING": password}
            program = words.removeprefix("python ").split()
            result = run(*program, PREFECT_API_URL=guarded.api_url, **settings)
            printed = result.stdout + result.stderr
            assert not re.search("sesame|wrong", printed), f"a password is shown: {printed}"
            cells.append(f"{result.returncode}, 401" if "401" in printed else result.returncode)
        rows.append((f"`{command}`", *cells))
    compare("password", ("Command", "Right password", "Wrong password", "No password"), rows)


# --- no trigger is lost, none is sent twice


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return half as many idempotency keys as triggers: each is to be used twice."""
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", LOGIN)
    return [str(uuid.uuid4()) for _ in range(TRIGGERS // 2)]


def trigger(at: Server, key: str) -> Any:
    """Trigger with lesson 12, which may take ten minutes; return the flow run."""
    return lesson.trigger(NAME, idempotency_key=key, api_url=at.api_url, timeout=600)


def stored(at: Server, keys: list[str]) -> set[tuple[str, str]]:
    """Return key and id of each flow run with one of these idempotency keys."""
    chosen = {"idempotency_key": {"any_": keys}}
    found = at.ask("POST", "/flow_runs/filter", flow_runs=chosen)
    assert len({it["idempotency_key"] for it in found}) == len(found), "two flow runs have one key"
    return {(it["idempotency_key"], it["id"]) for it in found}


def test_a_restart_of_the_server_costs_time_and_no_trigger(
    guarded: Server, keys: list[str], tmp_path: Path
) -> None:
    def follow(key: str) -> Any:
        return lesson.wait_for_flow_run(trigger(guarded, key), 600, guarded.api_url)

    settings: Any = {"PREFECT_API_URL": guarded.api_url, "PREFECT_API_AUTH_STRING": LOGIN}
    with ThreadPoolExecutor(4) as pool:
        before = pool.map(follow, keys[:2])
        wait_until("a trigger arrived", lambda: stored(guarded, keys), 60)
        guarded.stop(signal.SIGKILL)
        meanwhile = pool.map(follow, keys[2:4])
        guarded.start()
        with background(script("09"), log=tmp_path / "log", **settings):
            runs = [*before, *meanwhile]
    assert stored(guarded, keys) == {*zip(keys, (run["id"] for run in runs), strict=False)}
    ended = [run["state"]["name"] for run in runs]
    assert ended == ["Completed"] * 4, "it follows a run no further than to another state"


def test_eight_threads_lose_nothing_and_double_nothing(guarded: Server, keys: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda key: trigger(guarded, key)["id"], keys * 2))
    assert stored(guarded, keys) == {*zip(keys * 2, ids, strict=True)}, "not one run for each key"


# --- what else a server may want


def test_csrf_protection_is_reported_in_the_servers_words() -> None:
    with server(PREFECT_SERVER_CSRF_PROTECTION_ENABLED="true") as protected:

        @flow
        def guarded_flow() -> None: ...

        with temporary_settings({PREFECT_API_URL: protected.api_url}):  # Prefect's client does it
            deployment: Any = guarded_flow.to_deployment("d")
            deployment.apply()
        result = run(script("12"), "guarded-flow/d", PREFECT_API_URL=protected.api_url)
    assert result.returncode == 4, f"expected exit code 4: {result.stderr}"
    assert "returned 403 (Missing CSRF token" in result.stderr, f"got: {result.stderr}"


OWN = {"PREFECT_API_SSL_CERT_FILE": "own"}
CERTIFICATES: list[tuple[dict[str, str], str]] = [  # settings, and the problem
    ({}, "certificate verify failed: self-signed certificate"),
    ({"REQUESTS_CA_BUNDLE": "own"}, "certificate verify failed: self-signed certificate"),
    ({"PREFECT_API_SSL_CERT_FILE": "/no/such/file"}, "/no/such/file"),
    (OWN | {"REQUESTS_CA_BUNDLE": certifi.where()}, ""),
    ({"PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "true"}, ""),
]


@pytest.mark.parametrize(("settings", "problem"), CERTIFICATES)
def test_the_certificate_is_checked_as_the_settings_say(
    tmp_path: Path, settings: dict[str, str], problem: str
) -> None:
    own = make_ssl_devcert(str(tmp_path / "own"), "localhost")  # which nobody has signed
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*own)
    state = {"type": "SCHEDULED", "name": "Scheduled"}
    answer: Any = {"id": "1", "deployment_id": "1", "name": "a-run", "state": state}
    known: Any = {it: value.replace("own", own[0]) for it, value in settings.items()}
    with HTTPServer("localhost", 0, ssl_context=context) as https:
        https.expect_request(re.compile(".*")).respond_with_json(answer)
        # A retry would go on for longer than this waits.
        result = run(script("12"), NAME, PREFECT_API_URL=https.url_for("/api"), **known)
    assert result.returncode == (4 if problem else 0), result.stderr
    assert problem in result.stderr, f"expected {problem!r}, got: {result.stderr}"
