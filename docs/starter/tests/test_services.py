"""How a service is asked: each trouble of a network, over a real socket and without a flow."""

import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

import services
from services import Activity, Answer, Balance, OutageError, Receipt, ServiceError, User

ADA = {"user_id": 101, "name": "Ada Lovelace"}


@pytest.fixture(autouse=True)
def service(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> HTTPServer:
    """Return the server that SERVICE_URL names in this test."""
    monkeypatch.setenv("SERVICE_URL", httpserver.url_for(""))
    monkeypatch.setenv("SERVICE_TOKEN", "secret-token")
    return httpserver


def ask(path: str, answer_type: type[Answer], body: Any = None) -> Answer | Exception:
    """Return the answer, or the error that is raised, whatever it is."""
    try:
        return services.request_json(path, answer_type, body)
    except Exception as error:  # noqa: BLE001 - the test says what it should have been
        return error


def test_a_lookup_returns_the_checked_answer(service: HTTPServer) -> None:
    service.expect_request("/balance/101", "GET").respond_with_json({"balance": 120.5})
    assert ask("balance/101", Balance) == Balance(balance=120.5)


def test_a_message_is_posted_with_its_body_key_and_token(service: HTTPServer) -> None:
    service.expect_request("/message/101", "POST").respond_with_json({"message_id": "m-1"})
    services.request_json("message/101", Receipt, {"message": "Ada leaves"}, "churn-101")
    request, _ = service.log[0]
    assert request.get_json(silent=True) == {"message": "Ada leaves"}, "the body is not sent"
    assert request.headers.get("Idempotency-Key") == "churn-101", (
        "the idempotency key is not sent: a second attempt would deliver a second message"
    )
    assert request.headers.get("Authorization") == "Bearer secret-token", "the token is not sent"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500, 501])
def test_a_refusal_is_final_and_quotes_the_service(service: HTTPServer, status: int) -> None:
    service.expect_request("/user/101").respond_with_json(ADA | {"detail": "closed"}, status)
    error = ask("user/101", User)
    assert isinstance(error, ServiceError), f"{status} became {error!r}: is the status checked?"
    assert f"/user/101: {status} " in str(error), f"URL and status are not named: {error}"
    assert "closed" in str(error), f"the service's own words are not shown: {error}"


@pytest.mark.parametrize("status", [408, 425, 429, 502, 503, 504, 520, 524])
def test_a_transient_status_is_an_outage(service: HTTPServer, status: int) -> None:
    service.expect_request("/user/101").respond_with_json(ADA, status, {"Retry-After": "20"})
    error = ask("user/101", User)
    assert isinstance(error, OutageError), f"{status} became {error!r}: it is worth a retry"
    assert error.retry_after == 20, "Retry-After is not honoured"


def test_a_409_to_a_key_is_an_outage(service: HTTPServer) -> None:
    service.expect_request("/message/101").respond_with_json({"detail": "in progress"}, 409)
    with pytest.raises((OutageError, ServiceError)) as error_info:
        services.request_json("message/101", Receipt, {"message": "Ada leaves"}, "churn-101")
    assert error_info.type is OutageError, (
        "the service still works on the first attempt, and the task gives up: "
        f"nobody learns whether the message was delivered ({error_info.value!r})"
    )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("body", [None, {"message": "Ada leaves"}], ids=["GET", "POST"])
def test_a_redirect_is_an_error_that_names_where_it_leads(
    service: HTTPServer, status: int, body: object
) -> None:
    headers = {"Location": "/new"}
    service.expect_request("/old").respond_with_json({"message_id": "m-1"}, status, headers)
    service.expect_request("/new").respond_with_json({"message_id": "m-2"})
    error = ask("old", Receipt, body)
    assert len(service.log) == 1, "the redirect was followed: a POST becomes a GET, and is lost"
    assert isinstance(error, ServiceError), f"a redirect became {error!r}"
    assert "redirected to /new" in str(error), f"where the redirect leads is not named: {error}"


