"""A small real HTTP server that answers as a test tells it to, and misbehaves as named."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from forked import run_forked
from support import changed_copy

DEPLOYMENT_ID = "11111111-2222-4333-8444-555555555555"
FLOW_RUN_ID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"


@dataclass
class Request:
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    text: str
    at: float = field(default_factory=time.monotonic)

    @property
    def body(self) -> Any:
        """The JSON that it carries."""
        return json.loads(self.text)


@dataclass
class Answer:
    """An answer, or the lack of one."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False  # say nothing until the client is gone
    drop: bool = False  # close the connection without a word
    half: bool = False  # send the first half of the body only

    @property
    def content(self) -> bytes:
        """The body as it is sent: text as it is, anything else as JSON."""
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        return text.encode()


@dataclass
class Stub:
    """A running stub: where it is, and what came in."""

    url: str
    received: list[Request]

    @property
    def api_url(self) -> str:
        """The URL to hand to a lesson."""
        return f"{self.url}/api"


@contextmanager
def stub(answer: Callable[[Request], Answer]) -> Iterator[Stub]:
    """Run a server on a free port during the block that answers each request by `answer`."""
    received: list[Request] = []
    running = True

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(length).decode()
            request = Request(self.command, self.path, dict(self.headers), text)
            received.append(request)
            reply = answer(request)
            while reply.hang and running:
                time.sleep(0.05)
            if reply.hang or reply.drop:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            sent = len(reply.content) // 2 if reply.half else len(reply.content)
            self.wfile.write(reply.content[:sent])
            self.close_connection = reply.half

        do_GET = do_POST = handle_request  # noqa: N815

        def log_message(self, *_arguments: Any) -> None:
            """Keep the output of the tests free of it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Stub(f"http://127.0.0.1:{server.server_port}", received)
    finally:
        running = False
        server.shutdown()
        server.server_close()
        thread.join()


def prefect_api(request: Request) -> Answer:
    """Answer as a Prefect server does that serves user-flow/user-deployment."""
    if request.path.endswith("/create_flow_run"):
        return Answer(201, {"id": FLOW_RUN_ID, "name": "calm-crow"})
    if request.path == "/api/deployments/name/user-flow/user-deployment":
        schema = {"properties": {"user_id": {"type": "integer"}}}
        return Answer(
            200,
            {
                "id": DEPLOYMENT_ID,
                "name": "user-deployment",
                "parameter_openapi_schema": schema,
                "status": "READY",
                "paused": False,
            },
        )
    if request.path.startswith("/api/flow_run_states/"):
        return Answer(200, [state("Scheduled"), state("Running"), state("Completed")])
    if request.path.endswith("/filter"):
        return Answer(200, [])
    return Answer(404, {"detail": "Deployment not found"})


def state(name: str, message: str | None = None) -> dict[str, Any]:
    """Return a state as the API tells it."""
    timestamp = "2026-01-31T12:34:56.789012Z"
    return {"name": name, "type": name.upper(), "timestamp": timestamp, "message": message}


# What a server can do wrong, and what the one line about it says.
MISBEHAVIOUR: dict[str, tuple[Answer, str]] = {
    "web page instead of the API": (
        Answer(200, "<!doctype html><title>Prefect</title>", {"Content-Type": "text/html"}),
        "is not a Prefect API: its URL ends in /api",
    ),
    "path without the API": (Answer(404, {"detail": "Not Found"}), "its URL ends in /api"),
    "garbage": (Answer(200, "{'not': json"), "is not a Prefect API"),
    "foreign JSON": (Answer(200, {"hello": "world"}), "is not a Prefect API"),
    "a number": (Answer(200, 42), "is not a Prefect API"),
    "half a body": (Answer(200, {"id": DEPLOYMENT_ID}, half=True), "No answer from"),
    "login page": (
        Answer(302, "", {"Location": "http://127.0.0.1:1/login"}),
        "redirects elsewhere: a login page",
    ),
    "internal error": (Answer(500, "Internal Server Error"), "answers 500"),
    "a proxy's refusal": (Answer(413, "<title>Too large</title>"), "is not a Prefect API"),
    "too many requests": (Answer(429, {"detail": "Slow down"}), "answers 429"),
    "overloaded": (Answer(503, {"detail": "database is locked"}), "answers 503"),
    "hanging": (Answer(hang=True), "No answer from"),
    "no word": (Answer(drop=True), "No answer from"),
    "no credentials": (Answer(401, {"exception_message": "Unauthorized"}), "credentials"),
    "refused in two lines": (Answer(409, {"detail": "it is\nrefused"}), "it is refused"),
    "forbidden": (Answer(403, {"detail": "Forbidden"}), "credentials"),
}

# API URLs that cannot work, and what the one line about them says.
BAD_API_URLS: dict[str, tuple[str, str]] = {
    "empty": ("", "is no API URL; one looks like http://127.0.0.1:4200/api"),
    "no scheme": ("127.0.0.1:4200/api", "is no API URL"),
    "other scheme": ("ftp://127.0.0.1/api", "is no API URL"),
    "no host": ("http://", "is no API URL"),
    "refusing": ("http://127.0.0.1:1/api", "No answer from http://127.0.0.1:1/api"),
    "unknown host": ("http://prefect.invalid/api", "No answer from http://prefect.invalid/api"),
}

# Names that are no FLOW/DEPLOYMENT.
BAD_NAMES = ["", "user-flow", "user-flow/", "/user-deployment", "a/b/c", "../x", "x/..", "./."]

# Names of that form that no deployment has, and the path that asks for them.
UNKNOWN_NAMES = {
    "user-flow/no-such": "/api/deployments/name/user-flow/no-such",
    "my flow/my deployment": "/api/deployments/name/my%20flow/my%20deployment",
    "flöw/dëployment": "/api/deployments/name/fl%C3%B6w/d%C3%ABployment",
    "a/b%2Fc": "/api/deployments/name/a/b%252Fc",
    "a/b?c=d": "/api/deployments/name/a/b%3Fc%3Dd",
    "a/b#c": "/api/deployments/name/a/b%23c",
    "a/...": "/api/deployments/name/a/...",
}

# -p/--param values, and the parameter that is sent.
PARAMETERS: dict[str, Any] = {
    "user_id=102": {"user_id": 102},
    "user_id=text": {"user_id": "text"},
    'user_id="102"': {"user_id": "102"},
    "user_id=null": {"user_id": None},
    "user_id=": {"user_id": ""},
    "user_id=a=b": {"user_id": "a=b"},
    "user_id=[1, 2]": {"user_id": [1, 2]},
    "user_id=NaN": {"user_id": "NaN"},
}

# -p/--param that cannot be read, and what the one line about them says.
BAD_PARAMETERS: dict[str, tuple[list[str], str]] = {
    "without =": (["-p", "user_id"], "-p takes KEY=VALUE, each KEY once"),
    "without a key": (["-p", "=102"], "not '=102'"),
    "twice": (
        ["-p", "user_id=1", "-p", "user_id=2"],
        "each KEY once, as user_id=102, not 'user_id=2'",
    ),
}


def assert_asks_port_4200(path: Path, folder: Path, *arguments: str) -> None:
    """Check that the script asks the server at port 4200 if no other is configured.

    It is a copy in `folder`, which finds a stub at another port in place of that server.
    """
    with stub(prefect_api) as server:
        copy = changed_copy(path, folder, ("http://127.0.0.1:4200/api", server.api_url))
        results = [run_forked(copy, *arguments), run_forked(copy, *arguments, PREFECT_API_URL="")]
    for result in results:
        assert result.returncode == 0, (
            f"with no PREFECT_API_URL it does not ask the server at port 4200: {result.stderr}"
        )
