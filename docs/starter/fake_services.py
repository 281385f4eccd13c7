"""Four services to try the pipeline with: they answer, and every now and then they fail.

Run:    python fake_services.py     (pipeline.py starts them itself where SERVICE_URL is not set)
Notice: the first of ten balances is refused with a 503, and the answer to the first of ten messages
        gets lost after the delivery. Nothing is random, and nothing leaves this machine.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Event, Thread

USERS = {101: "Ada Lovelace", 102: "Alan Turing", 103: "Grace Hopper"}
BALANCES = {101: 120.50, 102: 980.00, 103: 15.75}
LOGINS = {101: [5, 3, 2, 1], 102: [9, 8, 9, 10], 103: [2, 1, 0, 0]}

REQUESTS = {"balance": count(), "message": count()}
MESSAGE_IDS: dict[str, str] = {}  # of the delivered messages, by idempotency key


class FakeServices(BaseHTTPRequestHandler):
    """GET /user/ID, /balance/ID and /activity/ID, and POST /message/ID."""

    def do_GET(self) -> None:
        """Answer a lookup, but return 503 to the first of ten lookups of a balance."""
        service, _, text = self.path.strip("/").partition("/")
        user_id = int(text) if text.isdecimal() else -1
        if service == "balance" and next(REQUESTS[service]) % 10 == 0:
            self.answer(503, {"detail": "the balance service is down"}, {"Retry-After": "3"})
        elif user_id not in USERS:
            self.answer(404, {"detail": f"no user {text}"})
        elif service == "user":
            self.answer(200, {"user_id": user_id, "name": USERS[user_id]})
        elif service == "balance":
            self.answer(200, {"balance": BALANCES[user_id]})
        elif service == "activity":
            self.answer(200, {"logins": LOGINS[user_id]})
        else:
            self.answer(404, {"detail": f"no service {service}"})

    def do_POST(self) -> None:
        """Deliver the message once for each key, but lose the first of ten answers."""
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["message"]
        key = self.headers["Idempotency-Key"]
        if key not in MESSAGE_IDS:
            self.log_message("delivered %r under the key %s", message, key)
        message_id = MESSAGE_IDS.setdefault(key, f"message-{len(MESSAGE_IDS) + 1}")
        if next(REQUESTS["message"]) % 10 == 0:
            self.log_message("the answer to this POST gets lost")
            self.close_connection = True
        else:
            self.answer(200, {"message_id": message_id})

    def answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        """Send the status, these further headers, and the body as JSON."""
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Print one line to stderr for each answer."""
        print("fake services:", format % args, file=sys.stderr)


@contextmanager
def fake_services(port: int = 0) -> Iterator[str]:
    """Answer on this port of this machine (0: any free one) during the block; yield the URL."""
    with ThreadingHTTPServer(("127.0.0.1", port), FakeServices) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


if __name__ == "__main__":
    try:
        with fake_services(8000) as url, suppress(KeyboardInterrupt):
            print(f"Set SERVICE_URL={url} for the pipeline. Ctrl-C stops the fake services.")
            Event().wait()
    except OSError as error:
        sys.exit(f"error: cannot listen on port 8000 ({error}). Stop the program that uses it.")
