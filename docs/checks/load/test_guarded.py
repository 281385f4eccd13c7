"""Lessons 10 to 12 against a server with a password, and one with a certificate of its own."""

import re
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from machinery import NAME, Server, run, script, server, serving
from pages import table_keys
from pytest_httpserver import HTTPServer
from werkzeug.serving import make_ssl_devcert

pytestmark = pytest.mark.timeout(300)  # most of it is waiting, on a busy machine


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """Return a server that wants a password, with a deployment that nothing serves."""
    with server(PREFECT_SERVER_API_AUTH_STRING="admin:sesame") as running:
        running.deploy()
        yield running


def test_who_gets_past_the_password(guarded: Server, compare: Callable[..., None]) -> None:
    passwords = {"right": "admin:sesame", "wrong": "admin:wrong", "none": ""}
    seen = {}
    for command in table_keys("password"):
        words = command.removeprefix("python ").replace("prefect ", "-m prefect ").split()
        words = [guarded.deployment()["id"] if it == "ID" else it for it in words]
        cells = []
        for password in passwords.values():
            url = guarded.api_url
            result = run(*words, PREFECT_API_URL=url, PREFECT_API_AUTH_STRING=password)
            printed = result.stdout + result.stderr
            assert not re.search("sesame|wrong", printed), f"a password is shown: {printed}"
            status = "".join(re.findall(r"\b401\b", printed)[:1])
            cells.append(f"{result.returncode}, {status}".rstrip(", "))
        seen[command] = tuple(cells)
    compare("password", seen)


def test_csrf_protection_is_reported_in_the_servers_words(tmp_path: Path) -> None:
    with (
        server(PREFECT_SERVER_CSRF_PROTECTION_ENABLED="true") as protected,
        serving(protected.api_url, script("09"), tmp_path / "09.log"),  # Prefect's client does it
    ):
        result = run(script("12"), NAME, PREFECT_API_URL=protected.api_url)
    assert result.returncode == 4, f"expected exit code 4: {result.stderr}"
    assert "returned 403 (Missing CSRF token" in result.stderr, f"got: {result.stderr}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return a file with a certificate for localhost that nobody has signed, and its key's."""
    return make_ssl_devcert(str(tmp_path_factory.mktemp("certificate") / "own"), "localhost")


TRUSTED = {"PREFECT_API_SSL_CERT_FILE": "own"}
CERTIFICATES = [
    ({}, "certificate verify failed: self-signed certificate"),
    ({"REQUESTS_CA_BUNDLE": "own"}, "certificate verify failed: self-signed certificate"),
    ({"PREFECT_API_SSL_CERT_FILE": "/no/such/file"}, "/no/such/file"),
    (TRUSTED, ""),
    (TRUSTED | {"REQUESTS_CA_BUNDLE": certifi.where()}, ""),
    ({"PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "true"}, ""),
]


@pytest.mark.parametrize(("settings", "words"), CERTIFICATES)
def test_the_certificate_is_checked_as_the_settings_say(
    certificate: tuple[str, str], settings: dict[str, str], words: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    state = {"type": "SCHEDULED", "name": "Scheduled"}
    answer: Any = {"id": "1", "deployment_id": "1", "name": "a-run", "state": state}
    own: Any = {it: value.replace("own", certificate[0]) for it, value in settings.items()}
    with HTTPServer("localhost", 0, ssl_context=context) as https:
        https.expect_request(re.compile(".*")).respond_with_json(answer)
        started = time.monotonic()
        result = run(script("12"), NAME, PREFECT_API_URL=https.url_for("/api"), **own)
    assert result.returncode == (4 if words else 0), result.stderr
    assert words in result.stderr, f"expected {words!r}, got: {result.stderr}"
    assert time.monotonic() - started < 60, "an untrusted certificate is retried"