@pytest.mark.parametrize(
    ("answer_type", "answer"),
    [
        (Balance, '{"balance": "12"}'),
        (Balance, '{"balance": NaN}'),
        (Balance, '{"balance": true}'),
        (Balance, "{}"),
        (Balance, "[120.5]"),
        (Activity, '{"logins": [1, 2, 3]}'),
        (Activity, '{"logins": [1, 2, 3, -4]}'),
        (Activity, '{"logins": [1, 2, 3, 4.5]}'),
        (User, '{"user_id": "101", "name": "Ada"}'),
        (User, '{"user_id": 101, "name": ""}'),
        (Receipt, '"delivered"'),
        (Receipt, '{"message_id": ""}'),
        (Receipt, "<html>please log in</html>"),
        (Receipt, ""),
    ],
)
def test_an_answer_of_another_shape_is_an_error_that_shows_it(
    service: HTTPServer, answer_type: type[Answer], answer: str
) -> None:
    service.expect_request("/x").respond_with_data(answer)
    error = ask("x", answer_type)
    assert isinstance(error, ServiceError), f"{answer!r} became {error!r}: is it validated?"
    assert "/x: " in str(error), f"the URL is not named: {error}"
    assert answer in str(error), f"what came is not shown: {error}"


def test_a_service_that_hangs_is_an_outage(
    service: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(request: Request) -> Response:
        time.sleep(1)
        return Response('{"user_id": 101, "name": "Ada"}')

    monkeypatch.setattr(services, "TIMEOUT_SECONDS", 0.2)
    service.expect_request("/user/101").respond_with_handler(hang)
    error = ask("user/101", User)
    assert isinstance(error, OutageError), f"{error!r}: is the timeout passed to requests?"


def test_an_answer_that_trickles_is_an_outage(
    service: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trickle(request: Request) -> Response:
        def spaces() -> Iterator[bytes]:
            for _ in range(10):
                time.sleep(0.1)
                yield b" "

        return Response(spaces())

    monkeypatch.setattr(services, "TOTAL_SECONDS", 0.3)
    service.expect_request("/user/101").respond_with_handler(trickle)
    error = ask("user/101", User)
    assert isinstance(error, OutageError), f"{error!r}: a slow body has no limit"


def test_a_large_answer_is_read_in_time(
    service: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "TOTAL_SECONDS", 3)
    service.expect_request("/message/101").respond_with_json({"message_id": "m" * 5_000_000})
    answer = ask("message/101", Receipt)
    assert isinstance(answer, Receipt), f"5 MB became {answer!r}: are they read byte by byte?"


def test_an_answer_that_is_cut_is_an_outage(service: HTTPServer) -> None:
    def cut(request: Request) -> Response:
        return Response(iter(['{"user_id":']), headers={"Content-Length": "1000"})

    service.expect_request("/user/101").respond_with_handler(cut)
    error = ask("user/101", User)
    assert isinstance(error, OutageError), f"{error!r}: a cut connection is worth a retry"


def test_an_untrusted_certificate_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "self-signed.pem"
    pem.write_bytes(
        certificate.public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    with HTTPServer(ssl_context=context) as server:
        server.expect_request("/user/101").respond_with_json(ADA)
        monkeypatch.setenv("SERVICE_URL", server.url_for(""))
        error = ask("user/101", User)
    assert isinstance(error, ServiceError), f"{error!r}: no retry makes a certificate trusted"
    assert "CERTIFICATE_VERIFY_FAILED" in str(error), f"the reason is not named: {error}"


def test_an_error_does_not_show_the_token(service: HTTPServer) -> None:
    service.expect_request("/user/101").respond_with_data("no access for secret-token", 403)
    error = ask("user/101", User)
    assert "no access for" in str(error), f"the service's own words are not shown: {error}"
    assert "secret-token" not in str(error), f"the error, and so the log, shows the token: {error}"


def test_an_unreachable_service_is_an_outage_and_no_password_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVICE_URL", "http://somebody:password@127.0.0.1:9")
    error = ask("user/101", User)
    assert isinstance(error, OutageError), f"{error!r}: a refused connection is worth a retry"
    assert "password" not in str(error), f"the error shows a password: {error}"


def test_a_missing_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVICE_URL")
    error = ask("user/101", User)
    assert "SERVICE_URL is not set" in str(error), f"no address, and the error is {error!r}"


def test_retry_after_is_seconds_or_a_date_up_to_a_limit() -> None:
    in_20_seconds = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert services.read_retry_after("20") == 20
    assert services.read_retry_after(in_20_seconds) == pytest.approx(20, abs=2)
    limited = services.read_retry_after("3600")
    assert limited == services.RETRY_AFTER_LIMIT, (
        f"a service that asks for an hour holds up the run for {limited:.0f} s: where is the limit?"
    )
    for nonsense in ("", "soon", "-5", "nan", "Thu, 01 Jan 1970 00:00:00 GMT"):
        assert services.read_retry_after(nonsense) == 0, f"{nonsense} is not a delay"
