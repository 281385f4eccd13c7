"""Lessons 10 to 12 against servers that want something: credentials, a certificate, a header."""

import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from faults import deploy, forward, trigger
from machinery import NAME, Server, run, script, server, serving
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

pytestmark = pytest.mark.timeout(300)  # most of it is waiting, on a busy machine

LOGIN = {"PREFECT_API_AUTH_STRING": "admin:sesame"}
WRONG = {"PREFECT_API_AUTH_STRING": "admin:wrong"}


@pytest.fixture(scope="session", autouse=True)
def harness() -> None:
    """Take the place of the harness: no check here runs a flow in this process."""


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Server, str]]:
    """Return a server that wants credentials, and the id of a deployment that waits on it."""
    with server(PREFECT_SERVER_API_AUTH_STRING="admin:sesame") as running:
        yield running, deploy(running.api_url, ("admin", "sesame"))


def test_credentials_right_wrong_and_missing(guarded: tuple[Server, str]) -> None:
    api_url = guarded[0].api_url
    right, wrong, missing = (trigger(api_url, **settings) for settings in (LOGIN, WRONG, {}))
    assert (right.returncode, wrong.returncode, missing.returncode) == (0, 4, 4)
    for result in (wrong, missing):
        expected = r"error: .* returned 401 .*Unauthorized.*\. Check PREFECT_API_KEY or .*\n"
        assert re.fullmatch(expected, result.stderr), f"expected one clear line: {result.stderr}"
        assert result.stdout == "", "stdout is for the id only"
    assert not re.search("sesame|wrong", right.stderr + wrong.stderr), "a credential is shown"


@pytest.mark.parametrize("number", ["10", "11"])
def test_lessons_10_and_11_send_no_credentials(guarded: tuple[Server, str], number: str) -> None:
    settings: Any = LOGIN | {"PREFECT_API_URL": guarded[0].api_url}
    result = run(script(number), guarded[1] if number == "10" else NAME, **settings)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.search(r"returned 401 .*Unauthorized", result.stderr), f"got: {result.stderr}"


def test_csrf_protection_is_reported_in_the_servers_words(tmp_path: Path) -> None:
    with (
        server(PREFECT_SERVER_CSRF_PROTECTION_ENABLED="true") as protected,
        serving(protected.api_url, script("09"), tmp_path / "09.log"),  # Prefect's client does it
    ):
        result = trigger(protected.api_url)
    assert result.returncode == 4, f"expected exit code 4: {result.stderr}"
    assert "returned 403 (Missing CSRF token" in result.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and a certificate for localhost that nobody has signed."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate")
    file = tmp_path_factory.mktemp("certificate") / "localhost.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {file} -out {file}.crt"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *name], check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


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
    guarded: tuple[Server, str], certificate: Path, settings: dict[str, str], words: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with HTTPServer("localhost", 0, ssl_context=context) as proxy:
        handler = proxy.expect_request(re.compile(".*"))
        handler.respond_with_handler(lambda request: forward(request, guarded[0]))
        own = {name: value.replace("own", str(certificate)) for name, value in settings.items()}
        started = time.monotonic()
        result = trigger(proxy.url_for("/api"), **LOGIN, **own)
    assert result.returncode == (4 if words else 0), result.stderr
    assert words in result.stderr
    assert time.monotonic() - started < 60, "an untrusted certificate is retried"


def test_custom_headers_are_sent_to_a_proxy(
    guarded: tuple[Server, str], httpserver: HTTPServer
) -> None:
    def proxy(request: Request) -> Response:
        admitted = request.headers.get("X-Team") == "churn"
        return forward(request, guarded[0]) if admitted else Response("no team, no entry", 403)

    httpserver.expect_request(re.compile(".*")).respond_with_handler(proxy)
    api_url, headers = (
        httpserver.url_for("/api"),
        {"PREFECT_CLIENT_CUSTOM_HEADERS": '{"X-Team": "churn"}'},
    )
    result = trigger(api_url, **LOGIN, **headers)
    assert result.returncode == 0, result.stderr
    refused = trigger(api_url, **LOGIN).stderr
    assert "returned 403 (no team, no entry)" in refused, f"expected the proxy's words: {refused}"
