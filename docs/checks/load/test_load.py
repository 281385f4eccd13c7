"""Lessons 10 to 12 against a real server that wants a password, is busy, or has a certificate.

`TRIGGERS=200 pytest docs/checks/load -k threads` is the load at its full size.
"""

import os
import re
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from machinery import NAME, Server, run, script, server
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


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """Return a server that wants a password, on SQLite, with a deployment that nothing serves."""
    with server(PREFECT_SERVER_API_AUTH_STRING=LOGIN) as running:
        running.deploy()
        yield running


def test_who_gets_past_the_password(guarded: Server, compare: Compare) -> None:
    rows = []
    lessons = [f"python {script(it).name}" for it in ("12", "11", "10")]
    for command in ("prefect work-pool ls", *lessons[:2], f"{lessons[2]} ID"):
        words = command.replace("ID", guarded.deployment()["id"]).split()
        cells = []
        for password in (LOGIN, "admin:wrong", ""):
            settings: Any = {"PREFECT_API_AUTH_STRING": password}
            result = run(program=words, PREFECT_API_URL=guarded.api_url, **settings)
            printed = result.stdout + result.stderr
            assert not re.search("sesame|wrong", printed), f"a password is shown: {printed}"
            cells.append(f"{result.returncode}, 401" if "401" in printed else result.returncode)
        rows.append((f"`{command}`", *cells))
    compare("password", ("Command", "Right password", "Wrong password", "No password"), rows)


def test_eight_threads_and_a_restart_lose_nothing_and_double_nothing(
    guarded: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trigger(key: str) -> Any:
        options = {"idempotency_key": key, "api_url": guarded.api_url, "timeout": 600}
        return lesson.trigger(NAME, **options)["id"]

    monkeypatch.setenv("PREFECT_API_AUTH_STRING", LOGIN)
    keys = [f"key-{number}" for number in range(TRIGGERS // 2)]
    with ThreadPoolExecutor(8) as pool:
        triggers = pool.map(trigger, keys * 2)
        wait_until("one has arrived", lambda: guarded.ask("POST", "/flow_runs/count"), 60)
        guarded.process.kill()
        guarded.process.wait()
        guarded.start()
        ids = list(triggers)
    chosen = {"idempotency_key": {"any_": keys}}
    stored = guarded.ask("POST", "/flow_runs/filter", flow_runs=chosen)
    assert len(stored) == len(keys), "a trigger is lost, or two flow runs have one key"
    found = {it["idempotency_key"]: it["id"] for it in stored}
    assert ids == [found[key] for key in keys * 2], "a key has got the flow run of another one"


def test_the_certificate_is_checked_as_prefects_settings_say(tmp_path: Path) -> None:
    own = make_ssl_devcert(str(tmp_path / "own"), "localhost")  # which nobody has signed
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*own)
    state = {"type": "SCHEDULED", "name": "Scheduled"}
    answer: Any = {"id": "1", "deployment_id": "1", "name": "a-run", "state": state}
    with HTTPServer("localhost", 0, ssl_context=context) as https:
        https.expect_request(re.compile(".*")).respond_with_json(answer)
        known: Any = {"PREFECT_API_URL": https.url_for("/api"), "REQUESTS_CA_BUNDLE": own[0]}
        known["SSL_CERT_FILE"] = ""  # which this machine may have
        refused = run(script("12"), NAME, **known)  # a retry would go on for longer than this
        trusted = run(script("12"), NAME, **known, PREFECT_API_SSL_CERT_FILE=own[0])
        unchecked = run(script("12"), NAME, **known, PREFECT_API_TLS_INSECURE_SKIP_VERIFY="true")
    assert refused.returncode == 4, f"it trusts what requests trusts: {refused.stderr}"
    assert "certificate verify failed: self-signed certificate" in refused.stderr
    assert trusted.returncode == 0, f"it does not trust the setting's: {trusted.stderr}"
    assert unchecked.returncode == 0, f"it checks all the same: {unchecked.stderr}"


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
