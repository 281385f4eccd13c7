"""Lessons 10 to 12 against a real server that wants a password, is busy, or is killed.

`TRIGGERS=200 pytest docs/checks/load -k eight` is the load at its full size.
"""

import importlib
import os
import re
import signal
import ssl
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
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

PROCESSES = 8
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


def trigger_all(pool: ThreadPoolExecutor, at: Server, keys: list[str], *options: str) -> Any:
    """Start a process of lesson 12 for each key; return an iterator of how they ended."""
    settings: Any = {"PREFECT_API_URL": at.api_url, "PREFECT_API_AUTH_STRING": LOGIN}

    def trigger(key: str) -> CompletedProcess[str]:
        one_event = ("--idempotency-key", key)
        return run(script("12"), NAME, *one_event, *options, seconds=600, **settings)

    return pool.map(trigger, keys)


def flow_runs(at: Server, keys: list[str]) -> list[Any]:
    """Return the flow runs with these idempotency keys."""
    chosen = {"idempotency_key": {"any_": keys}}
    return list(at.ask("POST", "/flow_runs/filter", flow_runs=chosen))


def assert_one_run_for_each(
    at: Server, keys: list[str], results: list[CompletedProcess[str]]
) -> None:
    """Check that every process exited 0, and printed the id of the one flow run of its key."""
    failed = [result.stderr for result in results if result.returncode]
    assert failed == [], f"{len(failed)} of {len(results)} triggers were given up"
    printed = sorted({(key, it.stdout.strip()) for key, it in zip(keys, results, strict=True)})
    stored = sorted((run["idempotency_key"], run["id"]) for run in flow_runs(at, keys))
    assert stored == printed, "not one flow run for each key, whose id was printed"


def test_a_restart_of_the_server_costs_time_and_no_trigger(guarded: Server, tmp_path: Path) -> None:
    keys = [str(uuid.uuid4()) for _ in range(4)]
    settings: Any = {"PREFECT_API_URL": guarded.api_url, "PREFECT_API_AUTH_STRING": LOGIN}
    with ThreadPoolExecutor(4) as pool:
        before = trigger_all(pool, guarded, keys[:2], "--wait", "--timeout=500")
        wait_until("a trigger arrived", lambda: flow_runs(guarded, keys), 60)
        guarded.stop(signal.SIGKILL)
        meanwhile = trigger_all(pool, guarded, keys[2:], "--wait", "--timeout=500")
        guarded.start()
        with background(script("09"), log=tmp_path / "log", **settings):
            results = [*before, *meanwhile]
            # Now, for the end of serving cancels a run whose process has not ended yet.
            ended = [guarded.state(result.stdout.strip()) for result in results]
    assert_one_run_for_each(guarded, keys, results)
    assert ended == ["Completed"] * 4, "--wait exits 0 before the run completes"


def test_eight_processes_at_a_time_lose_nothing_and_double_nothing(guarded: Server) -> None:
    keys = [str(uuid.uuid4()) for _ in range(TRIGGERS // 2)] * 2  # each is asked for twice
    with ThreadPoolExecutor(PROCESSES) as pool:
        results = list(trigger_all(pool, guarded, keys))
    assert_one_run_for_each(guarded, keys, results)


def test_threads_of_one_program_lose_nothing_and_double_nothing(
    guarded: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", LOGIN)
    trigger = importlib.import_module(script("12").stem).trigger
    users = [101, 102, 103] * 5
    with ThreadPoolExecutor(PROCESSES) as pool:
        runs = list(
            pool.map(lambda it: trigger(NAME, {"user_id": it}, api_url=guarded.api_url), users)
        )
    assert [run["parameters"]["user_id"] for run in runs] == users
    assert len({run["id"] for run in runs}) == 15, "two calls got the same flow run"


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


TRUSTED = {"PREFECT_API_SSL_CERT_FILE": "own"}
CERTIFICATES: list[tuple[dict[str, str], str]] = [  # settings, and the problem
    ({}, "certificate verify failed: self-signed certificate"),
    ({"REQUESTS_CA_BUNDLE": "own"}, "certificate verify failed: self-signed certificate"),
    ({"PREFECT_API_SSL_CERT_FILE": "/no/such/file"}, "/no/such/file"),
    (TRUSTED, ""),
    (TRUSTED | {"REQUESTS_CA_BUNDLE": certifi.where()}, ""),
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
